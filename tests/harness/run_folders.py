"""A run's folder as a test opens it: by the output and the run id."""

from pathlib import Path

from inat_job.address import child
from inat_job.storage import StorageOptions
from inat_job.storage.run_folder import RunFolder, open_folder


def open_run_folder(output: str, run_id: str, options: StorageOptions, spools: Path) -> RunFolder:
    """The folder of a run under the URI `output`, its local copies under `spools`."""
    return open_folder(child(output, run_id), options, spools)
