"""Where runs are: the settings as the stores take them, and the folders that commands read and write."""

from pathlib import Path

from inat_job.host import environment
from inat_job.settings import Settings, StorageSettings
from inat_job.signals import Stop, never
from inat_job.storage import StorageOptions
from inat_job.storage.run_folder import RunFolder, open_run_folder


def storage_options(settings: StorageSettings) -> StorageOptions:
    """The settings as the stores take them."""
    environment.set_region()
    return StorageOptions(
        sse_kms_key_id=settings.sse_kms_key_id, requester_pays=settings.requester_pays, anonymous=settings.anonymous
    )


def run_folder(settings: Settings, run_id: str, stop: Stop = never) -> RunFolder:
    """The folder of a run under `--output`."""
    return folder_of(settings, f"{settings.run.output.rstrip('/')}/{run_id}", stop)


def folder_of(settings: Settings, name: str, stop: Stop = never) -> RunFolder:
    """The folder of an existing run: a run id under `--output`, or a URI. Its requests are given up at `stop`."""
    output, _, run_id = name.rstrip("/").rpartition("/")
    spools = Path(settings.data.cache_dir) / "spool"
    return open_run_folder(output or settings.run.output, run_id, storage_options(settings.storage), spools, stop)
