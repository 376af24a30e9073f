"""A run's folder: files are written here first, then published to the store, which may be the same place."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inat_job.errors import BadDataError, ConflictError
from inat_job.signals import Stop, never
from inat_job.storage.base import Entry, StorageOptions, Store
from inat_job.storage.interruptible import Interruptible
from inat_job.storage.local import LocalStore
from inat_job.storage.open_store import open_store


class RunFolder:
    """`<output>/<run-id>/`, with a local copy of what this machine wrote or fetched.

    Of a store far away, `store` gives up its requests at `stop`; `background` is the same for threads that end later.
    """

    def __init__(self, store: Store, spool: Path, stop: Stop = never) -> None:
        self.background = store
        self.store: Store = store if isinstance(store, LocalStore) else Interruptible(store, stop)
        self.uri = store.uri
        self.run_id = store.uri.rpartition("/")[2]
        self.remote = not isinstance(store, LocalStore)
        self.local = store.root if isinstance(store, LocalStore) else spool

    def path(self, name: str) -> Path:
        """Where the local copy of `name` is, its parent folder made."""
        path = self.local / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConflictError(f"{path.parent} cannot be made ({error.strerror}): change --output.") from error
        return path

    def write(self, name: str, data: str | bytes) -> Path:
        """Write a file whole or not at all."""
        path = self.path(name)
        fresh = path.with_name(f".{path.name}.tmp")
        try:
            with fresh.open("wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        except OSError as error:
            raise ConflictError(f"{path} cannot be written ({error.strerror}): check --output and its disk.") from error
        return path

    def write_json(self, name: str, value: Any) -> Path:
        """Write `value`, indented, ending in a newline."""
        return self.write(name, json.dumps(value, indent=2) + "\n")

    def publish(self, name: str) -> Entry | None:
        """Store the local file under its name; what was stored, or None where local is the store."""
        return self.store.put(name, self.local / name) if self.remote else None

    def publish_all(self, last: str, leave_out: Sequence[str]) -> None:
        """Store every local file, `last` after all others, but those in the folders `leave_out`."""
        names = [name for name in self._names() if name != last and name.partition("/")[0] not in leave_out]
        for name in [*names, last]:
            self.publish(name)

    def publish_folder(self, folder: str) -> None:
        """Store the local files in a folder of the run's."""
        for name in self._names():
            if name.partition("/")[0] == folder:
                self.publish(name)

    def _names(self) -> list[str]:
        """Those of its files, but no drafts of writes that were killed."""
        files = [path for path in sorted(self.local.rglob("*")) if path.is_file() and not path.is_symlink()]
        return [path.relative_to(self.local).as_posix() for path in files if path.suffix != ".tmp"]

    def fetch(self, name: str) -> Path | None:
        """The local copy of a stored file, or None where there is none; a local copy is never believed newer."""
        path = self.path(name)
        if not self.remote:
            return path if path.exists() else None
        if self.store.stat(name) is None:
            path.unlink(missing_ok=True)
            return None
        self.store.get(name, path)
        return path

    def read_json(self, name: str) -> Any | None:
        """A stored JSON file, or None where there is none. Raises BadDataError when it is damaged."""
        if self.store.stat(name) is None:
            return None
        try:
            return json.loads(self.store.read(name))
        except ValueError:
            raise BadDataError(f"{self.uri}/{name} is damaged: delete it, or name another run.") from None

    def clear(self, keep: str) -> None:
        """Delete everything in the folder, here and in the store, but the object `keep`."""
        kept_in = keep.partition("/")[0]
        # Folders first: config.json, which says whose the checkpoints are, outlives them.
        for path in sorted(self.local.iterdir(), key=Path.is_file) if self.local.is_dir() else ():
            if path.is_symlink() or not path.is_dir():  # links, and nothing that they lead to
                path.unlink()
            elif path.name != kept_in:
                shutil.rmtree(path, ignore_errors=True)
        for entry in list(self.store.list("" if self.remote else f"{kept_in}/")):
            if entry.key != keep:
                self.store.delete(entry.key)

    def has_local(self, name: str, stored: dict[str, Any], field: str) -> bool:
        """Whether the local copy of a JSON file agrees with the stored one in a field."""
        try:
            return bool(json.loads(self.path(name).read_bytes())[field] == stored[field])
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def forget(self) -> None:
        """Drop local copies that an earlier run of this name left behind."""
        if self.remote:
            shutil.rmtree(self.local, ignore_errors=True)


def open_run_folder(output: str, run_id: str, options: StorageOptions, spools: Path, stop: Stop = never) -> RunFolder:
    """The folder of a run under `output`, its local copies under `spools`."""
    store = open_store(f"{output.rstrip('/')}/{run_id}", options, role="output")
    return RunFolder(store, spools / hashlib.sha256(store.uri.encode()).hexdigest()[:16] / run_id, stop)
