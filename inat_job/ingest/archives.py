"""Reads image files in place, from a zip or tar, a folder or a prefix; nothing is unpacked to disk."""

from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path

from inat_job.ingest.container import Container, Load, archive_errors, check_size
from inat_job.ingest.decode import Rejected
from inat_job.ingest.tar_file import TarArchive
from inat_job.ingest.zip_file import ZipArchive
from inat_job.storage import Store
from inat_job.storage.partial_download import IncompleteDownloadError, PartialDownload

__all__ = ["Container", "Load", "LooseFiles", "is_archive", "is_zip", "open_archive", "open_incoming"]

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")


def is_archive(name: str) -> bool:
    """Whether a file name is that of a supported archive."""
    return name.lower().endswith(SUFFIXES)


def is_zip(path: Path) -> bool:
    """Whether an archive's file name is that of a zip."""
    return path.name.lower().endswith(".zip")


def open_archive(path: Path) -> ZipArchive | TarArchive:
    """The archive at `path`. Raises BadDataError if it is damaged."""
    with archive_errors(path):
        return ZipArchive(path) if is_zip(path) else TarArchive(path)


def open_incoming(path: Path, incoming: PartialDownload) -> ZipArchive:
    """The zip that is being downloaded to `path`.

    Raises BadDataError if it is damaged, IncompleteDownloadError for a tar, which has no directory.
    """
    if not is_zip(path):
        raise IncompleteDownloadError(f"{path} cannot be read before its download ends: wait for it.")
    with archive_errors(path):
        return ZipArchive(path, incoming)


class LooseFiles:
    """The files of a folder or prefix, each an object of its own; `sizes` maps their names to bytes, `unreadable` the
    names of what is no file, such as a dead link, to the reason.
    """

    def __init__(self, store: Store, sizes: Mapping[str, int], unreadable: Mapping[str, str]) -> None:
        self._store, self._sizes, self._unreadable = store, sizes, unreadable

    def names(self) -> list[str]:
        return [*self._sizes, *self._unreadable]

    def skipped(self) -> Mapping[str, str]:
        return self._unreadable

    def load(self, names: Collection[str]) -> Iterator[tuple[str, Load]]:
        for name in names:
            yield name, partial(self._read, name)

    def _read(self, name: str) -> bytes:
        if name in self._unreadable:
            raise Rejected(self._unreadable[name])
        check_size(self._sizes[name])
        return self._store.read(name)
