"""Loopback web servers that misbehave on demand, and a proxy that does so in front of S3."""

import contextlib
import http.client
import http.server
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest


@dataclass
class Site:
    """What a loopback web server serves, how it misbehaves, and how much it has sent.

    `faults` are taken one by one by requests for more than a byte: a status, "reset", "truncate", "stall"; "" for none.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    ranges: bool = True
    lengths: bool = True
    retry_after: str = "0"
    faults: list[str] = field(default_factory=list)
    sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    requests: list[tuple[str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    before: Callable[[str], None] = lambda path: None
    pace_s: float = 0.0  # between two blocks of 64 KiB
    url: str = ""


class _Handler(http.server.BaseHTTPRequestHandler):
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
        etag = site.etags.get(name, "")
        if self.headers.get("If-Match", etag) != etag:
            return self._refuse(412)
        return self._serve(site.files[name], asked, etag, fault)

    def _serve(self, data: bytes, asked: str, etag: str, fault: str) -> None:
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", asked) if self.site.ranges else None
        start = int(span[1]) if span else 0
        end = min(int(span[2]) + 1, len(data)) if span and span[2] else len(data)
        if span and start >= len(data):
            return self._refuse(416)
        self.send_response(206 if span else 200)
        if span:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        if etag:
            self.send_header("ETag", etag)
        if self.site.lengths:
            self.send_header("Content-Length", str(end - start))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        self._send(data[start:end], fault)
        if not self.site.lengths or fault:
            self.close_connection = True
        return None

    def _send(self, body: bytes, fault: str) -> None:
        cut = len(body) // 2 if fault in ("truncate", "stall") else len(body)
        try:
            for at in range(0, cut, 65536):
                block = body[at : min(at + 65536, cut)]
                with self.site.lock:  # before it is sent, so that who has received it finds it counted
                    self.site.sent += len(block) if len(body) > 1 else 0  # a look doesn't wait for its byte
                self.wfile.write(block)
                time.sleep(self.site.pace_s)
            if fault == "stall":
                time.sleep(3)
        except OSError:
            self.close_connection = True

    def _refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        if status in (429, 503):
            self.send_header("Retry-After", self.site.retry_after)
        self.end_headers()

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the reset closed it
            super().finish()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that leaves early is what some tests are about

    def shutdown_request(self, request: Any) -> None:
        with contextlib.suppress(OSError):
            super().shutdown_request(request)


def _serve(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    site = Site()
    for url in _serve(type("Handler", (_Handler,), {"site": site})):
        site.url = url
        yield site


@dataclass
class Proxy:
    """A reverse proxy that keeps the Host header, so that signatures stay valid.

    `faults` maps a method to what happens to its next requests: a status refuses, "truncate" cuts the answer's body
    short, "flip" changes a byte of the request's body, "lose" does the request and then loses the answer.
    """

    upstream: str
    faults: dict[str, list[str]] = field(default_factory=dict)
    codes: dict[str, str] = field(default_factory=dict)
    seen: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""


class _ProxyHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def _any(self) -> None:
        proxy = self.proxy
        proxy.seen.append((self.command, self.path))
        body = self._request_body()
        queue = proxy.faults.get(self.command, [])
        fault = queue.pop(0) if queue else ""
        if fault.isdigit():
            return self._refuse(int(fault))
        if fault == "flip" and body:
            body = body[:-1] + bytes([body[-1] ^ 1])
        status, headers, answer = self._forward(body)
        if fault == "lose":
            self.close_connection = True
            return None
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                self.send_header(name, value)
        length = {name.lower(): value for name, value in headers}.get("content-length", len(answer))
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer[: len(answer) // 2] if fault == "truncate" else answer)
        self.close_connection = fault == "truncate"
        return None

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _any

    def _request_body(self) -> bytes:
        length = int(self.headers.get("Content-Length", 0))
        return self.rfile.read(length)

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        host = urlsplit(self.proxy.upstream)
        link = http.client.HTTPConnection(str(host.hostname), host.port)
        try:
            link.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    link.putheader(name, value)
            link.endheaders(body or None)
            answer = link.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            link.close()

    def _refuse(self, status: int) -> None:
        code = self.proxy.codes.get(str(status), "")
        body = f"<Error><Code>{code}</Code><Message>made up</Message></Error>".encode() if code else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def s3_proxy(s3_server: str, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """AWS_ENDPOINT_URL set to a faulty proxy in front of the S3 server."""
    proxy = Proxy(s3_server)
    for url in _serve(type("Handler", (_ProxyHandler,), {"proxy": proxy})):
        proxy.url = url
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        yield proxy


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of loopback where nobody listens; bound, so that nobody else will."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])
