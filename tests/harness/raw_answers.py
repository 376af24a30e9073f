"""A loopback server whose answers are bytes as given, valid HTTP or not."""

import contextlib
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Answer = Callable[[str, str], bytes]
"""The bytes of the answer to a request, by its method and its path with the query."""


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128


@contextmanager
def raw_server(answer: Answer) -> Iterator[str]:
    """Answer each request with `answer`, and close its connection; yields the address."""

    class Handler(socketserver.StreamRequestHandler):
        timeout = 5.0

        def handle(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                method, path, _ = self.rfile.readline().decode("latin-1").split(" ", 2)
                length = 0
                while (line := self.rfile.readline().lower().strip()) != b"":
                    if line.startswith(b"content-length:"):
                        length = int(line.partition(b":")[2])
                    if line.startswith(b"expect:"):
                        self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                self.rfile.read(length)
                self.wfile.write(answer(method, path))

    with _Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def encode_answer(status: str = "200 OK", body: bytes = b"", length: object = None, **headers: str) -> bytes:
    """An answer with a body; `length` replaces its Content-Length, underscores in names of headers are dashes."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
