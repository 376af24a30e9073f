"""A prefix of an S3 bucket, or of what speaks S3, as a store: the only module that knows boto3."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.loaders import create_loader

from inat_job.errors import BadDataError
from inat_job.events import Progress
from inat_job.signals import Stop, never
from inat_job.storage.base import Entry, Role, StorageOptions, checked_key
from inat_job.storage.partial_download import PartialDownload
from inat_job.storage.ranged_download import BLOCK, RangeSource, pull
from inat_job.storage.retry import PassingError, persist
from inat_job.storage.s3 import multipart_upload, s3_errors

LIST_PAGE = 1000  # the most that S3 gives at once
R = TypeVar("R")

_TIMEOUTS_S = {"data": (10, 30), "output": (5, 20)}
"""For a connection and for an answer; of the output shorter, since a preempted job has no longer to live."""


class S3Store:
    """The objects of `bucket` under `root` (no slash at either end; may be empty)."""

    def __init__(self, bucket: str, root: str, options: StorageOptions, role: Role) -> None:
        self.bucket, self.root = bucket, root
        self.uri = f"s3://{bucket}/{root}".rstrip("/")
        self._options = options
        self._output = role == "output"
        self._host = "S3"
        self._bucket_exists = False
        with self._door(root):
            self._client = _client(options, _TIMEOUTS_S[role])
        self._host = urlsplit(str(self._client.meta.endpoint_url)).netloc.rpartition("@")[2]
        self._payer = {"RequestPayer": "requester"} if options.requester_pays else {}

    def list(self, prefix: str = "", most: int | None = None) -> Iterator[Entry]:
        yield from self._persist(lambda: [*islice(self._listed(prefix), most)])

    def _listed(self, prefix: str) -> Iterator[Entry]:
        base = f"{self.root}/" if self.root else ""
        pages, size = self._client.get_paginator("list_objects_v2"), {"PageSize": LIST_PAGE}
        with self._door(base + prefix):
            for page in pages.paginate(Bucket=self.bucket, Prefix=base + prefix, PaginationConfig=size, **self._payer):
                for found in page.get("Contents", []):
                    key = str(found["Key"])[len(base) :]
                    if key and not key.endswith("/"):  # a console's folder marker is no object of ours
                        yield Entry(key, int(found["Size"]), _version(found))

    def stat(self, key: str) -> Entry | None:
        return self._persist(lambda: self._stat(key)) if key else None

    def _stat(self, key: str) -> Entry | None:
        full = self._full(key)
        with self._door(full):
            try:
                head = self._client.head_object(Bucket=self.bucket, Key=full, **self._payer)
            except ClientError as error:
                if _status(error) != 404:
                    raise
                self._require_bucket()  # a HEAD has no body to tell a missing key from a missing bucket
                return None
        return Entry(key, int(head["ContentLength"]), _version(head))

    def read(self, key: str) -> bytes:
        return self._persist(lambda: b"".join(self._body(key, {})))

    def part(self, entry: Entry, start: int, end: int) -> bytes | None:
        return self._persist(lambda: b"".join(self._range(entry, start, end)))

    def get(
        self,
        key: str,
        path: Path,
        *,
        sha256: str | None = None,
        progress: Progress | None = None,
        stop: Stop = never,
        landing: PartialDownload | None = None,
    ) -> Entry:
        source = RangeSource(self._place(self._full(key)).uri, lambda: (self._present(key), True), self._range)
        return pull(source, path, self._options, sha256=sha256, progress=progress, stop=stop, landing=landing)

    def put(
        self,
        key: str,
        source: Path | bytes,
        *,
        if_none_match: bool = False,
        if_match: str | None = None,
        progress: Progress | None = None,
    ) -> Entry:
        condition = (
            {"IfNoneMatch": "*"} if if_none_match else {"IfMatch": f'"{if_match}"'} if if_match is not None else {}
        )
        upload = multipart_upload.Upload(
            client=self._client,
            target={"Bucket": self.bucket, "Key": self._full(key), **self._payer},
            condition=condition,
            encryption=self._encryption(),
            options=self._options,
            door=lambda: self._door(self._full(key), writing=True),
            progress=progress,
        )
        size, version = self._persist(lambda: upload.run(source))
        return Entry(key, size, version)

    def delete(self, key: str) -> None:
        self._persist(lambda: self._delete(key))

    def _delete(self, key: str) -> None:
        full = self._full(key)
        with self._door(full, writing=True):
            try:
                self._client.delete_object(Bucket=self.bucket, Key=full, **self._payer)
            except ClientError as error:
                if s3_errors.answer_code(error) != "NoSuchKey":
                    raise

    def address(self, key: str) -> str:
        """A web address at which anybody can read the object for an hour."""
        parameters = {"Bucket": self.bucket, "Key": self._full(key), **self._payer}
        return str(self._client.generate_presigned_url("get_object", Params=parameters, ExpiresIn=3600))

    def _persist(self, request: Callable[[], R]) -> R:
        """Our own patience: botocore's has a quota that eight threads use up in half a second of an outage."""
        return persist(request, self._options.retries)

    def _require_bucket(self) -> None:
        """Raise NoSuchBucket's ClientError when there is none; a 403 says that there is one."""
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
            raise BadDataError(f"{self._place(self._full(key)).uri} does not exist: check the address.")
        return entry

    def _range(self, entry: Entry, start: int, end: int | None) -> Iterator[bytes]:
        last = "" if end is None else str(end - 1)
        return self._body(entry.key, {"Range": f"bytes={start}-{last}", "IfMatch": f'"{entry.version}"'})

    def _body(self, key: str, arguments: dict[str, str]) -> Iterator[bytes]:
        """The blocks of an object, or of a range of it. Raises PassingError for a body that broke."""
        full = self._full(key)
        with self._door(full):
            answer = self._client.get_object(Bucket=self.bucket, Key=full, **arguments, **self._payer)
        left = int(answer["ContentLength"])
        broken = f"{self._host} broke off {self._place(full).uri}, for all the retries: try again later."
        with closing(answer["Body"]) as body:
            try:
                while left > 0 and (block := body.read(min(left, BLOCK))):
                    left -= len(block)
                    yield block
            except BotoCoreError as error:  # botocore itself tries nothing again once an answer has begun
                raise PassingError(broken) from error
        if left > 0:
            raise PassingError(broken)

    def _encryption(self) -> dict[str, str]:
        key_id = self._options.sse_kms_key_id
        return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key_id} if key_id else {}

    def _full(self, key: str) -> str:
        safe = checked_key(key, self.uri)
        return f"{self.root}/{safe}" if self.root else safe

    def _place(self, full: str, writing: bool = False) -> s3_errors.S3Location:
        return s3_errors.S3Location(self.bucket, full, self._host, self._output or writing)

    @contextmanager
    def _door(self, full: str, *, writing: bool = False) -> Iterator[None]:
        try:
            yield
        except (ClientError, BotoCoreError, ValueError) as error:
            raise s3_errors.translate(error, self._place(full, writing)) from error


def _client(options: StorageOptions, timeouts_s: tuple[int, int]) -> Any:
    """A client; for a custom endpoint with what S3-compatible stores need: the path style and no new checksums."""
    core = botocore.session.Session()
    core.register_component("data_loader", _models())
    session = boto3.session.Session(botocore_session=core)
    client = session.client("s3", config=_config(options, timeouts_s))
    host = urlsplit(str(client.meta.endpoint_url)).hostname or ""
    if host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        return client
    compatible = Config(
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return session.client("s3", config=_config(options, timeouts_s).merge(compatible))


@cache
def _models() -> Any:
    """S3's description, read once a process: that is most of what a new client costs."""
    return create_loader()


def _config(options: StorageOptions, timeouts_s: tuple[int, int]) -> Config:
    config = Config(
        retries={"mode": "standard", "total_max_attempts": 1},
        max_pool_connections=max(10, options.threads + 2),
        connect_timeout=timeouts_s[0],
        read_timeout=timeouts_s[1],
    )
    return config.merge(Config(signature_version=UNSIGNED)) if options.anonymous else config


def _version(answer: dict[str, Any]) -> str:
    return str(answer.get("ETag", "")).strip('"')


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
