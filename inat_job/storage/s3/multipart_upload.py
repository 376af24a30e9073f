"""One upload to S3: whole or in parts, with a condition, checked on its way and after.

Each upload carries a token of its own as metadata. Where a condition seems to have failed, the token tells a lost
race from a won one whose answer got lost.
"""

import base64
import hashlib
import os
import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inat_job.errors import PreconditionFailed, TransientError
from inat_job.events import Progress
from inat_job.signals import Stop
from inat_job.storage.base import StorageOptions
from inat_job.storage.disk import blocks_of, disk_errors, sha256_of_blocks
from inat_job.storage.partial_download import MIB, DownloadPlan
from inat_job.storage.retry import PassingError, persist
from inat_job.storage.s3 import s3_errors
from inat_job.storage.threads import work_through

WHOLE_LIMIT = 16 * MIB
PART_SIZE = 16 * MIB
_MOST_PARTS = 10_000
_WHOLE = -1
_ABORT_PATIENCE_S = 60.0
_TOKEN = "inat-put"  # noqa: S105 (the name of a metadata field)
_LOST_RACES = frozenset({"PreconditionFailed", "412", "NoSuchUpload"})


@dataclass(frozen=True)
class Upload:
    """`target` names bucket and key, `condition` holds IfMatch or IfNoneMatch; `door` translates errors."""

    client: Any
    target: dict[str, str]
    condition: dict[str, str]
    encryption: dict[str, str]
    options: StorageOptions
    door: Callable[[], AbstractContextManager[None]]
    progress: Progress | None
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    sums: dict[int, bytes] = field(default_factory=dict)  # MD5 of each part, or of the whole under -1

    def run(self, source: Path | bytes) -> tuple[int, str]:
        """Store `source`; returns its size and the new version.

        Raises PassingError for trouble worth another attempt, PreconditionFailed.
        """
        size = len(source) if isinstance(source, bytes) else _size_of(source)
        with self.door():
            try:
                version = self._in_parts(source, size) if size > WHOLE_LIMIT else self._whole(source)
            except Exception as error:
                version = self._after_all(error)
            version = self._verified(source, size, version)
        self._show(size, size)
        return size, version

    def _whole(self, source: Path | bytes) -> str:
        body = source if isinstance(source, bytes) else _slice(source, (0, WHOLE_LIMIT))
        self.sums[_WHOLE] = _md5(body)
        answer = self.client.put_object(
            **self.target,
            **self.condition,
            **self.encryption,
            Body=body,
            ContentMD5=_base64(self.sums[_WHOLE]),
            Metadata={_TOKEN: self.token},
        )
        return _version(answer)

    def _in_parts(self, source: Path | bytes, size: int) -> str:
        self._look_first()
        opened = self.client.create_multipart_upload(**self.target, **self.encryption, Metadata={_TOKEN: self.token})
        upload = {**self.target, "UploadId": opened["UploadId"]}
        try:
            parts = self._parts(source, part_plan(size), upload)
            done = self.client.complete_multipart_upload(**upload, **self.condition, MultipartUpload={"Parts": parts})
        except BaseException:
            self._abort(upload)
            raise
        return _version(done)

    def _parts(self, source: Path | bytes, plan: DownloadPlan, upload: dict[str, str]) -> list[dict[str, Any]]:
        def send(index: int, halt: Stop) -> str:
            body = _slice(source, plan.span(index))
            self.sums[index] = _md5(body)
            part = {**upload, "PartNumber": index + 1, "Body": body, "ContentMD5": _base64(self.sums[index])}
            try:
                return persist(lambda: self._part(part), self.options.retries, halt)
            except PassingError as error:  # all of it once more would bring no more
                raise TransientError(str(error)) from error

        tags: dict[int, str] = {}
        crew = work_through(
            range(plan.count), send, threads=self.options.threads, tick=lambda: None, patience_s=_ABORT_PATIENCE_S
        )
        for index, tag in crew:
            tags[index] = tag
            self._show(sum(map(plan.length, tags)), plan.size)
        return [{"PartNumber": index + 1, "ETag": tags[index]} for index in sorted(tags)]

    def _part(self, part: dict[str, Any]) -> str:
        with self.door():
            return str(self.client.upload_part(**part)["ETag"])

    def _abort(self, upload: dict[str, str]) -> None:
        """Parts left behind cost money; but what made us abort is what matters."""
        with suppress(Exception):
            self.client.abort_multipart_upload(**upload)

    def _after_all(self, error: Exception) -> str:
        """The version stored if it was this attempt that won, its answer lost and repeated; else raise `error`."""
        code = s3_errors.answer_code(error)
        if code in _LOST_RACES:
            head = self._head()
            if head is not None and self._is_ours(head):
                return _version(head)
        if code == "NoSuchKey" and "IfMatch" in self.condition:
            raise PreconditionFailed(f"{self._uri} is gone.") from error
        raise error

    def _look_first(self) -> None:
        """Learn of a lost race before many parts are sent; and at all from a store that completes unconditionally."""
        head = self._head() if self.condition else None
        if self._is_ours(head):
            return  # an earlier attempt's, which the completion will tell
        met = {
            "IfNoneMatch": head is None,
            "IfMatch": head is not None and f'"{_version(head)}"' == self.condition.get("IfMatch"),
        }
        if not all(met[name] for name in self.condition):
            raise PreconditionFailed(f"{self._uri} exists already, or is not at the version named.")

    def _verified(self, source: Path | bytes, size: int, version: str) -> str:
        """The version, which some stores leave out of their answer, of what is now seen to be stored as it was sent."""
        head = self._head()
        if head is not None and not self._is_ours(head) and _version(head) != version:
            return version  # another writer came since: what is there now is not ours to judge
        found = None if head is None else int(head["ContentLength"])
        if head is None or found != size:
            raise PassingError(f"{self._uri} holds {found} bytes, not the {size} sent: try again.")
        if not self._is_intact(head, source):
            self.client.delete_object(**self.target)  # or a condition would let no second attempt replace it
            raise PassingError(f"{self._uri} was damaged on its way: try again.")
        return _version(head)

    def _is_intact(self, head: dict[str, Any], source: Path | bytes) -> bool:
        """By the ETag where that is an MD5. With a KMS key it is none, but then the server checked Content-MD5; what
        an unknown store gives as ETag proves nothing, and the object is read back."""
        if _version(head) == self._expected_tag() or str(head.get("ServerSideEncryption", "")).startswith("aws:kms"):
            return True
        with closing(self.client.get_object(**self.target)["Body"]) as body:
            stored = sha256_of_blocks(iter(lambda: body.read(MIB), b""))
        return stored == sha256_of_blocks([source] if isinstance(source, bytes) else blocks_of(source))

    def _expected_tag(self) -> str:
        """What S3 makes of the MD5s: of a whole its own, of parts that of theirs and their number."""
        if _WHOLE in self.sums:
            return self.sums[_WHOLE].hex()
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


def part_plan(size: int) -> DownloadPlan:
    """Parts of PART_SIZE, or of as many whole MiB as keep an object within S3's 10,000 parts."""
    least = -(-size // _MOST_PARTS)
    return DownloadPlan(size, max(PART_SIZE, -(-least // MIB) * MIB))


def _size_of(source: Path) -> int:
    with disk_errors(source, missing=f"{source} does not exist: nothing to store."):
        return source.stat().st_size


def _slice(source: Path | bytes, span: tuple[int, int]) -> bytes:
    if isinstance(source, bytes):
        return source[span[0] : span[1]]
    with disk_errors(source, missing=f"{source} does not exist: nothing to store."), source.open("rb") as file:
        return os.pread(file.fileno(), span[1] - span[0], span[0])


def _md5(body: bytes) -> bytes:
    return hashlib.md5(body, usedforsecurity=False).digest()


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _version(answer: dict[str, Any]) -> str:
    return str(answer.get("ETag", "")).strip('"')
