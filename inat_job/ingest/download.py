"""One archive, local or remote: downloaded at most once, and trusted only with its digest."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from inat_job import signals
from inat_job.errors import BadDataError, NoPermissionError
from inat_job.ingest import archives
from inat_job.signals import Stop
from inat_job.storage import Entry, Store, cache_locks
from inat_job.storage.cache_locks import FolderHold, hold_folder
from inat_job.storage.disk import sha256_of
from inat_job.storage.local import LocalStore
from inat_job.storage.partial_download import PartialDownload


class Download:
    """The archive under a key of a store. `address` names it to people; `identity`, without what changes from one
    signature to the next, is only hashed. Bytes without the `sha256` that is asked for are not kept.

    Its methods raise ConflictError when the cache folder cannot be written, NoPermissionError for a file that cannot
    be read, Preempted, and what the store raises.
    """

    def __init__(
        self,
        store: Store,
        entry: Entry,
        address: str,
        identity: str,
        cache_dir: Path,
        stop: Stop,
        sha256: str | None = None,
    ) -> None:
        self._store, self._entry, self._address, self._sha256 = store, entry, address, sha256
        self._cache_dir, self._stop = cache_dir, stop
        name = hashlib.sha256(identity.encode(errors="backslashreplace")).hexdigest()[:24]
        self._note = cache_dir / "sources" / f"{name}.json"
        self._folder = cache_dir / "downloads" / name
        self._fetched = False
        self._digest: str | None = None
        self._held: FolderHold | None = None
        self.draft = f"{identity} {entry.version} {entry.size}"

    @property
    def lands(self) -> bool:
        """Whether it comes from afar, and is sure to be of one version all the way."""
        return self._entry.version != "" and not isinstance(self._store, LocalStore)

    def known(self) -> str | None:
        """The digest, where nothing is to be fetched or hashed for it."""
        digest = self._digest or self._noted()
        return None if digest is None or self._is_damaged(digest) else digest

    def arriving(self, landing: PartialDownload) -> AbstractContextManager[None]:
        """Fetch it beside the block, which may read what is `landing`."""
        return arriving(landing, lambda stop: self._path(landing=landing, stop=stop), self._stop)

    def holds(self, landing: PartialDownload) -> bool:
        """Whether what was read while it was `landing` is what lies here now."""
        return landing.became(self.place)

    def digest(self) -> str:
        """The SHA-256 of the archive, which is fetched unless this version of it was hashed before.

        What is here and is not what was asked for is fetched anew. Raises BadDataError where it is never that.
        """
        if self._digest is None:
            digest = self._noted() or self._hashed()
            self._digest = self._hashed(anew=True) if self._is_damaged(digest) else digest
        return self._digest

    def open(self) -> archives.Container:
        """The container, hashed once more, since what was fetched for another run may have been damaged.

        Raises BadDataError when it is damaged at its source too, or became another.
        """
        digest = self.digest()
        for again in (False, True):
            path = self._path(again)
            if self._hash(path) == digest:
                return archives.open_archive(path)
        with suppress(OSError):
            self._note.unlink()
        raise BadDataError(f"{self._address} is not what it was, with sha256 {digest}: run the same command again.")

    @property
    def place(self) -> Path:
        """Where the archive lies on this machine, or will."""
        if isinstance(self._store, LocalStore):
            return self._store.root / self._entry.key
        tag = hashlib.sha256(f"{self._entry.version} {self._entry.size}".encode()).hexdigest()[:12]
        return self._folder / f"{tag}-{Path(urlsplit(self._entry.key).path).name}"

    def _path(self, again: bool = False, landing: PartialDownload | None = None, stop: Stop | None = None) -> Path:
        """Where the archive lies on this machine, after fetching it if need be."""
        path = self.place
        if isinstance(self._store, LocalStore):
            return path
        # A server that tells no version may have another file each time.
        anew = again or not (self._entry.version or self._fetched)
        self._fetched = True
        cache_locks.fetch(
            self._store,
            self._entry.key,
            path,
            self._cache_dir,
            stop or self._stop,
            what="pull",
            anew=anew,
            sha256=self._sha256,
            landing=landing,
        )
        self._held = hold_folder(self._folder)
        return path

    def _is_damaged(self, digest: str) -> bool:
        """Whether what is here is to be fetched anew."""
        return self._sha256 is not None and digest != self._sha256 and not isinstance(self._store, LocalStore)

    def _noted(self) -> str | None:
        """The digest found the last time, if the object is still the same."""
        try:
            known = json.loads(self._note.read_text(encoding="utf-8"))
            version, size, digest = known["version"], known["size"], str(known["digest"])
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None
        same = version and (version, size) == (self._entry.version, self._entry.size)
        return digest if same else None

    def _hashed(self, anew: bool = False) -> str:
        digest = self._hash(self._path(anew))
        text = json.dumps({"version": self._entry.version, "size": self._entry.size, "digest": digest})
        with suppress(OSError):  # a note only saves time, and a cache that is complete may be read only
            cache_locks.write(self._note, text.encode())
        return digest

    def _hash(self, path: Path) -> str:
        try:
            return sha256_of(path, lambda: signals.check(self._stop, "hashing the data set"))
        except OSError as error:
            raise NoPermissionError(f"{path} cannot be read ({error.strerror}): check its permissions.") from error


_PATIENCE_S = 2.0
_TICK_S = 0.1


@contextmanager
def arriving(landing: PartialDownload, fetch: Callable[[Stop], object], stop: Stop) -> Iterator[None]:
    """Let `fetch` run beside the block, which reads what of it is `landing`; the end of the block waits for it.

    Raises what `fetch` raises, and Preempted. If the block itself fails, `fetch` is stopped; it may be kept up by a
    silent server, so that it is waited for only a moment.
    """
    halted, errors = threading.Event(), list[BaseException]()

    def work() -> None:
        try:
            fetch(lambda: stop() or halted.is_set())
        except BaseException as error:  # whatever it is, the calling thread is who deals with it
            errors.append(error)
        finally:
            landing.lose()

    thread = threading.Thread(target=work, name="pull", daemon=True)
    thread.start()
    try:
        yield
        while thread.is_alive():
            thread.join(_TICK_S)
            signals.check(stop, "fetching the data set")
        if errors:
            raise errors[0]
    finally:
        halted.set()
        thread.join(_PATIENCE_S)
