"""A loopback web server that misbehaves on demand."""

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest

from tests.harness import loopback


@dataclass
class Site:
    """What a loopback web server serves, how it misbehaves, and how many bytes it has sent.

    Each request for more than one byte takes the next of the `faults`: a status, "reset", "truncate", "stall", "flip"
    (a byte), "whole" (the object instead of the range), "page" (a page of HTML), "shifted" (another range), "untagged"
    (no ETag) or, for none, "". `statuses` answers requests for a name with a status; `before` is called with each
    request's Range header.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    more: dict[str, str] = field(default_factory=dict)  # headers of every object
    statuses: dict[str, int] = field(default_factory=dict)
    ranges: bool = True
    lengths: bool = True
    retry_after: str = "0"
    faults: list[str] = field(default_factory=list)
    sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    requests: list[tuple[str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    before: Callable[[str], None] = lambda asked: None
    pace_s: float = 0.0  # between two blocks of 64 KiB
    url: str = ""


PAGE = b"<!DOCTYPE html><html><body>Please log in to this network.</body></html>"


class _Handler(loopback.Handler):
    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        site, name = self.site, urlsplit(self.path).path.lstrip("/")
        asked = self.headers.get("Range", "")
        site.requests.append((self.path, asked))
        site.headers.append(dict(self.headers))
        site.before(asked)
        probe = asked == "bytes=0-0"
        fault = site.faults.pop(0) if site.faults and not probe else ""
        if fault.isdigit():
            return self._refuse(int(fault))
        if fault == "reset":
            return self._reset()
        if name in site.statuses or name not in site.files:
            return self._refuse(site.statuses.get(name, 404))
        if fault == "page":
            return self._serve(PAGE, "", "", "")
        etag = site.etags.get(name, "")
        if self.headers.get("If-Match", etag) != etag:
            return self._refuse(412)
        return self._serve(site.files[name], asked, "" if fault == "untagged" else etag, fault)

    def _serve(self, data: bytes, asked: str, etag: str, fault: str) -> None:
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", asked) if self.site.ranges and fault != "whole" else None
        start = int(span[1]) if span else 0
        end = min(int(span[2]) + 1, len(data)) if span and span[2] else len(data)
        if span and start >= len(data):
            return self._refuse(416)
        if fault == "shifted" and start > 0:
            start, end = start - 1, end - 1
        self.send_response(206 if span else 200)
        if span:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        for name, value in {"ETag": etag, **self.site.more}.items() if etag else ():
            self.send_header(name, value)
        if self.site.lengths:
            self.send_header("Content-Length", str(end - start))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        body = data[start:end]
        if fault == "flip":
            body = body[: len(body) // 2] + bytes([body[len(body) // 2] ^ 1]) + body[len(body) // 2 + 1 :]
        self._send(body, fault)
        if not self.site.lengths or fault:
            self.close_connection = True
        return None

    def _send(self, body: bytes, fault: str) -> None:
        cut = len(body) // 2 if fault in ("truncate", "stall") else len(body)
        try:
            for at in range(0, cut, 65536):
                block = body[at : min(at + 65536, cut)]
                with self.site.lock:  # counted before it is sent, so that a client never sees too few
                    self.site.sent += len(block) if len(body) > 1 else 0  # a stat's single byte is not counted
                self.wfile.write(block)
                time.sleep(self.site.pace_s)
            if fault == "stall":
                time.sleep(3)
        except OSError:
            self.close_connection = True

    def _refuse(self, status: int) -> None:
        self.answer(status, **({"Retry_After": self.site.retry_after} if status in (429, 503) else {}))

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # closed by the reset
            super().finish()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A running web server."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    site = Site()
    with loopback.serve(type("Handler", (_Handler,), {"site": site})) as url:
        site.url = url
        yield site
