"""Reads image files in place, from a zip or tar, a folder or a prefix; nothing is unpacked to disk.

An archive's kind is that of its name or, where the name has no suffix, that of its first bytes.
"""

from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path

from inat_job.ingest.container import REPEATED, Container, Load, archive_errors, check_size, composed
from inat_job.ingest.decode import Rejected
from inat_job.ingest.kinds import HEAD_BYTES, is_zip
from inat_job.ingest.tar_file import TarArchive
from inat_job.ingest.zip_file import ZipArchive
from inat_job.signals import Stop, never
from inat_job.storage import Store
from inat_job.storage.local import LINK_UPWARDS
from inat_job.storage.partial_download import IncompleteDownloadError, PartialDownload

__all__ = ["Container", "Load", "LooseFiles", "open_archive", "open_incoming"]


def open_archive(path: Path, shown: str = "", stop: Stop = never) -> ZipArchive | TarArchive:
    """The archive at `path`, which messages call `shown`. Raises BadDataError if it is damaged or none, Preempted."""
    shown = shown or str(path)
    with archive_errors(path):
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        return ZipArchive(path, stop=stop) if is_zip(path.name, head, shown) else TarArchive(path, stop)


def open_incoming(path: Path, incoming: PartialDownload, stop: Stop) -> ZipArchive:
    """The zip that is being downloaded to `path`.

    Raises BadDataError if it is damaged, Preempted, and IncompleteDownloadError for a tar, which has no directory.
    """
    if not is_zip(path.name, incoming.read(0, HEAD_BYTES), str(path)):
        raise IncompleteDownloadError(f"{path} cannot be read before its download ends: wait for it.")
    with archive_errors(path):
        return ZipArchive(path, incoming, stop)


class LooseFiles:
    """The files of a folder or prefix, each an object of its own; `sizes` maps their names to bytes, `unreadable` the
    names of what is no file, such as a dead link, to the reason; a link upwards is skipped.
    """

    def __init__(self, store: Store, sizes: Mapping[str, int], unreadable: Mapping[str, str]) -> None:
        self._store, self._sizes, self._unreadable = store, sizes, unreadable
        self._keys: dict[str, str] = {}
        self._skipped = {composed(key): reason for key, reason in unreadable.items()}
        for key in (*sizes, *(key for key, reason in unreadable.items() if reason != LINK_UPWARDS)):
            if (name := composed(key)) in self._keys:
                self._skipped[name] = REPEATED
            self._keys[name] = key

    def names(self) -> list[str]:
        return [*self._keys]

    def skipped(self, used: Collection[str] = ()) -> Mapping[str, str]:
        return self._skipped

    def load(self, names: Collection[str]) -> Iterator[tuple[str, Load]]:
        for name in names:
            yield name, partial(self._read, name)

    def _read(self, name: str) -> bytes:
        key = self._keys[name]
        if key in self._unreadable:
            raise Rejected(self._unreadable[key])
        check_size(self._sizes[key])
        return self._store.read(key)
