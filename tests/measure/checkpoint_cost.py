"""The cost of a checkpoint per epoch for a run of Part B: its share of the training time, and of the memory.

    python tests/measure/checkpoint_cost.py [--pairs 1] [--mb-per-s 50] [--tree FOLDER] -- \
        partb --data $INAT_BENCH_DATA/data/photos8.zip ...

Runs the command alternately with and without checkpoints, each in its own process; `--tree` is another checkout to run
it from. The run is in a local folder, or with `--mb-per-s` in a remote store of that bandwidth. The cost in time is
what training waits for checkpoints, which is all of it on a GPU, and the share of the processor's time that goes into
writing and uploading them in the background; the cost in memory is the ratio of the peaks.
"""

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_THREADS = ("checkpoint writer", "uploader")
_PART = 2**24


class LimitedStore:
    """A remote store that takes `rate` bytes per second, a large file in parts with an MD5 each.

    Files are not kept: what is measured is the sending.
    """

    def __init__(self, kept: Any, rate: float) -> None:
        self._kept, self._rate = kept, rate
        self.uri = kept.uri

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kept, name)

    def put(self, key: str, source: Any, *, sha256: str | None = None, **options: Any) -> Any:
        """Store bytes; read a file as an upload in parts does, hashed on the way if `sha256` is given."""
        if not isinstance(source, Path):
            return self._kept.put(key, source, **options)
        free_at, digest, total = time.monotonic(), hashlib.sha256(), source.stat().st_size
        with source.open("rb") as file:
            while block := file.read(_PART):
                hashlib.md5(block, usedforsecurity=False)
                if sha256:
                    digest.update(block)
                free_at = max(free_at, time.monotonic()) + len(block) / self._rate
                time.sleep(free_at - time.monotonic())
                if options.get("progress"):
                    options["progress"](file.tell(), total)
        assert sha256 in (None, digest.hexdigest())
        return None


def child(mode: str, tree: Path, rate: float | None, arguments: list[str]) -> None:
    """Run a command line in this process and measure it; the last line of stdout is the result."""
    sys.path.insert(0, str(tree))
    import entrypoint
    from inat_job.checkpoints.uploader import Uploader
    from inat_job.storage import run_folder
    from inat_job.training.checkpoint_callback import CheckpointCallback

    if rate:
        opened = run_folder.open_store
        run_folder.open_store = lambda *given, **named: LimitedStore(opened(*given, **named), rate)
    spent: dict[str, Any] = {"blocked": [], "blocked_cpu_s": 0.0}
    if mode == "with":
        _time_calls(CheckpointCallback, "_take", spent)
        _time_calls(CheckpointCallback, "add_validation", spent)
    else:
        Uploader.save = lambda self, manifest, *given, **named: manifest
        Uploader.update_manifest = lambda self, manifest: None
    _end_with_training(CheckpointCallback, spent)
    sys.argv = ["entrypoint.py", *arguments]
    entrypoint.main()


def _time_calls(owner: Any, name: str, spent: dict[str, Any]) -> None:
    inner = getattr(owner, name)

    def measured(*args: Any, **options: Any) -> Any:
        started, cpu = time.perf_counter(), time.thread_time()
        try:
            return inner(*args, **options)
        finally:
            spent["blocked"].append(round(time.perf_counter() - started, 4))
            spent["blocked_cpu_s"] += time.thread_time() - cpu

    setattr(owner, name, measured)


def _end_with_training(callback: Any, spent: dict[str, Any]) -> None:
    """Print what was measured and end the process once the last epoch is validated."""
    start, end = callback.on_train_start, callback.on_validation_end

    def on_train_start(self: Any, *args: Any) -> None:
        spent["train_s"], spent["train_cpu_s"] = -time.perf_counter(), -time.process_time()
        start(self, *args)

    def on_validation_end(self: Any, *args: Any) -> None:
        end(self, *args)
        if self.ended:
            spent["train_s"] += time.perf_counter()
            spent["train_cpu_s"] += time.process_time()
            spent["blocked_s"] = sum(spent["blocked"])
            spent["background_s"] = sum(map(_thread_time, threading.enumerate()))
            spent["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
            print(json.dumps(spent), flush=True)
            os._exit(0)

    callback.on_train_start, callback.on_validation_end = on_train_start, on_validation_end


def _thread_time(thread: threading.Thread) -> float:
    if thread.name not in _THREADS or thread.ident is None:
        return 0.0
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def measure(mode: str, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", mode, "--tree", str(given.tree)]
    command += ["--mb-per-s", str(given.mb_per_s)] if given.mb_per_s else []
    command += ["--", *given.arguments, "--output", str(folder / mode), "--cache-dir", str(folder / f"{mode}-cache")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--mb-per-s", type=float)
    parser.add_argument("--tree", type=Path, default=ROOT)
    parser.add_argument("--child", choices=("with", "without"))
    parser.add_argument("arguments", nargs="+")
    given = parser.parse_args()
    if given.child:
        child(given.child, given.tree, given.mb_per_s and given.mb_per_s * 1e6, given.arguments)
        return
    rows = []
    for _ in range(given.pairs):
        with tempfile.TemporaryDirectory() as folder:
            rows.append({mode: measure(mode, given, Path(folder)) for mode in ("with", "without")})
    print(json.dumps({"runs": rows}, indent=2))
    _show("training waits", [row["with"]["blocked_s"] / row["with"]["train_s"] for row in rows])
    _show("training waits, processor time", [row["with"]["blocked_cpu_s"] / row["with"]["train_cpu_s"] for row in rows])
    _show("background, processor time", [row["with"]["background_s"] / row["with"]["train_cpu_s"] for row in rows])
    memory = [row["with"]["peak_mb"] / row["without"]["peak_mb"] for row in rows]
    print(f"peak memory: {statistics.median(memory):.3f} times ({min(memory):.3f} to {max(memory):.3f})")


def _show(what: str, shares: list[float]) -> None:
    median = statistics.median(shares)
    print(f"{what}: {median:.2%} of training ({min(shares):.2%} to {max(shares):.2%})")


if __name__ == "__main__":
    main()
