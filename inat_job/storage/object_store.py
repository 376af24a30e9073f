"""A prefix of a Google Cloud Storage bucket or of an Azure Blob Storage container as a store, by the package obstore.

obstore is Rust's object_store. It finds the login itself: environment variables, key files, the role of the machine.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, Unpack

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError
from obstore.store import AzureStore, GCSStore

from inat_job import __version__
from inat_job.errors import BadDataError, JobError, NoPermissionError, PreconditionFailed, UsageError
from inat_job.storage import object_store_errors as errors
from inat_job.storage.azure_ml_login import token_provider
from inat_job.storage.base import (
    Conditions,
    DamagedFileError,
    Entry,
    Role,
    StorageOptions,
    Transfer,
    checked_key,
)
from inat_job.storage.checksums import Checksum, stated_checksum
from inat_job.storage.disk import read_blocks, sha256_of_blocks, size_of_source
from inat_job.storage.partial_download import MIB
from inat_job.storage.ranged_download import BLOCK_SIZE, RangeSource, download, verified
from inat_job.storage.retry import RetryableError, with_retries

SINGLE_REQUEST_LIMIT = 16 * MIB
PART_SIZE = 16 * MIB
_PAGE = 1000
_DRAFT = ".inat-draft-"  # prefix of the names of drafts, which are not objects
_TOKEN_BYTES = 16
_TOKEN = "inat_put"  # noqa: S105 (the name of a metadata field; Azure allows no hyphen)
_TIMEOUTS_S = {"data": (10, 60), "output": (5, 30)}
"""Seconds for a connection and of silence, which includes the sending of a part."""
R = TypeVar("R")


class ObjectStore:
    """The objects of `bucket` under `root` (no slash at either end; may be empty); `scheme` is gs or az.

    A put that has a `confirm`, or more bytes than fit one request, sends a draft beside its object, verifies it and
    copies it to its key within the store, unless `delete_drafts` has deleted it meanwhile.
    """

    def __init__(self, scheme: str, bucket: str, root: str, options: StorageOptions, role: Role) -> None:
        self.root, self._options = root, options
        self.uri = f"{scheme}://{bucket}/{root}".rstrip("/")
        self._base = f"{root}/" if root else ""
        self._bucket = errors.Bucket(scheme, bucket, role == "output")
        self._bucket_exists = False
        _refuse_options_of_s3(scheme, options, role)
        connect_s, silence_s = _TIMEOUTS_S[role]
        try:
            provider = None if scheme == "gs" or options.anonymous else token_provider()
            self._client: Any = (GCSStore if scheme == "gs" else AzureStore)(
                bucket,
                **({"credential_provider": provider} if provider else {}),
                config={"skip_signature": True} if options.anonymous else {},
                client_options={
                    "allow_http": True,  # for an endpoint that the user gives
                    "connect_timeout": timedelta(seconds=connect_s),
                    "read_timeout": timedelta(seconds=silence_s),
                    "timeout": timedelta(hours=1),
                    "user_agent": f"inat-job/{__version__}",
                },
                retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=20)},  # for single parts
            )
        except Exception as error:
            raise errors.bad_setting(error, self._bucket) from error

    def list(self, prefix: str = "", most: int | None = None) -> Iterator[Entry]:
        found = self._retry(lambda: [*islice((each for each in self._listed(prefix) if not _is_draft(each.key)), most)])
        markers = {entry.key for entry in found if entry.size == 0}
        if markers:  # a console's empty object for a folder: obstore drops the slash at its end
            markers &= {str(folder) for entry in found for folder in PurePosixPath(entry.key).parents}
        yield from sorted((each for each in found if each.key not in markers), key=lambda entry: entry.key)

    def _listed(self, prefix: str) -> Iterator[Entry]:
        folder = (self._base + prefix).rpartition("/")[0]  # obstore compares whole names of folders
        with self._translated(self._base + prefix):
            for page in obstore.list(self._client, folder or None, chunk_size=_PAGE):
                for found in page:
                    key = str(found["path"])[len(self._base) :]
                    if key and key.startswith(prefix):
                        yield _entry(key, found)

    def stat(self, key: str) -> Entry | None:
        head = self._retry(lambda: self._head(self._full(key))) if key else None
        return None if head is None else _entry(key, head)

    def _head(self, full: str) -> dict[str, Any] | None:
        with self._translated(full):
            try:
                head: dict[str, Any] = obstore.head(self._client, full)
            except FileNotFoundError:
                self._require_bucket()  # a HEAD does not tell a missing key from a missing bucket
                return None
        return head

    def _require_bucket(self) -> None:
        if not self._bucket_exists:
            with suppress(NoPermissionError), self._translated(self._base):  # a refusal proves that it exists
                next(iter(obstore.list(self._client, self.root or None, chunk_size=1)), None)
            self._bucket_exists = True

    def read(self, key: str) -> bytes:
        full = self._full(key)

        def read() -> tuple[bytes, Checksum | None]:
            with self._translated(full):
                found = obstore.get(self._client, full)
                return bytes(found.bytes()), _checksum(found.meta)

        return self._retry(lambda: verified(read, self._uri_of(full)))

    def read_range(self, entry: Entry, start: int, end: int) -> bytes | None:
        return self._retry(lambda: b"".join(self._blocks(entry, start, end)))

    def get(self, key: str, path: Path, **transfer: Unpack[Transfer]) -> Entry:
        source = RangeSource(self._uri_of(self._full(key)), lambda: self._present(key), self._blocks)
        return download(source, path, self._options, **transfer)

    def _present(self, key: str) -> tuple[Entry, bool, Checksum | None]:
        head = self._retry(lambda: self._head(self._full(key))) if key else None
        if head is None:
            raise BadDataError(f"{self._uri_of(self._full(key))} does not exist: check the address.")
        return _entry(key, head), True, _checksum(head)

    def _blocks(self, entry: Entry, start: int, end: int | None) -> Iterator[bytes]:
        end = entry.size if end is None else end
        if start == end:  # obstore refuses an empty range
            return
        full, options = self._full(entry.key), {"range": (start, end), "if_match": f'"{entry.version}"'}
        with self._translated(full, conditional=True):
            for block in obstore.get(self._client, full, options=options).stream(min_chunk_size=BLOCK_SIZE):
                yield bytes(block)

    def put(self, key: str, source: Path | bytes, **conditions: Unpack[Conditions]) -> Entry:
        upload = _Upload(source, size_of_source(source), conditions)
        full, conditional = self._full(key), upload.is_conditional

        def attempt() -> Entry:
            with self._translated(full, writing=True, conditional=conditional):
                return (self._put_draft if upload.needs_draft else self._put_at_once)(full, key, upload)

        entry = self._retry(attempt)
        upload.show(upload.size)
        return entry

    def _put_at_once(self, full: str, key: str, upload: "_Upload") -> Entry:
        body = upload.body()
        mode = self._mode(full, upload.conditions)
        if confirm := upload.conditions.get("confirm"):
            confirm()
        try:
            obstore.put(self._client, full, body, mode=mode, use_multipart=False, attributes={_TOKEN: upload.token})
        except (AlreadyExistsError, PreconditionError):
            if not upload.made(self._stored(full)):
                raise
        return self._verified(full, key, upload)

    def _mode(self, full: str, conditions: Conditions) -> Any:
        version = conditions.get("if_match")
        if version is None:
            return "create" if conditions.get("if_none_match") else "overwrite"
        head = self._head(full) or {}  # Google's condition is of a generation, which a listing does not tell
        if _version(head) != version:
            raise PreconditionFailed(f"{self._uri_of(full)} is not at the expected version.")
        return {name: head[name] for name in ("e_tag", "version") if head.get(name)}

    def _put_draft(self, full: str, key: str, upload: "_Upload") -> Entry:
        existing = self._stored(full) if upload.conditions.get("if_none_match") else None
        if existing is not None and not upload.made(existing):
            raise PreconditionFailed(f"{self._uri_of(full)} exists already.")
        folder, slash, name = full.rpartition("/")
        draft = f"{folder}{slash}{_DRAFT}{secrets.token_hex(_TOKEN_BYTES)}-{name}"
        sending = {"attributes": {_TOKEN: upload.token}, "max_concurrency": self._options.threads}
        try:
            body, in_parts = (upload.body(), False) if upload.is_small else (upload.blocks(), True)
            obstore.put(self._client, draft, body, use_multipart=in_parts, chunk_size=PART_SIZE, **sending)
            upload.require_unchanged()
            self._publish(draft, full, upload)
        finally:
            with suppress(Exception):
                obstore.delete(self._client, draft)
        return self._retry(lambda: self._arrived(full, key, upload))

    def _publish(self, draft: str, full: str, upload: "_Upload") -> None:
        try:
            self._verified(draft, draft, upload)
            if confirm := upload.conditions.get("confirm"):
                confirm()
            obstore.copy(self._client, draft, full, overwrite=not upload.conditions.get("if_none_match"))
        except AlreadyExistsError:
            if not upload.made(self._stored(full)):
                raise
        except FileNotFoundError as error:
            raise RetryableError(f"The draft of {self._uri_of(full)} was deleted") from error

    def _arrived(self, full: str, key: str, upload: "_Upload") -> Entry:
        """The copied object; Azure may still be copying a large one when it answers."""
        found = self._stored(full)
        if found is None or (upload.made(found) and found.meta["size"] != upload.size):
            raise RetryableError(f"{self._uri_of(full)} is not copied in full")
        return _entry(key, found.meta)

    def _stored(self, full: str) -> Any:
        """An object's metadata, None if it is missing."""
        with suppress(FileNotFoundError):
            return obstore.get(self._client, full, options={"head": True})

    def _verified(self, full: str, key: str, upload: "_Upload") -> Entry:
        """The object's entry once the stored bytes are seen to be those sent: by the ETag if that is their MD5, or else
        by reading them back.
        """
        found = obstore.get(self._client, full)
        if upload.made(found) and not upload.is_intact(found):
            obstore.delete(self._client, full)  # or the condition would refuse the next attempt
            raise RetryableError(f"{self._uri_of(full)} was damaged in transit")
        return _entry(key, found.meta)

    def delete(self, key: str) -> None:
        self._retry(lambda: self._delete(self._full(key)))

    def _delete(self, full: str) -> None:
        with self._translated(full, writing=True), suppress(FileNotFoundError):
            obstore.delete(self._client, full)

    def delete_drafts(self, selected: Callable[[str], bool]) -> None:
        for entry in self._retry(lambda: [each for each in self._listed("") if _is_draft(each.key)]):
            folder, slash, name = entry.key.rpartition("/")
            if selected(f"{folder}{slash}{name[len(_DRAFT) + 2 * _TOKEN_BYTES + 1 :]}"):
                self._retry(lambda key=entry.key: self._delete(self._base + key))  # type: ignore[misc]

    def address(self, key: str) -> str:
        """A signed URL at which anyone can read the object for an hour."""
        return str(obstore.sign(self._client, "GET", self._full(key), timedelta(hours=1)))

    def _retry(self, request: Callable[[], R]) -> R:
        return with_retries(request, self._options.retries, self.uri)

    def _full(self, key: str) -> str:
        return self._base + checked_key(key, self.uri, has_folders=True)

    def _uri_of(self, full: str) -> str:
        return f"{self._bucket.uri}/{full}"

    @contextmanager
    def _translated(self, full: str, *, writing: bool = False, conditional: bool = False) -> Iterator[None]:
        try:
            yield
        except (JobError, PreconditionFailed, MemoryError):
            raise
        except Exception as error:
            raise errors.translate(error, self._bucket, full, writing, conditional) from error


class _Upload:
    """The bytes of one put and its conditions; `token` tells the object of this put from those of others."""

    def __init__(self, source: Path | bytes, size: int, conditions: Conditions) -> None:
        self.source, self.size, self.conditions = source, size, conditions
        self.token = secrets.token_hex(_TOKEN_BYTES)
        self._sha256, self._md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)

    @property
    def is_conditional(self) -> bool:
        return bool(self.conditions.get("if_none_match")) or self.conditions.get("if_match") is not None

    @property
    def is_small(self) -> bool:
        return self.size <= SINGLE_REQUEST_LIMIT

    @property
    def needs_draft(self) -> bool:
        """A draft can't be copied on the condition that its object has a version."""
        late = not self.is_small or self.conditions.get("confirm") is not None
        return late and self.conditions.get("if_match") is None

    def body(self) -> bytes:
        """All bytes. Raises DamagedFileError."""
        body = b"".join(self.blocks())
        self.require_unchanged()
        return body

    def blocks(self) -> Iterator[bytes]:
        """The bytes, hashed on the way."""
        self._sha256, self._md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        done = 0
        for block in [self.source] if isinstance(self.source, bytes) else read_blocks(self.source):
            self._sha256.update(block)
            self._md5.update(block)
            done += len(block)
            yield block
            self.show(min(done, self.size - 1))

    def show(self, done: int) -> None:
        if progress := self.conditions.get("progress"):
            progress(max(done, 0), self.size)

    def require_unchanged(self) -> None:
        """Raise DamagedFileError if what was sent is not what the caller asked for."""
        sha256 = self.conditions.get("sha256")
        if isinstance(self.source, Path) and sha256 and self._sha256.hexdigest() != sha256:
            raise DamagedFileError(self.source)

    def made(self, found: Any) -> bool:
        """Whether the stored object is of this put, perhaps of an attempt whose answer was lost."""
        return found is not None and found.attributes.get(_TOKEN) == self.token

    def is_intact(self, found: Any) -> bool:
        if _version(found.meta) == self._md5.hexdigest():
            return True
        blocks = map(bytes, found.stream(min_chunk_size=MIB))
        return bool(found.meta["size"] == self.size) and sha256_of_blocks(blocks) == self._sha256.hexdigest()


def _is_draft(key: str) -> bool:
    return key.rpartition("/")[2].startswith(_DRAFT)


def _version(meta: dict[str, Any]) -> str:
    return str(meta.get("e_tag") or "").strip('"')  # Azure quotes it in some answers only


def _entry(key: str, meta: dict[str, Any]) -> Entry:
    return Entry(key, int(meta["size"]), _version(meta))


def _checksum(meta: dict[str, Any]) -> Checksum | None:
    return stated_checksum({"etag": _version(meta)})


def _refuse_options_of_s3(scheme: str, options: StorageOptions, role: Role) -> None:
    given = {
        "--requester-pays": options.requester_pays and role == "data",
        "--sse-kms-key-id": options.sse_kms_key_id and role == "output",
    }
    for flag in (flag for flag, is_given in given.items() if is_given):
        raise UsageError(f"{flag} is for s3:// only: leave it out for {scheme}://, where buckets have such settings.")
