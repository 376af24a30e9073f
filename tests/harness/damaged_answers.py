"""A web server and an S3 server on loopback that damage some of their answers, and random changes to bytes."""

import contextlib
import hashlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

from inat_job.errors import JobError, PreconditionFailed
from inat_job.storage import Entry, StorageOptions, open_store
from tests.harness.raw_answers import raw_server

NUMBERS = [b"\x00", b"\xff", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"\x7f\xff\xff\xff", b"9" * 12, b"-1", b"1e400"]


def mutated(data: bytes, chance: random.Random) -> bytes:
    """`data` after a few changes of the kind that disks, networks and people cause."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        at, length = chance.randrange(len(changed) + 1), chance.choice((1, 2, 4, 30, 400))
        kind = chance.randrange(6)
        if kind == 0 and changed:
            changed[min(at, len(changed) - 1)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            changed[at : at + length] = chance.choice(NUMBERS)
        elif kind == 2:
            del changed[at : at + length]
        elif kind == 3:
            changed[at:at] = changed[chance.randrange(len(changed) + 1) :][:length]
        elif kind == 4:
            changed[at : at + length] = chance.randbytes(length)
        elif chance.random() < 0.2:
            del changed[at:]
    return bytes(changed)


HEADERS = {
    "Content-Length": ("5", "-1", "9" * 30, "9" * 5000, "", "\xb2", "0", "99999"),
    "Content-Range": ("bytes 0-0/*", "bytes 5-4/9", f"bytes 0-0/{10**18}", "bytes 0-" + "9" * 5000 + "/1", "\xb2", ""),
    "ETag": ("", '"', 'W/"x"', '"x"', "\x1b[2J", '"' + "e" * 9000, f'"{"0" * 32}"', f'"{"0" * 32}-99999999999"'),
    "Last-Modified": ("", "never", "Mon, 99 Foo 99999 99:99:99 GMT", "0", "\xb2"),
    "Retry-After": ("\xb2", "1e400", "-1", "9" * 5000, "Mon, 1 Jan 99999 00:00:00 GMT", "soon"),
    "Location": ("ftp://x/", "http://[", "/object", "file:///etc/passwd", "", "//", "http://127.0.0.1:99999/", "\xb2"),
    "Content-Encoding": ("gzip", "br", "zstd", "deflate", "\xb2"),
    "Transfer-Encoding": ("chunked", "gzip, chunked", "\xb2"),
    "Date": ("never", "Mon, 1 Jan 1990 00:00:00 GMT", "Mon, 1 Jan 99999 00:00:00 GMT"),
    "Content-Type": ("text/html", "multipart/byteranges", "application/xml; charset=\xb2"),
    "Content-MD5": ("", "x", "\xb2"),
    "Repr-Digest": ("sha-256=:x:", "sha-256=:" + "A" * 43 + "=:", ",", "\xb2"),
    "x-goog-hash": ("md5=x", "crc32c=", "md5=" + "A" * 22 + "==", "\xb2"),
    "x-goog-stored-content-length": ("-1", "9" * 40),
    "x-amz-checksum-sha256": ("x", "A" * 43 + "=", "A" * 43 + "=-3", "x-" + "9" * 30, "\xb2"),
    "x-amz-checksum-crc32": ("AAAAAA==", "AAAAAA==-2", "=", "\xb2"),
    "x-amz-checksum-type": ("COMPOSITE", "FULL_OBJECT", "\xb2"),
    "x-amz-mp-parts-count": ("3", "-1", "9" * 30, "\xb2"),
    "x-amz-bucket-region": ("", "nowhere", "../..", "\xb2", "\x1b[2J"),
    "x-amz-request-id": ("\x1b[2J", "\xb2" * 3000),
    "x-amz-missing-meta": ("\xb2", "-1"),
    "x-amz-expiration": ("\xb2",),
    "x-amz-restore": ("\xb2",),
    "x-amz-storage-class": ("GLACIER", "\xb2"),
}
"""Values of every header that the stores read, and of some that botocore reads."""

STATUSES = (
    *("100 Continue", "200 OK", "204 None", "206 Partial", "301 Moved", "302 Found", "304 Same", "307 X", "308 X"),
    *("400 Bad", "401 Who", "403 No", "404 None", "405 X", "409 X", "411 X", "412 Changed", "416 Range", "418 Tea"),
    *("429 Busy", "500 Bug", "501 X", "503 Busy", "509 X", "599 X", "999 X", "\xb2\xb2\xb2 OK", "", "-1 X", "20 X"),
)

CONTENT = b"0123456789" * 50
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


def damaged_answer(status: str, headers: dict[str, str], body: bytes, chance: random.Random) -> bytes:
    """An answer with another status, other headers, another body, or damaged bytes."""
    headers, kind = {"Content-Length": str(len(body)), "Connection": "close", **headers}, chance.random()
    if kind < 0.25:
        status = chance.choice(STATUSES)
    if 0.2 < kind < 0.7:
        for name in chance.sample(list(HEADERS), chance.choice((1, 1, 2, 4))):
            headers[name] = chance.choice(HEADERS[name])
    if 0.6 < kind < 0.75:
        headers.pop(chance.choice(list(headers)))
    if 0.7 < kind < 0.85:
        body = mutated(body, chance)
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    answer = "\r\n".join(lines).encode("latin-1") + body
    return mutated(answer, chance) if kind > 0.85 else answer


class DamagedAnswers:
    """Answers of a web server or an S3 server on loopback, some of them damaged."""

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme

    def base(self, folder: Path) -> bytes:
        self._servers = contextlib.ExitStack()
        self._chance, self._count = random.Random(), 0
        address = self._servers.enter_context(raw_server(self._answer))
        if self.scheme == "s3":
            os.environ["AWS_ENDPOINT_URL"] = address
        uri = f"{address}/folder" if self.scheme == "https" else "s3://bucket/folder"
        self._store = open_store(uri, StorageOptions(retries=1, threads=2))
        return json.dumps(HEADERS).encode()

    def end(self) -> None:
        self._servers.close()

    def attempt(self, folder: Path, data: bytes) -> None:
        self._chance, self._count = random.Random(data), 0
        store, written = self._store, self.scheme == "s3"
        entry = Entry("part", len(CONTENT), f'"{MD5}"' if self.scheme == "https" else MD5)
        attempts: list[Callable[[], object]] = [
            lambda: store.stat("part"),
            lambda: store.get("part", folder / "got"),
            lambda: store.read("whole"),
            lambda: store.read_range(entry, 0, len(CONTENT)),
        ]
        if written:
            attempts += [
                lambda: list(store.list("")),
                lambda: store.put("x", CONTENT, if_none_match=True),
                lambda: store.put("x", CONTENT, if_match="e"),
                lambda: store.delete("x"),
                lambda: store.delete_drafts(lambda key: True),
            ]
        raised = []
        for each in self._chance.sample(attempts, 3):
            try:
                each()
            except JobError as error:
                raised.append(error)
            except PreconditionFailed:  # of a conditional request, or of an object that changes
                pass
        assert all(error.exit_code in (65, 75, 77, 78) for error in raised), raised
        if raised:
            raise raised[0]

    def _answer(self, method: str, path: str) -> bytes:
        self._count += 1
        headers, status, body = {"ETag": f'"{MD5}"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, "200 OK", b""
        if method == "HEAD":
            headers |= {"Content-Length": str(len(CONTENT)), "x-amz-checksum-type": "FULL_OBJECT"}
        elif method == "GET" and ("list-type" in path or "uploads" in path):
            body = _LISTING if "list-type" in path else _UPLOADS
        elif method == "GET" and "whole" in path:
            body = CONTENT
        elif method == "GET":
            probe = self.scheme == "https" and self._count % 2 == 1
            body, status = CONTENT[:1] if probe else CONTENT, "206 Partial"
            headers["Content-Range"] = f"bytes 0-{len(body) - 1}/{len(CONTENT)}"
        if self._chance.random() < 0.3:
            headers["Content-Length"] = headers.get("Content-Length", str(len(body)))
            return b"HTTP/1.1 " + f"{status}\r\n".encode() + _lines(headers) + body
        return damaged_answer(status, headers, body, self._chance)


def _lines(headers: dict[str, str]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1") + b"\r\n"


_LISTING = (
    b'<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name>'
    b"<IsTruncated>false</IsTruncated><KeyCount>1</KeyCount><Contents><Key>folder/x</Key><Size>5</Size>"
    b"<LastModified>2024-01-01T00:00:00Z</LastModified><ETag>&quot;e&quot;</ETag></Contents></ListBucketResult>"
)
_UPLOADS = (
    b'<?xml version="1.0"?><ListMultipartUploadsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    b"<Bucket>bucket</Bucket><IsTruncated>false</IsTruncated><Upload><Key>folder/x</Key><UploadId>u</UploadId>"
    b"<Initiated>2024-01-01T00:00:00Z</Initiated></Upload></ListMultipartUploadsResult>"
)
