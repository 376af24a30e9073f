"""A reverse proxy in front of an S3 server that injects the `faults` armed on it.

It keeps the Host header, so that signatures stay valid. Like S3, and unlike moto, it refuses a body without its
Content-MD5, so that a byte flipped in transit is answered alike everywhere.
"""

import asyncio
import base64
import contextlib
import hashlib
import re
import socket
import struct
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from tests.harness import wire
from tests.harness.faults import ANSWERS, BODIES, HEADS, Fault, Faults
from tests.harness.wire import Head

_BAD_DIGEST = (400, "BadDigest", "The Content-MD5 you specified did not match what we received.")
_REBIND_S = 0.05


class _Cut(Exception):
    """The connection must be cut here."""


class Proxy:
    """A context manager that serves from a background thread; `url` is its address."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = (str(parts.hostname), int(parts.port or 80))
        self.faults = Faults()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._deaf: tuple[socket.socket, ...] = ()
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        for each in self._deaf:
            each.close()

    def wait_until_open(self, timeout: float = 120.0) -> None:
        """Wait for the end of an outage. Raises OSError if it lasts longer than `timeout`."""
        until = time.monotonic() + timeout
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(_REBIND_S)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, backlog=128)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._hang_up()
        for task in (pending := asyncio.all_tasks() - {asyncio.current_task()}):
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    def _hang_up(self) -> None:
        if self._server:
            self._server.close()
        for writer in set(self._writers):
            _reset(writer)

    async def _outage(self, seconds: float) -> None:
        """Reset all connections, and refuse new ones."""
        self._hang_up()
        await asyncio.sleep(seconds)
        while True:
            try:
                return await self._listen()
            except OSError:
                await asyncio.sleep(_REBIND_S)

    def _deafen(self) -> None:
        """Reset all connections, and answer no new one: Linux drops the SYN to a socket whose queue is full."""
        self._hang_up()
        listening, filling = socket.socket(), socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self._port))
        listening.listen(0)
        filling.connect(("127.0.0.1", self._port))
        self._deaf = (listening, filling)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while request := await wire.read_head(reader):
                await self._answer(request, reader, writer)
        except _Cut:
            _reset(writer)
        except (OSError, asyncio.IncompleteReadError, ValueError, asyncio.CancelledError):
            pass  # the client hung up, or the proxy is closing
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, request: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fault = self.faults.pick(request.line)
        await self._before(fault)
        if request["expect"]:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        upload = fault if fault and request.length and fault.kind in BODIES else None
        body = await self._receive(request, reader, upload)
        if fault and fault.kind in ANSWERS:
            await _refuse(writer, request, ANSWERS[fault.kind])
        elif not _has_digest(request, body):
            await _refuse(writer, request, _BAD_DIGEST)
        else:
            rotten = upload and upload.kind == "rot"
            body = _flipped(body, len(body) // 2) if rotten else body
            message = request.encoded(Connection="close") + body
            answer, data = await wire.exchange(*self._upstream, message, head_only=request.method == "HEAD")
            await self._pass_on(writer, request, answer, data, None if upload else fault)

    async def _before(self, fault: Fault | None) -> None:
        if fault and fault.kind == "latency":
            await asyncio.sleep(fault.amount)
        if fault and fault.kind == "reset":
            raise _Cut
        if fault and fault.kind == "outage":
            task = asyncio.ensure_future(self._outage(fault.amount))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            raise _Cut
        if fault and fault.kind == "deaf":
            self._deafen()
            raise _Cut

    async def _receive(self, request: Head, reader: asyncio.StreamReader, fault: Fault | None) -> bytes:
        body, total = bytearray(), request.length
        for start, end in wire.spans(total):
            if fault and fault.kind == "truncate" and start >= total // 2:
                await wire.send_part(*self._upstream, request.encoded(Connection="close") + body)
                raise _Cut
            block = await reader.readexactly(end - start)
            body += await _faulty(block, start, total, fault)
        return bytes(body)

    async def _pass_on(
        self, writer: asyncio.StreamWriter, request: Head, answer: Head, body: bytes, fault: Fault | None
    ) -> None:
        shaped = fault if fault and fault.kind in (*BODIES, *HEADS) else None
        has_effect = body or (shaped and shaped.kind == "page" and request.method == "HEAD")
        if shaped and not (has_effect and answer.status < 300):
            self.faults.refund(shaped, request.line)
            shaped = None
        if shaped and shaped.kind in HEADS:
            answer, body = _another(shaped.kind, answer, body)
            body = b"" if request.method == "HEAD" else body
        missing = {} if answer["content-length"] or answer.status in (204, 304) else {"Content_Length": str(len(body))}
        writer.write(answer.encoded(**missing))
        for start, end in wire.spans(len(body)):
            if shaped and shaped.kind == "truncate" and start >= len(body) // 2:
                await writer.drain()
                raise _Cut
            writer.write(await _faulty(body[start:end], start, len(body), shaped))
            await writer.drain()


async def _faulty(block: bytes, start: int, total: int, fault: Fault | None) -> bytes:
    """A block of a body of `total` bytes after the fault has changed or delayed it."""
    middle = start == total // 2
    if fault and fault.kind == "throttle":
        await asyncio.sleep(len(block) / fault.amount)
    if fault and fault.kind == "stall" and middle:
        await asyncio.sleep(fault.amount)
    return _flipped(block, 0) if fault and fault.kind == "flip" and middle else block


def _another(kind: str, answer: Head, body: bytes) -> tuple[Head, bytes]:
    """Another answer than the one asked for, which looks intact."""
    if kind == "page":
        page = b"<!DOCTYPE html><html><body>Please log in to this network.</body></html>"
        return Head("HTTP/1.1 200 OK", [("Content-Type", "text/html"), ("Content-Length", str(len(page)))]), page
    if kind == "etag":
        kept = [(name, value) for name, value in answer.headers if name.lower() != "etag"]
        return Head(answer.first, [*kept, ("ETag", f'"{"0" * 32}"')]), body
    kept = [(name, value) for name, value in answer.headers if name.lower() not in ("content-range", "content-length")]
    if kind == "whole" and (span := re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer["content-range"])):
        start, end, size = map(int, span.groups())
        body = bytes(start) + body + bytes(size - end - 1)
    kept.append(("Content-Length", str(len(body))))
    if kind in ("status-200", "whole"):
        return Head("HTTP/1.1 200 OK", kept), body
    return Head(answer.first, [*kept, ("Content-Range", f"bytes 1-{len(body)}/{len(body) + 1}")]), body[1:] + body[:1]


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _has_digest(request: Head, body: bytes) -> bool:
    digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
    return request["content-md5"] in ("", digest)


async def _refuse(writer: asyncio.StreamWriter, request: Head, answer: tuple[int, str, str]) -> None:
    status, code, message = answer
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message>'
        "<RequestId>0000</RequestId></Error>"
    ).encode()
    headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
    writer.write(Head(f"HTTP/1.1 {status} {code}", headers).encoded())
    writer.write(b"" if request.method == "HEAD" else body)
    await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with an RST instead of a FIN, like a machine that is gone."""
    with contextlib.suppress(OSError, AttributeError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextmanager
def proxied(upstream: str, *faults: Fault) -> Iterator[Proxy]:
    """A proxy with these faults armed."""
    with Proxy(upstream) as proxy:
        for fault in faults:
            proxy.faults.arm(fault)
        yield proxy
