"""The cost of a checkpoint per epoch for a run of Part B: its share of the training time, and of the memory.

    python tests/measure/checkpoint_cost.py [--pairs 1] -- partb --data $INAT_BENCH_DATA/data/photos8.zip ...

Runs the command alternately with and without checkpoints, each in its own process. The cost in time is what training
waits for checkpoints plus the processor time of storing them in the background, which is the most they can cost; the
cost in memory is the ratio of the peaks.
"""

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def child(mode: str, arguments: list[str]) -> None:
    """Run a command line in this process and measure it; the last line of stdout is the result."""
    sys.path.insert(0, str(ROOT))
    import entrypoint
    from inat_job.checkpoints.uploader import Uploader
    from inat_job.training.checkpoint_callback import CheckpointCallback

    spent = {"blocked_s": 0.0, "background_s": 0.0, "taken": 0}
    if mode == "with":
        _time_calls(CheckpointCallback, "_take", time.perf_counter, spent, "blocked_s")
        _time_calls(Uploader, "_upload", time.thread_time, spent, "background_s")
    else:
        Uploader.save = lambda self, manifest, write, deferred: manifest  # type: ignore[method-assign]
        Uploader.update_manifest = lambda self, manifest: None  # type: ignore[method-assign]
    times: dict[str, float] = {}
    _record_times(CheckpointCallback, times)
    sys.argv = ["entrypoint.py", *arguments]
    with contextlib.suppress(SystemExit):  # without checkpoints there is nothing to test at the end
        entrypoint.main()
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps({**spent, "train_s": times["end"] - times["start"], "peak_mb": peak_mb}))


def _time_calls(owner: Any, name: str, clock: Any, spent: dict[str, Any], into: str) -> None:
    inner = getattr(owner, name)

    def measured(*args: Any, **options: Any) -> Any:
        started = clock()
        try:
            return inner(*args, **options)
        finally:
            spent[into] += clock() - started
            spent["taken"] += into == "blocked_s"

    setattr(owner, name, measured)


def _record_times(callback: Any, times: dict[str, float]) -> None:
    start, end = callback.on_train_start, callback.on_validation_end

    def on_train_start(self: Any, *args: Any) -> None:
        times.setdefault("start", time.perf_counter())
        start(self, *args)

    def on_validation_end(self: Any, *args: Any) -> None:
        end(self, *args)
        times["end"] = time.perf_counter()

    callback.on_train_start, callback.on_validation_end = on_train_start, on_validation_end


def measure(mode: str, arguments: list[str], folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", mode, "--", *arguments, "--output", str(folder / mode)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--child", choices=("with", "without"))
    parser.add_argument("arguments", nargs="+")
    given = parser.parse_args()
    if given.child:
        child(given.child, given.arguments)
        return
    rows = []
    for _ in range(given.pairs):
        with tempfile.TemporaryDirectory() as folder:
            rows.append({mode: measure(mode, given.arguments, Path(folder)) for mode in ("with", "without")})
    costs = [(row["with"]["blocked_s"] + row["with"]["background_s"]) / row["with"]["train_s"] for row in rows]
    memory = [row["with"]["peak_mb"] / row["without"]["peak_mb"] for row in rows]
    print(json.dumps({"runs": rows}, indent=2))
    print(f"cost: {statistics.median(costs):.2%} of the training time ({min(costs):.2%} to {max(costs):.2%})")
    print(f"peak memory: {statistics.median(memory):.3f} times ({min(memory):.3f} to {max(memory):.3f})")


if __name__ == "__main__":
    main()
