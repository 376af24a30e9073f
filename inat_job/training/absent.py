"""What stands where rank 0 has its uploader, on the ranks that write nothing."""

from inat_job.training.manifest import Manifest
from inat_job.training.state import Write


class Absent:
    """Takes checkpoints as training/uploader.py does, and leaves them to rank 0, which takes the same."""

    def save(self, manifest: Manifest, write: Write, deferred: bool) -> Manifest:
        return manifest

    def amend(self, manifest: Manifest) -> None:
        pass

    def guard(self) -> None:
        pass

    def made(self) -> None:
        pass

    def hurry(self, seconds: float) -> bool:
        return True
