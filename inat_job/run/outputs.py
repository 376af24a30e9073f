"""What a job owes its platform: a look at the start whether all can be done, and the results where it collects them."""

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from inat_job import events
from inat_job.errors import BadDataError, NoPermissionError
from inat_job.platforms.detect import CONTAINER
from inat_job.platforms.platform import NO_PLATFORM, Platform
from inat_job.storage.disk import disk_errors
from inat_job.storage.run_folder import RunFolder

_MODEL = "model/"
_RESULTS = ("report.json", "report.html", "plots/")


def check(place: Platform) -> None:
    """Say where this is, and raise what would keep the platform from being served in the end.

    Raises ConflictError for more machines than a run can use, and NoPermissionError or what else the disk raises for a
    folder that can't be written to.
    """
    if place not in (CONTAINER, NO_PLATFORM):
        events.emit("platform", **place.log_fields())
    for folder in (place.model_folder, place.results_folder):
        if folder is None:
            continue
        probe = folder / f".{secrets.token_hex(4)}.tmp"
        try:
            with disk_errors(probe):
                folder.mkdir(parents=True, exist_ok=True)
                probe.touch()
                probe.unlink()
        except NoPermissionError as error:
            raise NoPermissionError(
                f"{place.name} collects {folder}, and user {os.geteuid()} may not write there: run the image as root, "
                "for which a derived one needs USER 0."
            ) from error


def collect(place: Platform, folder: RunFolder) -> None:
    """Put what a finished run has stored where the platform collects it: of the model and the results, all and no more.

    Raises what the store and the disk raise; the same command then finds the run finished, and does this alone.
    """
    if place.model_folder:
        _copy(folder, _MODEL, place.model_folder)
    if place.results_folder:
        for name in _RESULTS:
            _copy(folder, name, place.results_folder)
    if place.model_folder or place.results_folder:
        events.emit("collected", model=str(place.model_folder), results=str(place.results_folder))


def _copy(folder: RunFolder, name: str, into: Path) -> None:
    """Copy an object, or all below a name that ends in a slash; what is below model/ lies in `into` itself."""
    for key in _stored(folder, name):
        path = folder.fetch(key)
        if path is None:
            raise BadDataError(f"{folder.uri}/{key} went away while it was collected: do the run again, as another.")
        target = into / (key.removeprefix(name) if name == _MODEL else key)
        draft = target.with_name(f".{target.name}.tmp")
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, draft)
            draft.replace(target)


def _stored(folder: RunFolder, name: str) -> Iterator[str]:
    yield from (entry.key for entry in list(folder.store.list(name)) if name.endswith("/") or entry.key == name)
