"""A prefix of a bucket as a store, on Amazon S3 or an S3-compatible server."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
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

from inat_job.errors import BadDataError
from inat_job.events import Progress
from inat_job.storage.base import Entry, Role, StorageOptions, Transfer, checked_key
from inat_job.storage.ranged_download import BLOCK_SIZE, RangeSource, download
from inat_job.storage.retry import RetryableError, with_retries
from inat_job.storage.s3 import multipart_upload, s3_errors
from inat_job.storage.s3.multipart_upload import Upload, version_of

LIST_PAGE = 1000  # S3's maximum
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
        with self._translated(root):
            self._client = _client(options, _TIMEOUTS_S[role])
        self._host = urlsplit(str(self._client.meta.endpoint_url)).netloc.rpartition("@")[2]
        self._payer = {"RequestPayer": "requester"} if options.requester_pays else {}

    def list(self, prefix: str = "", most: int | None = None) -> Iterator[Entry]:
        yield from self._retry(lambda: [*islice(self._listed(prefix), most)])

    def _listed(self, prefix: str) -> Iterator[Entry]:
        base = f"{self.root}/" if self.root else ""
        pages, size = self._client.get_paginator("list_objects_v2"), {"PageSize": LIST_PAGE}
        with self._translated(base + prefix):
            for page in pages.paginate(Bucket=self.bucket, Prefix=base + prefix, PaginationConfig=size, **self._payer):
                for found in page.get("Contents", []):
                    key = str(found["Key"])[len(base) :]
                    if key and not key.endswith("/"):  # a folder marker of the AWS console is not an object
                        yield Entry(key, int(found["Size"]), version_of(found))

    def stat(self, key: str) -> Entry | None:
        return self._retry(lambda: self._stat(key)) if key else None

    def _stat(self, key: str) -> Entry | None:
        full = self._full(key)
        with self._translated(full):
            try:
                head = self._client.head_object(Bucket=self.bucket, Key=full, **self._payer)
            except ClientError as error:
                if _status(error) != 404:
                    raise
                self._require_bucket()  # a HEAD does not tell a missing key from a missing bucket
                return None
        return Entry(key, int(head["ContentLength"]), version_of(head))

    def read(self, key: str) -> bytes:
        return self._retry(lambda: b"".join(self._body(key, {})))

    def read_range(self, entry: Entry, start: int, end: int) -> bytes | None:
        return self._retry(lambda: b"".join(self._range(entry, start, end)))

    def get(self, key: str, path: Path, **transfer: Unpack[Transfer]) -> Entry:
        source = RangeSource(self._location(self._full(key)).uri, lambda: (self._present(key), True), self._range)
        return download(source, path, self._options, **transfer)

    def put(
        self,
        key: str,
        source: Path | bytes,
        *,
        if_none_match: bool = False,
        if_match: str | None = None,
        sha256: str | None = None,
        progress: Progress | None = None,
        confirm: Callable[[], None] | None = None,
    ) -> Entry:
        condition = (
            {"IfNoneMatch": "*"} if if_none_match else {"IfMatch": f'"{if_match}"'} if if_match is not None else {}
        )
        key_id = self._options.sse_kms_key_id
        upload = Upload(
            client=self._client,
            target={"Bucket": self.bucket, "Key": self._full(key), **self._payer},
            condition=condition,
            encryption={"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key_id} if key_id else {},
            options=self._options,
            translated=lambda: self._translated(self._full(key), writing=True),
            progress=progress,
            sha256=sha256,
            confirm=confirm,
        )
        size, version = self._retry(lambda: upload.run(source))
        return Entry(key, size, version)

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
            for each in [each for page in pages for each in page.get("Uploads", [])]:
                full = str(each["Key"])
                if full.startswith(base) and selected(full[len(base) :]):
                    multipart_upload.abort(self._client, self.bucket, full, str(each["UploadId"]))

    def address(self, key: str) -> str:
        """A presigned URL at which anyone can read the object for an hour."""
        parameters = {"Bucket": self.bucket, "Key": self._full(key), **self._payer}
        return str(self._client.generate_presigned_url("get_object", Params=parameters, ExpiresIn=3600))

    def _retry(self, request: Callable[[], R]) -> R:
        """Not botocore's retries: these share a quota that eight threads use up in half a second of an outage."""
        return with_retries(request, self._options.retries)

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

    def _present(self, key: str) -> Entry:
        entry = self.stat(key)
        if entry is None:
            raise BadDataError(f"{self._location(self._full(key)).uri} does not exist: check the address.")
        return entry

    def _range(self, entry: Entry, start: int, end: int | None) -> Iterator[bytes]:
        last = "" if end is None else str(end - 1)
        return self._body(entry.key, {"Range": f"bytes={start}-{last}", "IfMatch": f'"{entry.version}"'})

    def _body(self, key: str, arguments: dict[str, str]) -> Iterator[bytes]:
        """The blocks of an object or of a range of it. Raises RetryableError for a broken body."""
        full = self._full(key)
        with self._translated(full):
            answer = self._client.get_object(Bucket=self.bucket, Key=full, **arguments, **self._payer)
        left = int(answer["ContentLength"])
        broken = f"{self._host} broke off {self._location(full).uri} despite retries: try again later."
        with closing(answer["Body"]) as body:
            try:
                while left > 0 and (block := body.read(min(left, BLOCK_SIZE))):
                    left -= len(block)
                    yield block
            except BotoCoreError as error:  # botocore does not retry once the answer has begun
                raise RetryableError(broken) from error
        if left > 0:
            raise RetryableError(broken)

    def _full(self, key: str) -> str:
        safe = checked_key(key, self.uri)
        return f"{self.root}/{safe}" if self.root else safe

    def _location(self, full: str, writing: bool = False) -> s3_errors.S3Location:
        return s3_errors.S3Location(self.bucket, full, self._host, self._output or writing)

    @contextmanager
    def _translated(self, full: str, *, writing: bool = False) -> Iterator[None]:
        try:
            yield
        except (ClientError, BotoCoreError, ValueError) as error:
            raise s3_errors.translate(error, self._location(full, writing)) from error


def _client(options: StorageOptions, timeouts_s: tuple[int, int]) -> Any:
    """A client; for a custom endpoint with path-style addresses and no optional checksums, as other servers need."""
    core = botocore.session.Session()
    core.register_component("data_loader", _service_models())
    session = boto3.session.Session(botocore_session=core)
    client = session.client("s3", config=_config(options, timeouts_s))
    if is_amazon(client):
        return client
    compatible = Config(
        s3={"addressing_style": "path"},
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


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
