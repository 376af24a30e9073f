"""A reverse proxy for S3 that slows down chosen requests, and records when each request was done.

It also serves EC2's metadata, with a Spot notice if one is set.
"""

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.harness import loopback

_SLICES = 50


@dataclass
class SlowProxy:
    """`slow` maps patterns of "METHOD /path" to seconds: for an upload a delay, for a download its duration."""

    upstream: str
    url: str = ""
    slow: dict[str, float] = field(default_factory=dict)
    done: list[tuple[float, str]] = field(default_factory=list)
    notice: bytes = b""

    def seconds(self, request: str) -> float:
        return next((seconds for pattern, seconds in self.slow.items() if re.search(pattern, request)), 0.0)

    def last(self, pattern: str, since: float) -> float | None:
        """Seconds from `since` to the end of the last request that matches."""
        times = [at - since for at, request in self.done if re.search(pattern, request) and at > since]
        return max(times, default=None)


class _Handler(loopback.Handler):
    protocol_version = "HTTP/1.1"
    proxy: SlowProxy

    def _any(self) -> None:
        request = f"{self.command} {self.path}"
        if self.path.startswith("/latest/"):
            return self._metadata()
        seconds = self.proxy.seconds(request)
        body = self.body()
        if self.command == "PUT":
            time.sleep(seconds)
        status, headers, answer = self.forward(self.proxy.upstream, body)
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "date", "server"):
                self.send_header(name, value)
        if not any(name.lower() == "content-length" for name, _ in headers):
            self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        with contextlib.suppress(OSError):  # a stopped client disconnects early
            self._trickle(answer, seconds if self.command == "GET" else 0.0)
            self.proxy.done.append((time.monotonic(), request))
        return None

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _any

    def _metadata(self) -> None:
        token = self.command == "PUT"
        self.answer(200 if token or self.proxy.notice else 404, b"token" if token else self.proxy.notice)

    def _trickle(self, answer: bytes, seconds: float) -> None:
        size = len(answer) // _SLICES + 1 if seconds else len(answer) or 1
        for start in range(0, len(answer), size):
            self.wfile.write(answer[start : start + size])
            time.sleep(seconds / _SLICES)


def slow_proxy(upstream: str) -> Iterator[SlowProxy]:
    """A proxy that serves until the generator is closed."""
    proxy = SlowProxy(upstream)
    with loopback.serve(type("Handler", (_Handler,), {"proxy": proxy})) as url:
        proxy.url = url
        yield proxy
