"""One archive, here or far away: fetched at most once, and believed only with its digest."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from inat_job import signals
from inat_job.data import archives, locks
from inat_job.errors import BadDataError, NoPermissionError
from inat_job.signals import Stop
from inat_job.storage import Entry, Store
from inat_job.storage.hashing import sha256_of
from inat_job.storage.local import LocalStore


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

    def digest(self) -> str:
        """The SHA-256 of the archive, which is fetched unless this version of it was hashed before.

        What is here and is not what was asked for is fetched anew. Raises BadDataError where it is never that.
        """
        digest = self._noted() or self._hashed()
        damaged = self._sha256 is not None and digest != self._sha256 and not isinstance(self._store, LocalStore)
        return self._hashed(anew=True) if damaged else digest

    def open(self, digest: str) -> archives.Container:
        """The container, hashed once more, since what was fetched for another run may have been damaged.

        Raises BadDataError when it is damaged at its source too, or became another.
        """
        for again in (False, True):
            path = self._path(again)
            if self._hash(path) == digest:
                return archives.open_archive(path)
        with suppress(OSError):
            self._note.unlink()
        raise BadDataError(f"{self._address} is not what it was, with sha256 {digest}: run the same command again.")

    def _path(self, again: bool = False) -> Path:
        """Where the archive lies on this machine, after fetching it if need be."""
        if isinstance(self._store, LocalStore):
            return self._store.root / self._entry.key
        key, version = self._entry.key, self._entry.version
        tag = hashlib.sha256(f"{version} {self._entry.size}".encode()).hexdigest()[:12]
        path = self._folder / f"{tag}-{Path(urlsplit(key).path).name}"
        # A server that tells no version may have another file each time.
        anew = again or not (version or self._fetched)
        self._fetched = True
        return locks.fetch(
            self._store, key, path, self._cache_dir, self._stop, what="pull", anew=anew, sha256=self._sha256
        )

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
            locks.write(self._note, text.encode())
        return digest

    def _hash(self, path: Path) -> str:
        try:
            return sha256_of(path, lambda: signals.check(self._stop, "hashing the data set"))
        except OSError as error:
            raise NoPermissionError(f"{path} cannot be read ({error.strerror}): check its permissions.") from error
