"""A local folder as a store, for development, tests and mounted volumes; as strict as the remote stores."""

import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Unpack

from inat_job.errors import BadDataError, PreconditionFailed, TransientError
from inat_job.events import Progress
from inat_job.storage.base import Conditions, DamagedFileError, Entry, StorageOptions, Store, Transfer, checked_key
from inat_job.storage.disk import disk_errors, sync_folder
from inat_job.storage.ranged_download import BLOCK_SIZE, RangeSource, download

_PRIVATE = ".inat-"  # prefix of the store's own temporary and lock files, which are not objects
_DRAFT = ".tmp"
_ATTEMPT = f"{_PRIVATE}attempt-"
_TOKEN_BYTES = 8
_NAME_CHARACTERS = 50

DEAD_LINK = "a dead link"
SPECIAL = "neither a file nor a folder"
LINK_UPWARDS = "a link to a folder that it is in"


class LocalStore:
    """The files under `root`, which may not exist yet."""

    def __init__(self, root: Path, options: StorageOptions) -> None:
        self.root = root
        self.uri = str(root)
        self._options = options

    def list(self, prefix: str = "", most: int | None = None) -> Iterator[Entry]:
        start = self.root / prefix.rpartition("/")[0]
        with disk_errors(start):
            keys = sorted(key for key in self._keys(start) if key.startswith(prefix))
        for key in keys[:most]:
            entry = self.stat(key)
            if entry is not None:  # None if deleted since
                yield entry

    def unreadable(self) -> dict[str, str]:
        """Keys that cannot be read (dead links, links to a folder above, pipes), with the reason."""
        upwards = set[str]()
        with disk_errors(self.root):
            keys = [key for key in self._keys(self.root, upwards) if not self._path(key).is_file()]
            found = {key: DEAD_LINK if self._path(key).is_symlink() else SPECIAL for key in keys}
        return dict(sorted((found | dict.fromkeys(upwards, LINK_UPWARDS)).items()))

    def _keys(self, start: Path, upwards: set[str] | None = None) -> Iterator[str]:
        """Keys of the files under `start`; follows linked folders, except to a folder that they are in: those are
        added to `upwards`.
        """
        above: dict[str, tuple[str, ...]] = {}  # by folder, the real paths of it and of the folders above
        for folder, folders, names in os.walk(start, followlinks=True, onerror=_raise_unless_missing):
            real, parents = os.path.realpath(folder), above.get(os.path.dirname(folder), ())  # noqa: PTH120
            above[folder] = (*parents, real)
            if real in parents:
                folders.clear()
                if upwards is not None:
                    upwards.add(Path(folder).relative_to(self.root).as_posix())
                continue
            folders[:] = sorted(filter(is_object, folders))
            yield from ((Path(folder) / name).relative_to(self.root).as_posix() for name in names if is_object(name))

    def stat(self, key: str) -> Entry | None:
        if not key:
            return None
        path = self._path(key)
        with disk_errors(path):
            try:
                return _entry(key, path.stat()) if path.is_file() else None
            except FileNotFoundError:
                return None

    def read(self, key: str) -> bytes:
        path = self._path(key)
        with disk_errors(path, missing=_missing(path)):
            return path.read_bytes()

    def read_range(self, entry: Entry, start: int, end: int) -> bytes | None:
        return b"".join(self._blocks(entry, start, end))

    def get(self, key: str, path: Path, **transfer: Unpack[Transfer]) -> Entry:
        source = RangeSource(str(self._path(key)), lambda: (self._present(key), True, None), self._blocks)
        return download(source, path, self._options, **transfer)

    def put(self, key: str, source: Path | bytes, **conditions: Unpack[Conditions]) -> Entry:
        path = self._path(key)
        draft = draft_of(path)
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                size = _write(draft, source, conditions.get("sha256"), conditions.get("progress"))
                if confirm := conditions.get("confirm"):
                    confirm()
                entry = self._publish(key, draft, conditions.get("if_none_match", False), conditions.get("if_match"))
            finally:
                draft.unlink(missing_ok=True)
            sync_folder(path.parent)
        if entry.size != size:
            raise TransientError(
                f"{path} holds {entry.size} bytes, not the {size} written: check the disk, and try again."
            )
        return entry

    def delete(self, key: str) -> None:
        path = self._path(key)
        with disk_errors(path):
            path.unlink(missing_ok=True)

    def delete_drafts(self, selected: Callable[[str], bool]) -> None:
        with disk_errors(self.root):
            for draft in [*self.root.rglob(f"{_PRIVATE}*{_DRAFT}")]:
                name = draft.name[len(_PRIVATE) + 2 * _TOKEN_BYTES + 1 : -len(_DRAFT)]
                if selected(draft.relative_to(self.root).with_name(name or "unnamed").as_posix()):
                    shutil.rmtree(draft) if draft.is_dir() else draft.unlink(missing_ok=True)

    def _publish(self, key: str, draft: Path, if_none_match: bool, if_match: str | None) -> Entry:
        path = self._path(key)
        if if_none_match:
            entry = _entry(key, draft.stat())
            _link(draft, path)
            return entry
        # A writer with if_match must be alone between its check and its rename; plain writers need not wait.
        with _locked(path.parent) if if_match is not None else nullcontext():
            current = self.stat(key)
            if if_match is not None and (current is None or current.version != if_match):
                raise PreconditionFailed(f"{path} is no longer at version {if_match}.")
            _make_newer(draft, path)
            entry = _entry(key, draft.stat())
            draft.replace(path)
        return entry

    def _present(self, key: str) -> Entry:
        entry = self.stat(key)
        if entry is None:
            raise BadDataError(_missing(self._path(key)))
        return entry

    def _blocks(self, entry: Entry, start: int, end: int | None) -> Iterator[bytes]:
        path = self._path(entry.key)
        with disk_errors(path, missing=_missing(path)), path.open("rb") as file:
            if _entry(entry.key, os.fstat(file.fileno())) != entry:
                raise PreconditionFailed(f"{path} changed.")
            file.seek(start)
            left = entry.size - start if end is None else end - start
            while left > 0 and (block := file.read(min(left, BLOCK_SIZE))):
                left -= len(block)
                yield block

    def _path(self, key: str) -> Path:
        return self.root / checked_key(key, self.uri, has_folders=True)


def attempt_folder(root: Path, attempt: int) -> Path:
    """The folder under `root` for the files that only this attempt at a run writes; they are no objects."""
    return root / f"{_ATTEMPT}{attempt}"


def earlier_attempt_folders(root: Path, attempt: int) -> list[Path]:
    """Such folders of earlier attempts, in their order."""
    found = {path.name[len(_ATTEMPT) :]: path for path in root.glob(f"{_ATTEMPT}*")}
    return [found[name] for name in sorted(filter(str.isdecimal, found), key=int) if int(name) < attempt]


def draft_of(path: Path) -> Path:
    """A new name beside `path` for a file or a folder whose contents are to take that path's place.

    It is no object, and holds the start of that path's name for `delete_drafts`.
    """
    return path.with_name(f"{_PRIVATE}{secrets.token_hex(_TOKEN_BYTES)}-{path.name[:_NAME_CHARACTERS]}{_DRAFT}")


def _entry(key: str, stat: os.stat_result) -> Entry:
    return Entry(key, stat.st_size, f"{stat.st_size}-{stat.st_mtime_ns}")


def _missing(path: Path) -> str:
    return f"{path} does not exist or is not a file: check the path."


def missing_object(store: Store, key: str, shown: str, what: str) -> BadDataError:
    """The error for an address without an object: `shown` is the address, and `what` is to be checked."""
    path = store.root / key if isinstance(store, LocalStore) else None
    if path is not None and path.is_dir():
        return BadDataError(f"{shown} is a folder, not a file: check {what}.")
    if path is not None and path.exists():
        return BadDataError(f"{shown} is {SPECIAL}: check {what}.")
    return BadDataError(f"{shown} does not exist: check {what}.")


def is_object(name: str) -> bool:
    """Whether a file or folder name is an object's, not that of a draft or lock file of the store."""
    return not name.startswith(_PRIVATE)


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _write(draft: Path, source: Path | bytes, sha256: str | None, progress: Progress | None) -> int:
    """Write `source` to the new file `draft`, durably; returns the number of bytes. Raises DamagedFileError."""
    done, digest = 0, hashlib.sha256()
    with draft.open("xb") as out:
        for block, total in _source_blocks(source):
            out.write(block)
            if sha256:
                digest.update(block)
            done += len(block)
            if progress is not None:
                progress(done, max(done, total))
        if isinstance(source, Path) and sha256 and digest.hexdigest() != sha256:
            raise DamagedFileError(source)
        out.flush()
        os.fsync(out.fileno())
    return done


def _source_blocks(source: Path | bytes) -> Iterator[tuple[bytes, int]]:
    """Blocks of `source`, each with the total size; errors of the source name the source, not the target."""
    if isinstance(source, bytes):
        yield source, len(source)
        return
    with disk_errors(source, missing=_missing(source)), source.open("rb") as file:
        total = os.fstat(file.fileno()).st_size
        while block := file.read(BLOCK_SIZE):
            yield block, total


def _link(draft: Path, path: Path) -> None:
    """Give `draft` the name `path` unless that exists; of several at once exactly one succeeds."""
    try:
        try:
            os.link(draft, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            path.open("xb").close()
            draft.replace(path)
    except FileExistsError as error:
        raise PreconditionFailed(f"{path} exists already.") from error


def _make_newer(draft: Path, path: Path) -> None:
    """Make `draft` newer than `path`: clocks tick in milliseconds, and two quick writes must differ in version."""
    try:
        old = path.stat().st_mtime_ns
    except FileNotFoundError:
        return
    if draft.stat().st_mtime_ns <= old:
        os.utime(draft, ns=(old + 1, old + 1))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / f"{_PRIVATE}lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
