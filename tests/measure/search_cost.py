"""What the search itself costs, beside the trials' training: the next point, and the rest of a trial's notes.

    python tests/measure/search_cost.py [--trials 10,300,1000] [--s3]

Searches Part A's space with the defaults, TPE and ASHA, for trials of nine epochs that train nothing: their accuracy is
a function of their settings. The study is in a local folder, or with `--s3` on a loopback S3 server (moto's in a
process of its own, or that of INAT_TEST_S3_ENDPOINT). Of the last ten trials before each count, the mean and highest
time of the processor, in this process, and of the clock.
"""

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from inat_job.configuration import changed  # noqa: E402
from inat_job.recipes import RECIPES  # noqa: E402
from inat_job.search.journal import StoreJournal  # noqa: E402
from inat_job.search.space import PART_A, Value, default_point  # noqa: E402
from inat_job.search.study import Search, open_storage, open_study  # noqa: E402
from inat_job.search.trials import Trials  # noqa: E402
from inat_job.storage.open_store import open_store  # noqa: E402
from tests.harness.stores import S3Output, credentials, s3_endpoint  # noqa: E402

_EPOCHS, _LAST = 9, 10


def accuracy(values: Mapping[str, Value], epoch: int) -> float:
    """The validation accuracy of a toy trial after an epoch: the distance from an optimum, through each epoch."""
    off = [
        math.log10(float(values["train.lr"]) / 2e-3),
        math.log10(float(values["train.weight_decay"]) / 0.05) / 2,
        float(values["model.dropout"]) - 0.3,
        5 * (float(values["train.label_smoothing"]) - 0.1),
        math.log2(float(values["model.dense"]) / 256) / 4,
        math.log2(float(values["model.filters"]) / 48) / 2,
        float(values.get("train.colour", 0.6)) - 0.2,
        float(values.get("train.crop_scale", 0.0)) - 0.6,
        0.3 * (values["model.filter_organisation"] != "double"),
        0.2 * (values["model.activation"] != "silu"),
        0.2 * (not values["model.batch_norm"]),
        0.2 * (values["model.kernel_sizes"] != "5,5,3,3,3"),
        0.2 * (values["model.pooling"] != "gap"),
        0.1 * math.log2(float(values["train.batch_size"]) / 64),  # type: ignore[arg-type]
    ]
    return 0.9 * math.exp(-sum(each**2 for each in off)) * (1 - 0.6**epoch)


def open_trials(uri: str, seed: int) -> Trials:
    """A new search in a store."""
    base, journal = RECIPES["a"](), StoreJournal(open_store(uri))
    study = open_study(open_storage(journal, None), "toy", Search("tpe", "asha", seed, default_point(base, PART_A)))
    return Trials(study, PART_A, lambda values: changed(base, values, "sweep"), journal.together)


class Costs:
    """Seconds of the processor and of the clock, for each trial, by what they went into."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[tuple[float, float]]] = {"next point": [], "epochs and end": []}

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        """Measure a block."""
        before = time.process_time(), time.perf_counter()
        yield
        self.seconds[what].append((time.process_time() - before[0], time.perf_counter() - before[1]))

    def rows(self) -> Iterator[str]:
        """A line each: mean and highest of the last trials."""
        for what, seconds in self.seconds.items():
            for kind, values in zip(("processor", "clock"), zip(*seconds[-_LAST:], strict=True), strict=True):
                yield f"{what:15} {kind:10} {statistics.fmean(values):8.3f} {max(values):8.3f}"


def run_trial(trials: Trials, most: int, costs: Costs) -> None:
    """Draw a trial, note its epochs until it is pruned or over, and end it."""
    with costs.of("next point"):
        trials.state()
        running = trials.begin(most)
    assert running
    values = running.trial.params
    with costs.of("epochs and end"):
        known = [accuracy(values, epoch) for epoch in range(1, _EPOCHS + 1)]
        if any(trials.report(running.trial, known[:epoch]) for epoch in range(1, _EPOCHS)):
            trials.prune(running.trial)
        else:
            trials.complete(running.trial, known)


@contextmanager
def store(s3: bool) -> Iterator[str]:
    """The URI of an empty store."""
    if not s3:
        with tempfile.TemporaryDirectory() as folder:
            yield folder
        return
    os.environ.update(credentials())
    with s3_endpoint() as endpoint:
        os.environ["AWS_ENDPOINT_URL"] = endpoint
        yield S3Output(endpoint).uri


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--trials", default="10,300,1000", help="numbers of finished trials at which to measure")
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--s3", action="store_true")
    chosen = words.parse_args()
    counts = sorted(map(int, chosen.trials.split(",")))
    with store(chosen.s3) as uri:
        trials, costs = open_trials(uri, chosen.seed), Costs()
        for number in range(1, counts[-1] + 1):
            run_trial(trials, counts[-1], costs)
            if number in counts:
                print(f"{number} trials, the best {trials.state().best:.4f}; seconds: mean, highest")
                print("\n".join(costs.rows()), flush=True)
        begun = time.process_time(), time.perf_counter()
        found = len(open_trials(uri, chosen.seed).counted())
        print(
            f"a worker reads the {found}: processor {time.process_time() - begun[0]:.3f}, "
            f"clock {time.perf_counter() - begun[1]:.3f}"
        )


if __name__ == "__main__":
    main()
