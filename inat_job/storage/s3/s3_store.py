"""A prefix of a bucket as a store, on Amazon S3 or an S3-compatible server."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, Unpack
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.loaders import create_loader

from inat_job.address import host_of
from inat_job.errors import BadDataError, ConflictError, JobError, NoPermissionError, PreconditionFailed
from inat_job.storage.base import Conditions, Entry, Role, StorageOptions, Transfer, checked_key
from inat_job.storage.checksums import Checksum, parts_of, stated_checksum
from inat_job.storage.ranged_download import BLOCK_SIZE, RangeSource, download, require_range, verified
from inat_job.storage.retry import RetryableError, with_retries
from inat_job.storage.s3 import multipart_upload, s3_errors
from inat_job.storage.s3.multipart_upload import Upload, size_of, version_of

LIST_PAGE = 1000  # S3's maximum
MOST_OBJECTS = 5_000_000
MOST_EMPTY_PAGES = 1000
"""Pages in a row without an object: some servers send a few where many objects were deleted."""
R = TypeVar("R")

_TIMEOUTS_S = {"data": (10, 30), "output": (5, 20)}
"""Seconds for a connection and for an answer; shorter for output, because a preempted job has little time left."""


class S3Store:
    """The objects of `bucket` under `root` (no slash at either end; may be empty)."""

    def __init__(self, bucket: str, root: str, options: StorageOptions, role: Role) -> None:
        self.bucket, self.root = bucket, root
        self.uri = f"s3://{bucket}/{root}".rstrip("/")
        self._options = options
        self._output = role == "output"
        self._host = "S3"
        self._bucket_exists = False
        try:
            self._client = _client(options, _TIMEOUTS_S[role])
        except (BotoCoreError, ValueError, OSError) as error:  # an OSError is of a program or file with credentials
            raise s3_errors.translate(error, self._location(root)) from error
        self._host = host_of(str(self._client.meta.endpoint_url))
        self._payer = {"RequestPayer": "requester"} if options.requester_pays else {}

    def list(self, prefix: str = "", most: int | None = None) -> Iterator[Entry]:
        yield from self._retry(lambda: [*islice(self._listed(prefix), most)])

    def _listed(self, prefix: str) -> Iterator[Entry]:
        base = f"{self.root}/" if self.root else ""
        pages, size = self._client.get_paginator("list_objects_v2"), {"PageSize": LIST_PAGE}
        with self._translated(base + prefix):
            answers = pages.paginate(Bucket=self.bucket, Prefix=base + prefix, PaginationConfig=size, **self._payer)
            for page in _finite(answers, self._host, self.uri):
                for found in page:
                    key = str(found["Key"])[len(base) :]
                    if key and not key.endswith("/"):  # a folder marker of the AWS console is not an object
                        yield Entry(key, size_of(found, "Size"), version_of(found))

    def stat(self, key: str) -> Entry | None:
        head = self._retry(lambda: self._head(key)) if key else None
        return None if head is None else self._entry(key, head)

    def _head(self, key: str) -> dict[str, Any] | None:
        full = self._full(key)
        with self._translated(full):
            try:
                head: dict[str, Any] = self._client.head_object(Bucket=self.bucket, Key=full, **self._payer)
            except ClientError as error:
                if _status(error) != 404:
                    raise
                self._require_bucket()  # a HEAD does not tell a missing key from a missing bucket
                return None
            answered = "ContentLength" in head and size_of(head) >= 0 and version_of(head)
        if not answered:
            raise self._not_s3(full)
        return head

    def _entry(self, key: str, head: dict[str, Any]) -> Entry:
        return Entry(key, size_of(head), version_of(head))

    def read(self, key: str) -> bytes:
        return self._retry(lambda: verified(lambda: self._read(key), self._location(self._full(key)).uri))

    def _read(self, key: str) -> tuple[bytes, Checksum | None]:
        stated: list[Checksum | None] = []

        def require(answer: dict[str, Any], uri: str) -> None:
            if answer["ResponseMetadata"]["HTTPStatusCode"] != 200 or not version_of(answer):
                raise self._not_s3(uri)
            stated.append(stated_checksum(_headers(answer), is_amazon=is_amazon(self._client)))

        return b"".join(self._body(key, {}, require)), stated[0]

    def read_range(self, entry: Entry, start: int, end: int) -> bytes | None:
        return self._retry(lambda: b"".join(self._range(entry, start, end)))

    def get(self, key: str, path: Path, **transfer: Unpack[Transfer]) -> Entry:
        source = RangeSource(self._location(self._full(key)).uri, lambda: self._present(key), self._range)
        return download(source, path, self._options, **transfer)

    def put(self, key: str, source: Path | bytes, **conditions: Unpack[Conditions]) -> Entry:
        version, key_id = conditions.get("if_match"), self._options.sse_kms_key_id
        condition = {} if version is None else {"IfMatch": f'"{version}"'}
        if conditions.get("if_none_match"):
            condition = {"IfNoneMatch": "*"}
        upload = Upload(
            client=self._client,
            target={"Bucket": self.bucket, "Key": self._full(key), **self._payer},
            condition=condition,
            encryption={"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key_id} if key_id else {},
            options=self._options,
            translated=lambda: self._translated(self._full(key), writing=True, conditional=bool(condition)),
            progress=conditions.get("progress"),
            sha256=conditions.get("sha256"),
            confirm=conditions.get("confirm"),
        )
        return Entry(key, *self._retry(lambda: upload.run(source)))

    def delete(self, key: str) -> None:
        self._retry(lambda: self._delete(key))

    def _delete(self, key: str) -> None:
        full = self._full(key)
        with self._translated(full, writing=True):
            try:
                self._client.delete_object(Bucket=self.bucket, Key=full, **self._payer)
            except ClientError as error:
                if s3_errors.answer_code(error) != "NoSuchKey":
                    raise

    def delete_drafts(self, selected: Callable[[str], bool]) -> None:
        self._retry(lambda: self._delete_drafts(selected))

    def _delete_drafts(self, selected: Callable[[str], bool]) -> None:
        base = f"{self.root}/" if self.root else ""
        with self._translated(base, writing=True):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=base)
            found = [each for page in _finite(pages, self._host, self.uri, "Uploads") for each in page]
            for each in found:
                full = str(each["Key"])
                if full.startswith(base) and selected(full[len(base) :]):
                    multipart_upload.abort(self._client, self.bucket, full, str(each["UploadId"]))

    def address(self, key: str) -> str:
        """A presigned URL at which anyone can read the object for an hour."""
        parameters = {"Bucket": self.bucket, "Key": self._full(key), **self._payer}
        return str(self._client.generate_presigned_url("get_object", Params=parameters, ExpiresIn=3600))

    def _retry(self, request: Callable[[], R]) -> R:
        """Not botocore's retries: these share a quota that eight threads use up in half a second of an outage."""
        return with_retries(request, self._options.retries, self.uri)

    def _require_bucket(self) -> None:
        """Raise a ClientError with the code NoSuchBucket if the bucket is missing; a 403 proves that it exists."""
        if self._bucket_exists:
            return
        try:
            self._client.head_bucket(Bucket=self.bucket)
        except ClientError as error:
            if _status(error) == 404:
                error.response["Error"]["Code"] = "NoSuchBucket"
                raise
            if _status(error) != 403:
                raise
        self._bucket_exists = True

    def _present(self, key: str) -> tuple[Entry, bool, Checksum | None]:
        head = self._retry(lambda: self._head(key)) if key else None
        if head is None:
            raise BadDataError(f"{self._location(self._full(key)).uri} does not exist: check the address.")
        entry = self._entry(key, head)
        headers = _headers(self._head_with(entry, ChecksumMode="ENABLED") or head)
        part_size = self._part_size(entry, parts_of(headers))
        return entry, True, stated_checksum(headers, is_amazon=is_amazon(self._client), part_size=part_size)

    def _part_size(self, entry: Entry, count: int) -> int | None:
        """Bytes of an object's parts, all but the last, if there are so many of the first one's size."""
        if not count:
            return None
        first = self._head_with(entry, PartNumber=1)
        size = int(first.get("ContentLength", 0))
        fits = first.get("PartsCount") == count and size and -(-entry.size // size) == count
        return size if fits else None

    def _head_with(self, entry: Entry, **more: Any) -> dict[str, Any]:
        """A HEAD with an option that some servers or policies refuse, empty then."""
        full = self._full(entry.key)

        def attempt() -> dict[str, Any]:
            with self._translated(full):
                target = {"Bucket": self.bucket, "Key": full, "IfMatch": f'"{entry.version}"'}
                answer: dict[str, Any] = self._client.head_object(**target, **more, **self._payer)
            return answer

        try:
            return self._retry(attempt)
        except (BadDataError, ConflictError, NoPermissionError, PreconditionFailed):
            return {}

    def _range(self, entry: Entry, start: int, end: int | None) -> Iterator[bytes]:
        end = entry.size if end is None else end
        if start == end:
            return

        def require(answer: dict[str, Any], uri: str) -> None:
            status = answer["ResponseMetadata"]["HTTPStatusCode"]
            require_range(uri, status, str(answer.get("ContentRange", "")), (start, end, entry.size))
            if answer.get("ContentLength") != end - start:
                raise self._not_s3(uri)
            if version_of(answer) != entry.version:
                raise PreconditionFailed(f"{uri} changed.")

        yield from self._body(
            entry.key, {"Range": f"bytes={start}-{end - 1}", "IfMatch": f'"{entry.version}"'}, require
        )

    def _not_s3(self, name: str) -> RetryableError:
        return RetryableError(
            f"{self._host} did not answer like S3 for {name}", "check AWS_ENDPOINT_URL and the proxies on the way"
        )

    def _body(
        self, key: str, arguments: dict[str, str], require: Callable[[dict[str, Any], str], None]
    ) -> Iterator[bytes]:
        """The blocks of an object or of a range of it, once `require` has accepted the answer's headers.

        Raises RetryableError for a broken body.
        """
        full = self._full(key)
        with self._translated(full, conditional=bool(arguments)):
            answer = self._client.get_object(Bucket=self.bucket, Key=full, **arguments, **self._payer)
            left = size_of(answer)
        broken = RetryableError(f"{self._host} broke off {self._location(full).uri}")
        with closing(answer["Body"]) as body:
            with self._translated(full, conditional=bool(arguments)):
                require(answer, self._location(full).uri)
            try:
                while left > 0 and (block := body.read(min(left, BLOCK_SIZE))):
                    left -= len(block)
                    yield block
            except BotoCoreError as error:  # botocore does not retry once the answer has begun
                raise broken from error
        if left > 0:
            raise broken

    def _full(self, key: str) -> str:
        safe = checked_key(key, self.uri)
        return f"{self.root}/{safe}" if self.root else safe

    def _location(self, full: str, writing: bool = False) -> s3_errors.S3Location:
        signed = not self._options.anonymous
        return s3_errors.S3Location(self.bucket, full, self._host, self._output or writing, signed)

    @contextmanager
    def _translated(self, full: str, *, writing: bool = False, conditional: bool = False) -> Iterator[None]:
        try:
            yield
        except (JobError, PreconditionFailed, MemoryError):
            raise
        except Exception as error:  # botocore parses an answer without checks, and raises what that gives
            where = replace(self._location(full, writing), conditional=conditional)
            raise s3_errors.translate(error, where, s3_errors.Meaning.BAD_ANSWER) from error


def _finite(
    pages: Iterable[dict[str, Any]], host: str, uri: str, field: str = "Contents"
) -> Iterator[list[dict[str, Any]]]:
    """The objects, or uploads, of each page.

    Raises RetryableError for a listing that repeats itself, BadDataError for too many.
    """
    starts: set[tuple[str, str]] = set()
    empty = total = 0
    for page in pages:
        found = page.get(field, [])
        empty, total = (0 if found else empty + 1), total + len(found)
        if total > MOST_OBJECTS:
            raise BadDataError(f"{uri} has more than {MOST_OBJECTS:,} objects: give the prefix of a data set.")
        first = [(str(each["Key"]), str(each.get("UploadId"))) for each in found[:1]]
        if empty > MOST_EMPTY_PAGES or not starts.isdisjoint(first):
            raise RetryableError(f"{host} repeats itself in the listing of {uri}")
        starts.update(first)
        yield found


def _client(options: StorageOptions, timeouts_s: tuple[int, int]) -> Any:
    """A client; for a custom endpoint with path-style addresses and no optional checksums, as other servers need.

    The user's AWS configuration may say otherwise for addresses: Alibaba's OSS refuses path-style ones.
    """
    core = botocore.session.Session()
    core.register_component("data_loader", _service_models())
    session = boto3.session.Session(botocore_session=core)
    client = session.client("s3", config=_config(options, timeouts_s))
    if is_amazon(client):
        return client
    own = core.get_scoped_config().get("s3")
    style = own.get("addressing_style") if isinstance(own, dict) else None
    compatible = Config(
        s3={"addressing_style": style or "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return session.client("s3", config=_config(options, timeouts_s).merge(compatible))


def is_amazon(client: Any) -> bool:
    """Whether a boto3 client talks to Amazon itself."""
    host = urlsplit(str(client.meta.endpoint_url)).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


@cache
def _service_models() -> Any:
    """botocore's description of S3, read once per process, because it is most of the cost of a client."""
    return create_loader()


def _config(options: StorageOptions, timeouts_s: tuple[int, int]) -> Config:
    config = Config(
        retries={"mode": "standard", "total_max_attempts": 1},
        max_pool_connections=max(10, options.threads + 2),
        connect_timeout=timeouts_s[0],
        read_timeout=timeouts_s[1],
    )
    return config.merge(Config(signature_version=UNSIGNED)) if options.anonymous else config


def _headers(answer: dict[str, Any]) -> dict[str, str]:
    headers: dict[str, str] = answer["ResponseMetadata"]["HTTPHeaders"]
    return headers


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
