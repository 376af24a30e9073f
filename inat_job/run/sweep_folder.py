"""The folder of a sweep under `--output`: what marks it, where its runs are, and that it is not taken for a run's."""

from collections.abc import Sequence

from inat_job.errors import BadDataError, ConflictError
from inat_job.storage import Store
from inat_job.storage.run_folder import read_stored_json

SWEEP = "sweep.json"
"""What a sweep is, in its folder: its part, its space, how it searches, and the settings that its trials share."""
TRIALS, BEST = "trials", "best"
"""The folders of a sweep's runs: of its trials, and of the best settings, trained again."""
_REPORT = "report.json"


def refuse_sweep(store: Store, whole: bool = False) -> None:
    """Raise BadDataError for a sweep's folder where a run's is to be read; the sentence names a run of it.

    `whole` asks for one with a test and a model, which trials do not have.
    """
    if store.stat(SWEEP) is None:
        return
    try:
        name = _run_in(store, [BEST] if whole else [BEST, TRIALS])
    except ConflictError:  # a web server lists nothing
        raise BadDataError(f"{store.uri} is a sweep: name one of its runs, in {store.uri}/{BEST}.") from None
    if name:
        raise BadDataError(f"{store.uri} is a sweep: name one of its runs, such as {store.uri}/{name}.")
    lacking = "has not trained its best settings again" if whole else "has begun no trial"
    raise BadDataError(f"{store.uri} is a sweep, and {lacking} yet: run its command again, or name a run.")


def refuse_to_write_in_sweep(store: Store) -> None:
    """Raise ConflictError for a sweep's folder where a run is to be written."""
    if store.stat(SWEEP) is not None:
        raise ConflictError(f"{store.uri} is a sweep, which a run would damage: change --run-id.")


def _run_in(store: Store, folders: Sequence[str]) -> str:
    """A run of a sweep, one of the settings that are best now if there is one; empty if there is none."""
    for prefix in (f"{BEST}/{_best_trial(store)}", *(f"{folder}/" for folder in folders)):
        for entry in store.list(prefix, most=1):
            return "/".join(entry.key.split("/")[:2])
    return ""


def _best_trial(store: Store) -> str:
    """How the names of the runs of the best settings begin; empty if that is not known."""
    try:
        report = read_stored_json(store, _REPORT)
        return f"trial-{report['best']['trial']}-" if report else ""
    except (BadDataError, TypeError, LookupError):
        return ""
