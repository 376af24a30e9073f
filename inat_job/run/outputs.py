"""The results that a platform collects: its folders are checked at the start of a job and filled at the end."""

import os
import secrets
import shutil
from collections.abc import Collection
from pathlib import Path

from inat_job import events
from inat_job.errors import BadDataError, NoPermissionError
from inat_job.host.system_files import is_lost_with_container
from inat_job.platforms.detect import CONTAINER
from inat_job.platforms.platform import NO_PLATFORM, Platform
from inat_job.storage.disk import disk_errors
from inat_job.storage.run_folder import RunFolder

_MODEL = "model/"
_RESULTS = ("report.json", "report.html", "predictions.csv", "plots/")


def check_folders(platform: Platform) -> None:
    """Report the platform, and check that the folders it collects can be written.

    Raises NoPermissionError, or what else the disk raises, for a folder that cannot be written to.
    """
    if platform not in (CONTAINER, NO_PLATFORM):
        events.emit("platform", **platform.log_fields())
    for folder in (platform.model_folder, platform.results_folder):
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
                f"{platform.name} collects {folder}, where user {os.geteuid()} may not write: run the container image "
                "as root, for which a derived image needs USER 0."
            ) from error


def warn_of_loss(uri: str, root: Path = Path("/"), pids: Collection[int] = ()) -> None:
    """Warn of a run folder that is lost with the container, where the container ends with this process."""
    ends_with_job = 1 in (pids or (os.getpid(), os.getppid()))  # 1 is the parent's where the container has an init
    if ends_with_job and "://" not in uri and is_lost_with_container(Path(uri), root):
        events.warn(
            f"The run is stored in {uri}, inside this container, and is lost with it: mount a folder (docker run -v "
            '"$PWD/runs:/scratch/runs"), or set --output to a bucket.'
        )


def collect_results(platform: Platform, folder: RunFolder) -> None:
    """Copy the model and the results of a finished run to where the platform collects them, and nothing else.

    Raises what the store and the disk raise; the same command then finds the run finished, and only copies.
    """
    if platform.model_folder:
        _copy(folder, _MODEL, platform.model_folder)
    if platform.results_folder:
        for name in _RESULTS:
            _copy(folder, name, platform.results_folder)
    if platform.model_folder or platform.results_folder:
        events.emit("collected", model=str(platform.model_folder), results=str(platform.results_folder))


def _copy(folder: RunFolder, name: str, target_folder: Path) -> None:
    """Copy one object, or everything below a `name` that ends in a slash; the prefix model/ is dropped."""
    for key in [entry.key for entry in folder.store.list(name) if name.endswith("/") or entry.key == name]:
        path = folder.fetch(key)
        if path is None:
            raise BadDataError(
                f"{folder.uri}/{key} was deleted while the results were collected: run the job again under another "
                "--run-id."
            )
        target = target_folder / (key.removeprefix(name) if name == _MODEL else key)
        draft = target.with_name(f".{target.name}.tmp")
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, draft)
            draft.replace(target)
