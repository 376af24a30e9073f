"""Reads image files where they are: in a zip or tar, a folder or under a prefix. Nothing is unpacked to disk."""

from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path

from inat_job.ingest import limits
from inat_job.ingest.container import Container, Load, damage
from inat_job.ingest.tar_file import Tar
from inat_job.ingest.zip_file import Zip
from inat_job.storage import Store
from inat_job.storage.partial_download import LostError, PartialDownload

__all__ = ["Container", "Load", "Loose", "is_archive", "open_archive", "open_landing"]

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")


def is_archive(name: str) -> bool:
    """Whether a file name is that of an archive."""
    return name.lower().endswith(SUFFIXES)


def is_zip(path: Path) -> bool:
    """Whether an archive's file name is that of a zip."""
    return path.name.lower().endswith(".zip")


def open_archive(path: Path) -> Zip | Tar:
    """The container in a file. Raises BadDataError when it is damaged."""
    with damage(path):
        return Zip(path) if is_zip(path) else Tar(path)


def open_landing(path: Path, landing: PartialDownload) -> Zip:
    """The archive that is on its way to `path`; a tar has no directory, so that its names are known in the end only.

    Raises BadDataError when it is damaged, LostError.
    """
    if not is_zip(path):
        raise LostError(f"{path} is not to be read before it is whole: wait for it.")
    with damage(path):
        return Zip(path, landing)


class Loose:
    """The files of a folder or under a prefix, each an object of its own; `sizes` has its bytes by its name."""

    def __init__(self, store: Store, sizes: Mapping[str, int]) -> None:
        self._store, self._sizes = store, sizes

    def names(self) -> list[str]:
        return list(self._sizes)

    def load(self, names: Collection[str]) -> Iterator[tuple[str, Load]]:
        for name in names:
            yield name, partial(self._read, name)

    def _read(self, name: str) -> bytes:
        limits.check_size(self._sizes[name])
        return self._store.read(name)
