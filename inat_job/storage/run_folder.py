"""A run's folder: files are written locally first, then published to the store, which may be the same folder."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inat_job.errors import BadDataError, ConflictError
from inat_job.signals import Stop, never
from inat_job.storage.base import Entry, StorageOptions, Store
from inat_job.storage.disk import parse_json, read_json_object, write_atomic
from inat_job.storage.interruptible import InterruptibleStore
from inat_job.storage.local import LocalStore
from inat_job.storage.open_store import open_store

_MOST_JSON = 2**28
"""Bytes of a JSON file; a report of 10,000 classes has 200 MB, nearly all of it the confusion matrix."""


class RunFolder:
    """`<output>/<run-id>/`, with a local copy of the files that this machine wrote or fetched.

    Requests to a remote `store` are abandoned at `stop`; `background` is the same store without that, for threads that
    end later.
    """

    def __init__(self, store: Store, spool: Path, stop: Stop = never) -> None:
        self.background = store
        self.store: Store = store if isinstance(store, LocalStore) else InterruptibleStore(store, stop)
        self.uri = store.uri
        self.run_id = store.uri.rpartition("/")[2]
        self.remote = not isinstance(store, LocalStore)
        self.local = store.root if isinstance(store, LocalStore) else spool

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
        draft = path.with_name(f".{path.name}.tmp")
        try:
            write_atomic(path, data.encode() if isinstance(data, str) else data, draft, durable=True)
        except OSError as error:
            raise ConflictError(f"{path} cannot be written ({error.strerror}): check --output and its disk.") from error
        return path

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
        """The local files, without drafts of interrupted writes."""
        files = [path for path in sorted(self.local.rglob("*")) if path.is_file() and not path.is_symlink()]
        return [path.relative_to(self.local).as_posix() for path in files if path.suffix != ".tmp"]

    def fetch(self, name: str) -> Path | None:
        """A fresh local copy of a stored file, or None if it is not stored; an older local copy is replaced."""
        path = self.path(name)
        if not self.remote:
            return path if path.exists() else None
        if self.store.stat(name) is None:
            path.unlink(missing_ok=True)
            return None
        self.store.get(name, path)
        return path

    def read_json(self, name: str) -> Any | None:
        """A stored JSON file, or None if it is not stored. Raises BadDataError if it is damaged."""
        entry = self.store.stat(name)
        if entry is None:
            return None
        try:
            if entry.size > _MOST_JSON:
                raise ValueError("it is too large")
            value = parse_json(self.store.read(name))
            if value is None:  # which would read as a file that is not stored
                raise ValueError("it is null")
            return value
        except ValueError:
            raise BadDataError(f"{self.uri}/{name} is damaged: delete it, or choose another run.") from None

    def clear(self, keep: str) -> None:
        """Delete everything in the folder, locally and in the store, except the object `keep`."""
        kept_folder = keep.partition("/")[0]
        # Folders first: config.json, which identifies the checkpoints' run, outlives them.
        for path in sorted(self.local.iterdir(), key=Path.is_file) if self.local.is_dir() else ():
            if path.is_symlink() or not path.is_dir():  # a link is removed, not its target
                path.unlink()
            elif path.name != kept_folder:
                shutil.rmtree(path, ignore_errors=True)
        for entry in list(self.store.list("" if self.remote else f"{kept_folder}/")):
            if entry.key != keep:
                self.store.delete(entry.key)

    def has_local(self, name: str, stored: dict[str, Any], field: str) -> bool:
        """Whether the local copy of a JSON file has the stored file's value in `field`."""
        local = read_json_object(self.path(name))
        return field in local and field in stored and bool(local[field] == stored[field])

    def discard_local(self) -> None:
        """Delete the local copies, left by an earlier run of this name; nothing if the local folder is the store."""
        if self.remote:
            shutil.rmtree(self.local, ignore_errors=True)


def open_run_folder(output: str, run_id: str, options: StorageOptions, spools: Path, stop: Stop = never) -> RunFolder:
    """The folder of a run under the URI `output`, its local copies under `spools`."""
    store = open_store(f"{output.rstrip('/')}/{run_id}", options, role="output")
    return RunFolder(store, spools / hashlib.sha256(store.uri.encode()).hexdigest()[:16] / run_id, stop)
