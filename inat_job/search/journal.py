"""Optuna's journal in a store: numbered objects, appended by conditional writes, so that workers need only the bucket.

An object never changes once it exists, and is never deleted. So a worker that was frozen cannot reuse an old number:
it finds the number taken, and reads on from there.
"""

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from inat_job.errors import BadDataError, PreconditionFailed
from inat_job.storage.base import Store
from inat_job.storage.disk import parse_json

FOLDER = "journal"
SEGMENT = 64
"""Objects that are copied into one, a segment, which a worker that starts reads instead of them."""

Log = dict[str, Any]


class StoreJournal(BaseJournalBackend):
    """The journal in the folder `journal/` of a store.

    A worker reads at once what it writes itself, and what others write `stale_s` seconds later at most: Optuna reads
    before and after every operation, and each would be a request. A store without conditional writes, `conditional` is
    false, allows for one worker alone. Raises what the store's verbs raise, and BadDataError for a damaged journal.
    """

    def __init__(
        self,
        store: Store,
        stale_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        conditional: bool = True,
    ) -> None:
        self._store, self._stale_s, self._clock, self._conditional = store, stale_s, clock, conditional
        self._lock = threading.RLock()
        self._objects: list[list[Log]] = []
        self._logs: list[Log] = []
        self._begun, self._read_at = False, -math.inf
        self._held: list[Log] | None = None

    @contextmanager
    def together(self) -> Iterator[None]:
        """Store all that is appended in the block as one object at its end; nobody reads it earlier, here neither."""
        with self._lock:
            self._held = []
            try:
                yield
            finally:
                held, self._held = self._held, None
                if held:
                    self.append_logs(held)

    def read_logs(self, log_number_from: int) -> Sequence[Log]:
        """The logs from a number on."""
        with self._lock:
            self._read_segments()
            if self._held is None and self._clock() - self._read_at >= self._stale_s:
                while self._store.stat(self._next_key()) is not None:
                    self._add(self._read(self._next_key()))
                self._read_at = self._clock()
            return self._logs[log_number_from:]

    def append_logs(self, logs: list[Log]) -> None:
        """Store the logs as the next object, after those that other workers have stored meanwhile."""
        data = json.dumps(logs, separators=(",", ":")).encode()
        with self._lock:
            self._read_segments()
            if self._held is not None:
                self._held += logs
                return
            while True:
                try:
                    self._store.put(self._next_key(), data, if_none_match=self._conditional)
                    break
                except PreconditionFailed:
                    self._add(self._read(self._next_key()))
            self._add(logs)

    def _next_key(self) -> str:
        return f"{FOLDER}/{len(self._objects):08}.json"

    def _add(self, logs: list[Log]) -> None:
        self._objects.append(logs)
        self._logs += logs
        if len(self._objects) % SEGMENT == 0:
            number = len(self._objects) // SEGMENT - 1
            segment = json.dumps(self._objects[-SEGMENT:], separators=(",", ":")).encode()
            with contextlib.suppress(PreconditionFailed):  # another worker has stored the same
                self._store.put(_segment_key(number), segment, if_none_match=self._conditional)

    def _read_segments(self) -> None:
        """Read all segments at the beginning; afterwards there is nothing left that single objects do not have."""
        if self._begun:
            return
        self._begun = True
        while self._store.stat(key := _segment_key(len(self._objects) // SEGMENT)) is not None:
            objects = _lists(self._store, key)
            if len(objects) != SEGMENT:
                raise _damaged(self._store, key, f"it has {len(objects)} entries and not {SEGMENT}")
            self._objects += objects
            self._logs += [log for logs in objects for log in logs]

    def _read(self, key: str) -> list[Log]:
        return _lists(self._store, key, nested=False)[0]


def _segment_key(number: int) -> str:
    return f"{FOLDER}/segments/{number:06}.json"


def _lists(store: Store, key: str, nested: bool = True) -> list[list[Log]]:
    """The lists of logs in an object: many, or one if it is not `nested`."""
    try:
        value = parse_json(store.read(key))
    except ValueError as error:
        raise _damaged(store, key, str(error)) from None
    lists = value if nested else [value]
    if not isinstance(lists, list) or not all(_is_logs(logs) for logs in lists):
        raise _damaged(store, key, "it holds no entries of a journal")
    return lists


def _is_logs(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(log, dict) and "op_code" in log for log in value)


def _damaged(store: Store, key: str, why: str) -> BadDataError:
    return BadDataError(f"{store.uri}/{key} is damaged ({why}): start the sweep again under another --run-id.")
