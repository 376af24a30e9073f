"""Uploads one object to S3, in one request or in parts, optionally conditionally, and verifies it.

Each upload carries a random token as metadata. If a condition seems to have failed, the token distinguishes a lost race
from a won one whose answer was lost.
"""

import base64
import hashlib
import os
import secrets
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inat_job.errors import PreconditionFailed, TransientError
from inat_job.events import Progress
from inat_job.signals import Stop, never
from inat_job.storage.base import DamagedFileError, StorageOptions
from inat_job.storage.disk import disk_errors, read_blocks, sha256_of_blocks, size_of_source
from inat_job.storage.partial_download import MIB, ChunkPlan
from inat_job.storage.retry import RetryableError, with_retries
from inat_job.storage.s3 import s3_errors
from inat_job.storage.threads import map_in_threads

SINGLE_REQUEST_LIMIT = 16 * MIB
PART_SIZE = 16 * MIB
_MOST_PARTS = 10_000
_SINGLE = -1
_ABORT_JOIN_S = 60.0
_TICK_S = 0.1
_TOKEN = "inat-put"  # noqa: S105 (the name of a metadata field)
_LOST_RACES = frozenset({"PreconditionFailed", "412", "NoSuchUpload"})


@dataclass(frozen=True)
class Upload:
    """`target` names bucket and key, `condition` holds IfMatch or IfNoneMatch, `translated` translates errors.

    `sha256` is that of the file to send, if known. With `confirm`, which is called before the object appears, even a
    small object is sent in parts: it can appear only while nobody has aborted the upload.
    """

    client: Any
    target: dict[str, str]
    condition: dict[str, str]
    encryption: dict[str, str]
    options: StorageOptions
    translated: Callable[[], AbstractContextManager[None]]
    progress: Progress | None
    sha256: str | None = None
    confirm: Callable[[], None] | None = None
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    sums: dict[int, bytes] = field(default_factory=dict)  # MD5 of each part, or of the whole object under -1

    def run(self, source: Path | bytes) -> tuple[int, str]:
        """Store `source`; returns its size and the new version.

        Raises RetryableError for a failure that another attempt may cure, PreconditionFailed, DamagedFileError.
        """
        size = size_of_source(source)
        with self.translated():
            try:
                in_parts = self.confirm or size > SINGLE_REQUEST_LIMIT
                version = self._in_parts(source, size) if in_parts else self._in_one_request(source)
            except Exception as error:
                version = self._won_after_all(error)
            version = self._verified(source, size, version)
        self._show(size, size)
        return size, version

    def _in_one_request(self, source: Path | bytes) -> str:
        whole = _Slices(source, ChunkPlan(SINGLE_REQUEST_LIMIT, SINGLE_REQUEST_LIMIT), self.sha256)
        body = whole.read(0, never)
        self.sums[_SINGLE] = _md5(body)
        answer = self.client.put_object(
            **self.target,
            **self.condition,
            **self.encryption,
            Body=body,
            ContentMD5=_base64(self.sums[_SINGLE]),
            Metadata={_TOKEN: self.token},
        )
        return version_of(answer)

    def _in_parts(self, source: Path | bytes, size: int) -> str:
        self._check_condition()
        opened = self.client.create_multipart_upload(**self.target, **self.encryption, Metadata={_TOKEN: self.token})
        upload = {**self.target, "UploadId": opened["UploadId"]}
        try:
            parts = self._parts(source, plan_parts(size), upload)
            if self.confirm:
                self.confirm()
            done = self.client.complete_multipart_upload(**upload, **self.condition, MultipartUpload={"Parts": parts})
        except BaseException:
            self._abort(upload)
            raise
        return version_of(done)

    def _parts(self, source: Path | bytes, plan: ChunkPlan, upload: dict[str, str]) -> list[dict[str, Any]]:
        slices = _Slices(source, plan, self.sha256)

        def send(index: int, halt: Stop) -> str:
            body = slices.read(index, halt)
            self.sums[index] = _md5(body)
            part = {**upload, "PartNumber": index + 1, "Body": body, "ContentMD5": _base64(self.sums[index])}
            try:
                return with_retries(lambda: self._part(part), self.options.retries, self._uri, halt)
            except RetryableError as error:  # repeating the whole upload would not help either
                raise TransientError(str(error)) from error

        tags: dict[int, str] = {}
        uploaded = map_in_threads(
            range(max(1, plan.count)), send, threads=self.options.threads, tick=lambda: None, join_s=_ABORT_JOIN_S
        )
        for index, tag in uploaded:
            tags[index] = tag
            self._show(sum(map(plan.length, tags)), plan.size)
        return [{"PartNumber": index + 1, "ETag": tags[index]} for index in sorted(tags)]

    def _part(self, part: dict[str, Any]) -> str:
        with self.translated():
            return str(self.client.upload_part(**part)["ETag"])

    def _abort(self, upload: dict[str, str]) -> None:
        """Delete the parts, which cost money; errors here must not hide the cause of the abort."""
        with suppress(Exception):
            self.client.abort_multipart_upload(**upload)

    def _won_after_all(self, error: Exception) -> str:
        """The stored version if this upload succeeded but its answer was lost; else raise `error`."""
        code = s3_errors.answer_code(error)
        if code in _LOST_RACES:
            head = self._head()
            if head is not None and self._is_ours(head):
                return version_of(head)
        if code == "NoSuchKey" and "IfMatch" in self.condition:
            raise PreconditionFailed(f"{self._uri} no longer exists.") from error
        raise error

    def _check_condition(self) -> None:
        """Detect a lost race before the parts are sent; some servers ignore the condition on completion."""
        head = self._head() if self.condition else None
        if self._is_ours(head):
            return  # stored by an earlier attempt of this upload, as the completion will report
        met = {
            "IfNoneMatch": head is None,
            "IfMatch": head is not None and f'"{version_of(head)}"' == self.condition.get("IfMatch"),
        }
        if not all(met[name] for name in self.condition):
            raise PreconditionFailed(f"{self._uri} exists already, or is not at the expected version.")

    def _verified(self, source: Path | bytes, size: int, version: str) -> str:
        """The version, which some servers leave out of their answer, once the stored object is seen to be intact."""
        head = self._head()
        if head is not None and not self._is_ours(head) and version_of(head) != version:
            return version  # another writer has replaced it since
        found = None if head is None else size_of(head)
        if head is None or found != size:
            raise RetryableError(f"{self._uri} holds {found} bytes, not the {size} sent")
        if not self._is_intact(head, source):
            self.client.delete_object(**self.target)  # or the condition would refuse the next attempt
            raise RetryableError(f"{self._uri} was damaged in transit")
        return version_of(head)

    def _is_intact(self, head: dict[str, Any], source: Path | bytes) -> bool:
        """Whether the stored bytes are those that were sent: by the ETag if that is an MD5. With a KMS key it is not,
        but then the server has checked Content-MD5. Any other ETag proves nothing, so the object is read back.
        """
        if version_of(head) == self._expected_tag() or str(head.get("ServerSideEncryption", "")).startswith("aws:kms"):
            return True
        with closing(self.client.get_object(**self.target)["Body"]) as body:
            stored = sha256_of_blocks(iter(lambda: body.read(MIB), b""))
        return stored == (
            self.sha256 or sha256_of_blocks([source] if isinstance(source, bytes) else read_blocks(source))
        )

    def _expected_tag(self) -> str:
        """S3's ETag: the MD5 of an object sent in one request, or the MD5 of the parts' MD5s and their number."""
        if _SINGLE in self.sums:
            return self.sums[_SINGLE].hex()
        joined = b"".join(self.sums[index] for index in sorted(self.sums))
        return f"{_md5(joined).hex()}-{len(self.sums)}"

    def _is_ours(self, head: dict[str, Any] | None) -> bool:
        return head is not None and head.get("Metadata", {}).get(_TOKEN) == self.token

    @property
    def _uri(self) -> str:
        return f"s3://{self.target['Bucket']}/{self.target['Key']}"

    def _head(self) -> dict[str, Any] | None:
        try:
            answer: dict[str, Any] = self.client.head_object(**self.target)
        except Exception as error:
            if s3_errors.answer_code(error) == "404":
                return None
            raise
        return answer

    def _show(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(done, total)


def abort(client: Any, bucket: str, key: str, upload_id: str) -> None:
    """Delete the parts of an unfinished upload. Raises ClientError, but not for an upload that has ended since."""
    try:
        client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)
    except Exception as error:
        if s3_errors.answer_code(error) != "NoSuchUpload":
            raise


class _Slices:
    """The slices of `source`, which threads read in their order and at most once.

    So they are hashed on the way, if the `sha256` of the whole is known.
    """

    def __init__(self, source: Path | bytes, plan: ChunkPlan, sha256: str | None) -> None:
        self._source, self._plan, self._sha256 = source, plan, sha256
        self._digest, self._next, self._turn = hashlib.sha256(), 0, threading.Condition()

    def read(self, index: int, halt: Stop) -> bytes:
        """One slice, once all slices before it are read. The last one raises DamagedFileError if the hash is wrong."""
        with self._turn:
            while self._next != index and not halt():
                self._turn.wait(_TICK_S)
            body = _slice(self._source, self._plan.span(index))
            if self._sha256:
                self._digest.update(body)
            self._next = index + 1
            self._turn.notify_all()
            if self._next == self._plan.count:
                self._check()
        return body

    def _check(self) -> None:
        if isinstance(self._source, Path) and self._sha256 and self._digest.hexdigest() != self._sha256:
            raise DamagedFileError(self._source)


def plan_parts(size: int) -> ChunkPlan:
    """Parts of PART_SIZE, or of more MiB if the object would exceed S3's limit of 10,000 parts."""
    least = -(-size // _MOST_PARTS)
    return ChunkPlan(size, max(PART_SIZE, -(-least // MIB) * MIB))


def _slice(source: Path | bytes, span: tuple[int, int]) -> bytes:
    if isinstance(source, bytes):
        return source[span[0] : span[1]]
    with disk_errors(source, missing=f"{source} does not exist: check the path."), source.open("rb") as file:
        return os.pread(file.fileno(), span[1] - span[0], span[0])


def _md5(body: bytes) -> bytes:
    return hashlib.md5(body, usedforsecurity=False).digest()


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def version_of(answer: dict[str, Any]) -> str:
    """The ETag of an answer of boto3's, without quotes; it is the object's version."""
    version = str(answer.get("ETag", "")).strip('"')
    if not version.isprintable():
        raise ValueError("the ETag has control characters")
    return version


def size_of(answer: dict[str, Any], field: str = "ContentLength") -> int:
    """The size in an answer of boto3's, in bytes. Raises ValueError for a size that no file can have."""
    size = int(answer[field])
    if not 0 <= size < 2**63:
        raise ValueError(f"{field} is {size}")
    return size
