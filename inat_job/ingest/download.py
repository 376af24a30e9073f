"""One archive, local or remote: downloaded at most once, and trusted only with its digest."""

import hashlib
import json
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from inat_job import signals
from inat_job.address import in_bucket
from inat_job.errors import BadDataError, NoPermissionError
from inat_job.ingest import archives
from inat_job.signals import Stop
from inat_job.storage import Entry, Store, cache_locks
from inat_job.storage.cache_locks import FolderHold, hold_folder
from inat_job.storage.disk import read_json_object, remove_link, sha256_of, write_atomic
from inat_job.storage.local import LocalStore
from inat_job.storage.partial_download import PartialDownload
from inat_job.storage.threads import start_daemon

_JOIN_S = 2.0
_TICK_S = 0.1


class Download:
    """The archive under a key of a store.

    `address` names it in messages; `name`, which does not change from one signature to the next, is only hashed. A
    download without the expected `sha256` is not kept. The methods raise ConflictError if the cache folder cannot be
    written, NoPermissionError for a file that cannot be read, Preempted, and what the store raises.
    """

    def __init__(
        self, store: Store, entry: Entry, address: str, name: str, cache_dir: Path, stop: Stop, sha256: str | None
    ) -> None:
        self._store, self._entry, self._address, self._sha256 = store, entry, address, sha256
        self._cache_dir, self._stop = cache_dir, stop
        tag = hashlib.sha256(name.encode(errors="backslashreplace")).hexdigest()[:24]
        self._note = cache_dir / "sources" / f"{tag}.json"
        self._folder = cache_dir / "downloads" / tag
        self._is_local = isinstance(store, LocalStore)
        self._fetched = False
        self._digest: str | None = None
        self._held: FolderHold | None = None
        self.draft_key = f"{name} {entry.version} {entry.size}"

    @property
    def is_streamable(self) -> bool:
        """Whether it is remote, and all of its bytes are certain to be of one version."""
        return self._entry.version != "" and not self._is_local

    @property
    def path(self) -> Path:
        """Where the archive is, or will be downloaded to."""
        if isinstance(self._store, LocalStore):
            return self._store.root / self._entry.key
        tag = hashlib.sha256(f"{self._entry.version} {self._entry.size}".encode()).hexdigest()[:12]
        key = self._entry.key  # a web server's may have a query; in a bucket ? and # are signs as others
        key = key if in_bucket(self._store.uri) else urlsplit(key).path
        return self._folder / f"{tag}-{Path(key).name}"

    def known_digest(self) -> str | None:
        """The SHA-256 if it is known without downloading or hashing, or None."""
        digest = self._digest or self._noted_digest()
        return None if digest is None or self._is_wrong(digest) else digest

    @contextmanager
    def in_background(self, incoming: PartialDownload) -> Iterator[None]:
        """Download it during the block, which may read `incoming`; the end of the block waits for it.

        If the block itself fails, the download is stopped, and waited for only briefly, because a silent server may
        block it.
        """
        halted = threading.Event()

        def work() -> None:
            try:
                self._downloaded(incoming=incoming, stop=lambda: self._stop() or halted.is_set())
            finally:
                incoming.fail()

        future = start_daemon(work, "pull")
        try:
            yield
            while not futures.wait([future], _TICK_S).done:
                signals.check(self._stop, "downloading the data set")
            future.result()
        finally:
            halted.set()
            futures.wait([future], _JOIN_S)

    def digest(self) -> str:
        """The SHA-256 of the archive, which is downloaded unless this version was hashed before.

        A file without the expected SHA-256 is downloaded again. Raises BadDataError if it never has it.
        """
        if self._digest is None:
            digest = self._noted_digest() or self._hash(self._downloaded())
            self._digest = self._hash(self._downloaded(refresh=True)) if self._is_wrong(digest) else digest
        return self._digest

    def note(self) -> None:
        """Note the digest for later runs: all images were read, and the archive has no damage."""
        text = json.dumps({"version": self._entry.version, "size": self._entry.size, "digest": self.digest()})
        with suppress(OSError):  # the note only saves time, and a complete cache may be read only
            write_atomic(self._note, text.encode())

    def renew(self) -> bool:
        """Download a damaged archive again; returns whether it has come with other bytes."""
        if self._is_local:
            return False
        before = self.digest()
        self._digest = self._hash(self._downloaded(refresh=True))
        return self._digest != before

    def open(self) -> archives.Container:
        """The container, after hashing the file again, since an earlier run's download may be damaged by now.

        Raises BadDataError if the archive is damaged at its source too, or has changed.
        """
        digest = self.digest()
        for refresh in (False, True):
            path = self._downloaded(refresh)
            if self._hash(path) == digest:
                return archives.open_archive(path, self._address, self._stop)
        with suppress(OSError):
            self._note.unlink()
        raise BadDataError(f"{self._address} no longer has the sha256 {digest}: run the same command again.")

    def _downloaded(
        self, refresh: bool = False, incoming: PartialDownload | None = None, stop: Stop | None = None
    ) -> Path:
        """The path of the archive, after downloading it if necessary."""
        path = self.path
        if self._is_local:
            return path
        # A server that reports no version may have another file each time.
        refresh = refresh or not (self._entry.version or self._fetched)
        self._fetched = True
        with cache_locks.cache_errors(self._cache_dir):
            remove_link(self._folder)
        cache_locks.fetch(
            self._store,
            self._entry.key,
            path,
            self._cache_dir,
            stop or self._stop,
            what="pull",
            refresh=refresh,
            sha256=self._sha256,
            incoming=incoming,
        )
        self._held = hold_folder(self._folder)
        return path

    def _is_wrong(self, digest: str) -> bool:
        """Whether the file must be downloaded again."""
        return self._sha256 is not None and digest != self._sha256 and not self._is_local

    def _noted_digest(self) -> str | None:
        """The digest found by an earlier run, if the object has not changed since."""
        note = read_json_object(self._note)
        same = note.get("version") and (note["version"], note.get("size")) == (self._entry.version, self._entry.size)
        return str(note["digest"]) if same and "digest" in note else None

    def _hash(self, path: Path) -> str:
        try:
            return sha256_of(path, lambda: signals.check(self._stop, "hashing the data set"))
        except OSError as error:
            raise NoPermissionError(f"{path} cannot be read ({error.strerror}): check its permissions.") from error
