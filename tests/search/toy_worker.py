"""A worker of a sweep whose trials are toys, as a program: FOLDER TRIALS SLOTS EPOCH_S LEASE_S [DATABASE]."""

import json
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType

from inat_job.configuration import configure
from inat_job.errors import JobError
from inat_job.search import trial_process
from inat_job.search.journal import StoreJournal
from inat_job.search.outcomes import Limits
from inat_job.search.space import Space, Value, real
from inat_job.search.study import Search, open_storage, open_study
from inat_job.search.trial_process import TrialProcess
from inat_job.search.trials import Trials
from inat_job.search.worker import Worker
from inat_job.settings import Settings
from inat_job.signals import StopFlag
from inat_job.storage import StorageOptions
from inat_job.storage.local import LocalStore
from tests.search import toy_trial
from tests.search.toy_trial import Toy

SPACE: Space = {"train.lr": real(1e-4, 1e-1, log=True)}
LEASE_S = 5.0
READY = "ready"
"""The first line, printed once a signal stops the worker as it should."""


def make_settings(values: dict) -> Settings:
    return configure("a", values, [], None, environment={}).settings


def trials_in(
    folder: Path,
    seed: int = 0,
    pruner: str = "none",
    space: Space = SPACE,
    database: str | None = None,
    first: Mapping[str, Value] = MappingProxyType({}),
    stale_s: float = 0.2,
) -> Trials:
    journal = None if database else StoreJournal(LocalStore(folder, StorageOptions()), stale_s=stale_s)
    study = open_study(open_storage(journal, database), "toy", Search("tpe", pruner, seed, first))
    return Trials(study, space, make_settings, journal.together if journal else nullcontext)


def worker(
    folder: Path,
    limits: Limits,
    slots: int = 1,
    epoch_s: float = 0.0,
    stop: StopFlag | None = None,
    trials: Trials | None = None,
    fails: dict[int, int] | None = None,
    lease_s: float = LEASE_S,
) -> Worker:
    """`fails` has the exit codes of trials that fail, by number; a negative one is a signal's.

    A trial without a folder is free `lease_s` seconds after it was begun.
    """

    def start(number: int, settings: Settings, slot: int) -> TrialProcess:
        toy = Toy(folder / "trials" / str(number), settings.train.lr, 3, epoch_s, (fails or {}).get(number, 0))
        return TrialProcess(toy_trial.run, toy, {})

    def is_free(number: int, begun_at: float) -> bool:
        return toy_trial.is_free(folder / "trials" / str(number), begun_at, lease_s)

    return Worker(trials or trials_in(folder), start, is_free, limits, slots, stop or StopFlag())


def main() -> None:
    folder, most, slots = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    epoch_s, lease_s = float(sys.argv[4]), float(sys.argv[5])
    trials = trials_in(folder, database=sys.argv[6] if len(sys.argv) > 6 else None)
    trial_process.PRELOADED = ()
    stop = StopFlag()
    stop.install()
    print(READY, flush=True)
    try:
        print(json.dumps({"why": worker(folder, Limits(most), slots, epoch_s, stop, trials, lease_s=lease_s).run()}))
    except JobError as error:
        print(json.dumps({"error": str(error)}))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
