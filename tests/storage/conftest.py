"""A loopback web server and a proxy in front of S3, both of which misbehave on demand; buckets of other clouds."""

import socket
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from tests.harness import loopback
from tests.harness.cloud_stores import GoogleFront, GoogleOutput, azurite, create_container, google_front, has_azurite
from tests.harness.stores import moto_server
from tests.harness.web_sites import PAGE, site  # noqa: F401  # a fixture


@dataclass
class S3Proxy:
    """A reverse proxy that keeps the Host header, so that signatures stay valid.

    `faults` maps a method to the faults of its next requests: a status refuses it, "truncate" cuts the answer's body
    short, "flip" changes a byte of the request's body, "lose" forwards the request and drops the answer, "page" answers
    with a page of HTML, "status 200", "other range", "other etag" and "other byte" change the answer. `codes` maps
    a status to the error code in its body; `seen` lists (method, path) of every request.
    """

    upstream: str
    faults: dict[str, list[str]] = field(default_factory=dict)
    codes: dict[str, str] = field(default_factory=dict)
    seen: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""


class _ProxyHandler(loopback.Handler):
    protocol_version = "HTTP/1.1"
    proxy: S3Proxy

    def _handle(self) -> None:
        proxy = self.proxy
        proxy.seen.append((self.command, self.path))
        body = self.body()
        queue = proxy.faults.get(self.command, [])
        fault = queue.pop(0) if queue else ""
        if fault.isdigit():
            return self._refuse(int(fault))
        if fault == "flip" and body:
            body = body[:-1] + bytes([body[-1] ^ 1])
        if fault == "page":
            return self._refuse(200, PAGE)
        status, headers, answer = _changed(fault, *self.forward(proxy.upstream, body))
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

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle

    def _refuse(self, status: int, body: bytes = b"") -> None:
        if code := self.proxy.codes.get(str(status), ""):
            body = f"<Error><Code>{code}</Code><Message>made up</Message></Error>".encode()
        self.answer(status, body)


def _changed(
    fault: str, status: int, headers: list[tuple[str, str]], body: bytes
) -> tuple[int, list[tuple[str, str]], bytes]:
    """An answer after a fault of its head or of a byte."""
    if fault == "status 200":
        return 200, [each for each in headers if each[0].lower() != "content-range"], body
    if fault == "other byte" and body:
        return status, headers, body[:-1] + bytes([body[-1] ^ 1])
    changed = {"other range": ("content-range", "bytes 7-9/10"), "other etag": ("etag", '"0123"')}.get(fault, ("", ""))
    return status, [(name, changed[1] if name.lower() == changed[0] else value) for name, value in headers], body


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what asks the S3 server, which `make test-all` runs against a real one as well."""
    fixtures: Sequence[str] = getattr(item, "fixturenames", ())
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    if "s3_server" in fixtures or any(str(each).split()[:1] == ["s3"] for each in parameters):
        item.add_marker("s3")


@pytest.fixture
def s3_proxy(s3_server: str, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    """AWS_ENDPOINT_URL set to a faulty proxy in front of the S3 server."""
    proxy = S3Proxy(s3_server)
    with loopback.serve(type("Handler", (_ProxyHandler,), {"proxy": proxy})) as url:
        proxy.url = url
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        yield proxy


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A loopback port without a server; bound, so that no other process opens one."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])


@pytest.fixture(params=["connect", "handshake", "answer"])
def silent_address(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that is silent from one phase on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        address = listening.getsockname()
        queued = [socket.socket() for _ in range(3 if request.param == "connect" else 0)]
        for each in queued:  # a full queue answers no SYN
            each.setblocking(False)
            each.connect_ex(address)
        scheme = "http" if request.param == "answer" else "https"
        yield f"{scheme}://127.0.0.1:{address[1]}"
        for each in queued:
            each.close()


@pytest.fixture(scope="session")
def _front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GoogleFront, dict[str, str]]]:
    with moto_server() as upstream, google_front(upstream, tmp_path_factory.mktemp("google")) as found:
        yield found


@pytest.fixture
def google(_front: tuple[GoogleFront, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> GoogleFront:
    """The front of Google's API, which GOOGLE_* variables name."""
    pytest.importorskip("obstore")
    for name, value in _front[1].items():
        monkeypatch.setenv(name, value)
    return _front[0]


@pytest.fixture
def google_bucket(google: GoogleFront) -> str:
    """The name of a fresh bucket of gs://."""
    google.faults.clear()
    return GoogleOutput(google.upstream).bucket


@pytest.fixture(scope="session")
def _azurite() -> Iterator[dict[str, str]]:
    pytest.importorskip("obstore")
    if not has_azurite():
        pytest.skip("azurite is not installed: npm install --global azurite")
    with azurite() as environment:
        yield environment


@pytest.fixture
def azure_container(_azurite: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a fresh container of az://, whose account AZURE_* variables name."""
    for name, value in _azurite.items():
        monkeypatch.setenv(name, value)
    container = f"inat-test-{uuid.uuid4().hex[:16]}"
    create_container(_azurite["AZURE_STORAGE_ENDPOINT"], container)
    return container
