"""A run's folder: files are written locally first, then published to the store, which may be the same folder."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inat_job import events
from inat_job.address import child
from inat_job.errors import BadDataError, ConflictError, JobError
from inat_job.signals import Stop, never
from inat_job.storage.base import Entry, StorageOptions, Store
from inat_job.storage.disk import disk_errors, parse_json, read_json_object
from inat_job.storage.fenced import FencedStore
from inat_job.storage.interruptible import InterruptibleStore
from inat_job.storage.lease import LeaseError
from inat_job.storage.local import LocalStore, attempt_folder, draft_of, earlier_attempt_folders, is_object
from inat_job.storage.open_store import open_store

_MOST_JSON = 2**28
"""Bytes of a JSON file; a report of 10,000 classes has 200 MB, nearly all of it the confusion matrix."""


def run_uri(name: str, output: str, *files: str) -> str:
    """The address of the run that a person names: a path or URI, or a run id under `output`.

    A name without a slash is a folder here if one of `files` is in it.
    """
    if "/" in name.rstrip("/") or "://" in name:
        return name
    if name in ("", ".", "..") or any(Path(name, file).exists() for file in files):
        return f"./{name}"
    return child(output, name)


def read_stored_json(store: Store, name: str) -> Any | None:
    """A JSON file in a store, or None if it is not stored. Raises BadDataError if it is damaged."""
    entry = store.stat(name)
    if entry is None:
        return None
    try:
        if entry.size > _MOST_JSON:
            raise ValueError("it is too large")
        value = parse_json(store.read(name))
        if value is None:  # which would read as a file that is not stored
            raise ValueError("it is null")
        return value
    except ValueError:
        raise BadDataError(f"{store.uri}/{name} is damaged: delete it, or choose another run.") from None


class RunFolder:
    """`<output>/<run-id>/`, with a local copy of the files that this machine wrote or fetched.

    Requests to a remote `store` are abandoned at `stop`; `background` is the same store without that, for threads that
    end later. The local copies of each attempt are in a folder of its own, `spool`/<number>, which the next attempt on
    this machine renames to its own number: an earlier attempt that goes on no longer finds it.
    """

    def __init__(self, store: Store, spool: Path, stop: Stop = never) -> None:
        self.background = store
        self.remote = not isinstance(store, LocalStore)
        self.store: Store = InterruptibleStore(store, stop) if self.remote else store
        self.uri = store.uri
        self.run_id = store.uri.rpartition("/")[2]
        self._spool, self._stop = spool, stop
        self._confirm: Callable[[], None] = lambda: None
        self._attempt = 0
        self.local = store.root if isinstance(store, LocalStore) else spool / str(max(self._spooled(), default=0))

    def fence(self, attempt: int, confirm: Callable[[], None]) -> None:
        """Have `confirm` called before each change from now on, and take over the local copies of earlier attempts.

        `confirm` raises LeaseError unless `attempt` holds the run.
        """
        self._confirm, self._attempt = confirm, attempt
        self.background = FencedStore(self.background, confirm)
        self.store = InterruptibleStore(self.background, self._stop) if self.remote else self.background
        if self.remote:
            with disk_errors(self._spool):
                self._take_over_spool(attempt)
        for folder in earlier_attempt_folders(self.local, attempt):
            self._join(folder)

    def _take_over_spool(self, attempt: int) -> None:
        own, found = self._spool / str(attempt), self._spooled()
        if found and max(found) != attempt:
            shutil.rmtree(own, ignore_errors=True)
            (self._spool / str(max(found))).rename(own)
        for number in found:
            if number not in (attempt, max(found)):
                shutil.rmtree(self._spool / str(number), ignore_errors=True)
        for draft in own.rglob("*.tmp"):
            shutil.rmtree(draft) if draft.is_dir() else draft.unlink(missing_ok=True)
        self.local = own

    @property
    def attempt_folder(self) -> Path:
        """Where this attempt writes, in folders named as in the run, what another process writes and no fence holds."""
        return attempt_folder(self.local, self._attempt)

    def join_attempt(self) -> None:
        """Put what is in `attempt_folder` in its place, unless another job has taken the run over."""
        self._join(self.attempt_folder)

    def _join(self, attempt: Path) -> None:
        """Copies, since an attempt that goes on may still have the files open."""
        try:
            for folder in sorted(attempt.iterdir()) if attempt.is_dir() else ():
                new = [path for path in folder.iterdir() if not (self.local / folder.name / path.name).exists()]
                if new:
                    with self.drafts(folder.name) as drafts:
                        for path in new:
                            shutil.copytree(path, drafts / path.name, ignore=_links)
        except LeaseError:
            pass
        except (JobError, OSError) as error:
            events.warn(f"The files in {attempt} stay there: {error}")
            return
        shutil.rmtree(attempt, ignore_errors=True)

    def _spooled(self) -> list[int]:
        return [int(path.name) for path in self._spool.glob("*") if path.name.isdecimal()]

    def path(self, name: str) -> Path:
        """The path of the local copy of `name`, whose parent folder is created. Raises ConflictError."""
        path = self.local / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConflictError(f"{path.parent} cannot be created ({error.strerror}): change --output.") from error
        return path

    def write(self, name: str, data: str | bytes) -> Path:
        """Write a local file atomically and durably. Raises ConflictError."""
        path = self.path(name)
        with self.drafts(path.parent.relative_to(self.local).as_posix()) as folder:
            draft = folder / path.name
            with draft.open("wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
        return path

    @contextmanager
    def drafts(self, name: str) -> Iterator[Path]:
        """A folder to write local files to, each of which takes its place in the folder `name` after the block.

        Raises ConflictError where that is not possible, and LeaseError if another job has taken the run over, which
        has then deleted the drafts. Local copies are in a folder of the attempt's own, and need no store to be asked,
        which may hang while a checkpoint must be saved.
        """
        target = self.path(f"{name}/file").parent
        folder = draft_of(target / "files")
        try:
            folder.mkdir()
            try:
                yield folder
                self._confirm_local()
                for draft in sorted(folder.iterdir()):
                    draft.replace(target / draft.name)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        except OSError as error:
            self._confirm()
            raise ConflictError(
                f"{target} cannot be written ({error.strerror}): check --output and its disk."
            ) from error

    def write_json(self, name: str, value: Any) -> Path:
        """Write `value` as indented JSON with a final newline."""
        return self.write(name, json.dumps(value, indent=2) + "\n")

    def publish(self, name: str) -> Entry | None:
        """Store the local file under its name; returns its entry, or None if the local folder is the store."""
        return self.store.put(name, self.local / name) if self.remote else None

    def publish_all(self, last: str, leave_out: Sequence[str]) -> None:
        """Store every local file except those in the folders `leave_out`, with `last` after all others."""
        names = [name for name in self._names() if name != last and name.partition("/")[0] not in leave_out]
        for name in [*names, last]:
            self.publish(name)

    def publish_folder(self, folder: str) -> None:
        """Store the local files of one folder of the run."""
        for name in self._names():
            if name.partition("/")[0] == folder:
                self.publish(name)

    def _names(self) -> list[str]:
        """The local files, without drafts of interrupted writes and those of an attempt alone."""
        files = [path for path in sorted(self.local.rglob("*")) if path.is_file() and not path.is_symlink()]
        names = [path.relative_to(self.local) for path in files]
        return [name.as_posix() for name in names if all(map(_is_kept, name.parts))]

    def fetch(self, name: str) -> Path | None:
        """A fresh local copy of a stored file, or None if it is not stored; an older local copy is replaced."""
        path = self.path(name)
        if not self.remote:
            return path if path.is_file() else None
        if self.store.stat(name) is None:
            path.unlink(missing_ok=True)
            return None
        self.store.get(name, path)
        return path

    def read_json(self, name: str) -> Any | None:
        """A stored JSON file, or None if it is not stored. Raises BadDataError if it is damaged."""
        return read_stored_json(self.store, name)

    def clear(self, keep: str, emptied: str) -> None:
        """Delete everything in the folder, locally and in the store, except the object `keep`.

        In a remote store the JSON file `emptied` is overwritten: a frozen job that goes on can still finish one
        deletion, but not a write, so that file of the next run is safe.
        """
        kept_folder = keep.partition("/")[0]
        # Folders first: config.json, which identifies the checkpoints' run, outlives them.
        for path in sorted(self.local.iterdir(), key=Path.is_file) if self.local.is_dir() else ():
            if path.name != kept_folder:
                self._discard(path)
        for entry in list(self.store.list("" if self.remote else f"{kept_folder}/")):
            if entry.key == emptied:
                self.store.put(emptied, b"{}\n")
            elif entry.key != keep:
                self.store.delete(entry.key)

    def _confirm_local(self) -> None:
        """Confirm the lease before local files change; copies of a remote run are in a folder of the attempt's own."""
        if not self.remote:
            self._confirm()

    def _discard(self, path: Path) -> None:
        """Delete a file, a link or a folder by way of a draft, which the next holder deletes.

        So a job that was frozen before the move finds nowhere to move the next run's file to.
        """
        draft = draft_of(path)
        try:
            draft.mkdir()
            self._confirm_local()
            path.rename(draft / path.name)
        except OSError as error:
            self._confirm()
            raise ConflictError(f"{path} cannot be deleted ({error.strerror}): check --output.") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def discard(self, name: str) -> None:
        """Delete a local file or folder of the run, if it is there. Raises ConflictError and LeaseError."""
        if (self.local / name).exists():
            self._discard(self.local / name)

    def has_local(self, name: str, stored: dict[str, Any], field: str) -> bool:
        """Whether the local copy of a JSON file has the stored file's value in `field`."""
        local = read_json_object(self.path(name))
        return field in local and field in stored and bool(local[field] == stored[field])

    def discard_local(self) -> None:
        """Delete the local copies, left by an earlier run of this name; nothing if the local folder is the store."""
        if self.remote:
            shutil.rmtree(self.local, ignore_errors=True)


def _links(folder: str, names: list[str]) -> list[str]:
    """Of a log that processes share, such as wandb's."""
    return [name for name in names if (Path(folder) / name).is_symlink()]


def _is_kept(part: str) -> bool:
    return is_object(part) and not part.endswith(".tmp")


def open_folder(uri: str, options: StorageOptions, spools: Path, stop: Stop = never) -> RunFolder:
    """The run folder at a path or URI, its local copies under `spools`. Raises UsageError for an invalid address."""
    store = open_store(uri, options, role="output")
    spool = spools / hashlib.sha256(store.uri.encode()).hexdigest()[:16] / store.uri.rpartition("/")[2]
    return RunFolder(store, spool, stop)
