"""The subset of HTTP/1.1 that a proxy in front of S3 needs: heads, bodies of a known length, and whole answers."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote

BLOCK = 64 * 1024
_HEAD_LIMIT = 1024 * 1024
_HOP_BY_HOP = frozenset({"connection", "expect", "keep-alive", "transfer-encoding"})


@dataclass
class Head:
    """A request's or an answer's first line and headers, in their order."""

    first: str
    headers: list[tuple[str, str]] = field(default_factory=list)

    def __getitem__(self, name: str) -> str:
        """A header's value, or an empty string."""
        return next((value for key, value in self.headers if key.lower() == name), "")

    @property
    def length(self) -> int:
        """Content-Length, 0 if it is missing."""
        return int(self["content-length"] or 0)

    @property
    def method(self) -> str:
        """A request's method."""
        return self.first.partition(" ")[0]

    @property
    def line(self) -> str:
        """A request as faults match it: `METHOD /bucket/key?query`, unquoted."""
        return unquote(self.first.rpartition(" ")[0])

    @property
    def status(self) -> int:
        """An answer's status."""
        return int(self.first.split()[1])

    def encoded(self, **extra: str) -> bytes:
        """The bytes of the head without hop-by-hop headers, plus `extra` headers."""
        kept = [(name, value) for name, value in self.headers if name.lower() not in _HOP_BY_HOP]
        added = [(name.replace("_", "-"), value) for name, value in extra.items()]
        lines = [self.first, *(f"{name}: {value}" for name, value in [*kept, *added])]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def read_head(reader: asyncio.StreamReader) -> Head | None:
    """The next head, or None if the peer has closed the connection. Raises ValueError for anything but HTTP."""
    try:
        text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    first, *lines = text.rstrip("\r\n").split("\r\n")
    pairs = [line.split(":", 1) for line in lines]
    return Head(first, [(name.strip(), value.strip()) for name, value in pairs])


async def exchange(host: str, port: int, request: bytes, head_only: bool) -> tuple[Head, bytes]:
    """Send a whole request, which must have `Connection: close`, and read the whole answer."""
    reader, writer = await asyncio.open_connection(host, port, limit=_HEAD_LIMIT)
    try:
        writer.write(request)
        await writer.drain()
        answer = await read_head(reader)
        while answer and answer.status == 100:
            answer = await read_head(reader)
        if answer is None:
            raise ConnectionError("The server hung up.")
        body = b"" if head_only else await _body(reader, answer)
        return answer, body
    finally:
        writer.close()


async def send_part(host: str, port: int, request: bytes) -> None:
    """Send the beginning of a request and hang up, like a client that dies in the middle."""
    _, writer = await asyncio.open_connection(host, port)
    writer.write(request)
    await writer.drain()
    writer.close()


def spans(total: int) -> Iterator[tuple[int, int]]:
    """The spans of a body's blocks, one of which begins exactly in the middle."""
    middle = total // 2
    for start, end in ((0, middle), (middle, total)):
        for at in range(start, end, BLOCK):
            yield at, min(at + BLOCK, end)


async def _body(reader: asyncio.StreamReader, answer: Head) -> bytes:
    if "chunked" in answer["transfer-encoding"].lower():
        return await _chunks(reader)
    if answer["content-length"]:
        return await reader.readexactly(answer.length)
    return await reader.read()


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int((await reader.readline()).split(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readline()
    return body
