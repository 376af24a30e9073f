"""Reads image files in place, from a zip or tar, a folder or a prefix; nothing is unpacked to disk.

An archive's kind is that of its name or, where the name has no suffix, that of its first bytes.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path

from inat_job.errors import BadDataError
from inat_job.ingest.container import REPEATED, Container, Load, archive_errors, check_size, composed
from inat_job.ingest.decode import Rejected, kind_of
from inat_job.ingest.tar_file import TarArchive, is_tar
from inat_job.ingest.zip_file import ZipArchive
from inat_job.signals import Stop, never
from inat_job.storage import Store
from inat_job.storage.partial_download import IncompleteDownloadError, PartialDownload

__all__ = ["Container", "Load", "LooseFiles", "is_archive", "is_zip", "open_archive", "open_incoming", "refuse_page"]

HEAD_BYTES = 512
"""First bytes of an archive that tell its kind: a tar's first header."""


SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")


def is_archive(name: str) -> bool:
    """Whether a file name is that of a supported archive."""
    return name.lower().endswith(SUFFIXES)


def is_zip(name: str, start: Callable[[], bytes], shown: str) -> bool:
    """Whether an archive is a zip, by its name or else by its `start`, the first HEAD_BYTES.

    Raises BadDataError for a start that is neither a zip's nor a tar's.
    """
    if is_archive(name):
        return name.lower().endswith(".zip")
    head = start()
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return True
    if not is_tar(head):
        refuse_page(head, shown)
        kind = kind_of(head) or "no archive"
        raise BadDataError(f"{shown} is {kind} by its content: use an archive of the kind {', '.join(SUFFIXES)}.")
    return False


def refuse_page(head: bytes, shown: str) -> None:
    """Raise BadDataError for the first bytes of an HTML page."""
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html|head|body|script)\b", head, re.IGNORECASE):
        raise BadDataError(
            f"{shown} is an HTML page, not an archive: open the address in a browser to see why (a login, a warning, a "
            "folder), and give the address of the file itself. For a large file on Google Drive that is "
            "https://drive.usercontent.google.com/download?id=ID&confirm=t."
        )


def open_archive(path: Path, shown: str = "", stop: Stop = never) -> ZipArchive | TarArchive:
    """The archive at `path`, which messages call `shown`. Raises BadDataError if it is damaged or none, Preempted."""
    shown = shown or str(path)
    with archive_errors(path):
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        refuse_page(head, shown)
        return ZipArchive(path, stop=stop) if is_zip(path.name, lambda: head, shown) else TarArchive(path, stop)


def open_incoming(path: Path, incoming: PartialDownload, stop: Stop) -> ZipArchive:
    """The zip that is being downloaded to `path`.

    Raises BadDataError if it is damaged, Preempted, and IncompleteDownloadError for a tar, which has no directory.
    """
    if not is_zip(path.name, lambda: incoming.read(0, HEAD_BYTES), str(path)):
        raise IncompleteDownloadError(f"{path} cannot be read before its download ends: wait for it.")
    with archive_errors(path):
        return ZipArchive(path, incoming, stop)


class LooseFiles:
    """The files of a folder or prefix, each an object of its own; `sizes` maps their names to bytes, `unreadable` the
    names of what is no file, such as a dead link, to the reason.
    """

    def __init__(self, store: Store, sizes: Mapping[str, int], unreadable: Mapping[str, str]) -> None:
        self._store, self._sizes, self._unreadable = store, sizes, unreadable
        self._keys: dict[str, str] = {}
        self._skipped = {composed(key): reason for key, reason in unreadable.items()}
        for key in (*sizes, *unreadable):
            if (name := composed(key)) in self._keys:
                self._skipped[name] = REPEATED
            self._keys[name] = key

    def names(self) -> list[str]:
        return [*self._keys]

    def skipped(self) -> Mapping[str, str]:
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
