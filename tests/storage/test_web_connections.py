"""Connections to web servers: how many, through which proxy, with which certificates, and to whom a login goes."""

import hashlib
import http.server
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from inat_job.errors import ConflictError, TransientError
from inat_job.storage import StorageOptions, open_store, partial_download, retry
from inat_job.storage.partial_download import ChunkPlan
from tests.harness import loopback

DATA = os.urandom(2_000_000)
CHUNK = 50_000


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_download, "plan_chunks", lambda size: ChunkPlan(size, CHUNK))
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "http_proxy", "https_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


class _Server(loopback.Handler):
    """Serves `files` in ranges; `redirects` maps a path to an address. Notes connections, and requests' headers."""

    protocol_version = "HTTP/1.1"
    connections: list[int]
    requests: list[tuple[str, dict[str, str]]]
    redirects: dict[str, str]

    def setup(self) -> None:
        self.connections.append(1)
        super().setup()

    def do_GET(self) -> None:
        self.requests.append((self.path, dict(self.headers)))
        if target := self.redirects.get(self.path):
            return self.answer(302, b"moved", Location=target)
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        start, end = (int(asked.split("-")[0]), int(asked.split("-")[1]) + 1) if asked else (0, len(DATA))
        part = {"Content_Range": f"bytes {start}-{end - 1}/{len(DATA)}"} if asked else {}
        return self.answer(206 if asked else 200, DATA[start:end], ETag='"v1"', **part)


Made = tuple[str, type[_Server]]


@pytest.fixture
def server() -> Iterator[Callable[[], Made]]:
    """Starts web servers; gives the address and the handler, which has its notes."""
    with ExitStack() as running:

        def start() -> Made:
            kind = type("Handler", (_Server,), {"connections": [], "requests": [], "redirects": {}})
            return running.enter_context(loopback.serve(kind)), kind

        yield start


@pytest.mark.parametrize("redirected", [False, True])
def test_ranges_share_connections(server: Callable[[], Made], tmp_path: Path, redirected: bool) -> None:
    url, kind = server()
    other, target = server() if redirected else (url, kind)
    kind.redirects = {"/x.zip": f"{other}/y.zip?signature=1"} if redirected else {}
    store = open_store(url, StorageOptions(threads=4, retries=0))
    store.get("x.zip", tmp_path / "x", sha256=hashlib.sha256(DATA).hexdigest())
    assert len(target.requests) == 1 + len(DATA) // CHUNK
    for each in {kind, target}:
        assert len(each.connections) <= 4


def test_login_goes_to_its_own_host_only(server: Callable[[], Made]) -> None:
    (url, kind), (other, target) = server(), server()
    kind.redirects = {"/a.zip": "/b.zip", "/b.zip": f"{other}/c.zip"}
    assert open_store(url.replace("://", "://me:s3cret@")).read("a.zip") == DATA
    sent = [(path, "Authorization" in headers) for path, headers in kind.requests + target.requests]
    assert sent == [("/a.zip", True), ("/b.zip", True), ("/c.zip", False)]


def test_proxy_of_the_environment_is_used_unless_no_proxy_names_the_host(
    server: Callable[[], Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, kind = server()
    monkeypatch.setenv("http_proxy", proxy.replace("://", "://me:s3cret@"))
    assert open_store("http://nowhere.invalid/d").read("x.zip") == DATA
    [(path, headers)] = kind.requests
    assert path == "http://nowhere.invalid/d/x.zip"
    assert headers["Proxy-Authorization"] == "Basic bWU6czNjcmV0"
    url, direct = server()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert open_store(url).read("x.zip") == DATA
    assert (len(kind.requests), len(direct.requests)) == (1, 1)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "ftp://me:s3cret@127.0.0.1:9"])
def test_proxy_of_another_kind_is_a_wrong_configuration(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(ConflictError, match="proxy .*127.0.0.1:9.* can't be used: check http_proxy") as caught:
        open_store("http://nowhere.invalid").read("x.zip")
    assert "s3cret" not in str(caught.value)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, *plain))
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
def tls_server(certificate: tuple[Path, Path]) -> Iterator[Made]:
    kind = type("Handler", (_Server,), {"connections": [], "requests": [], "redirects": {}})
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as made:
        made.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that refuses the certificate
        made.socket = context.wrap_socket(made.socket, server_side=True)
        threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"https://127.0.0.1:{made.server_port}", kind
        made.shutdown()


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_certificates_of_the_user_are_trusted(
    name: str, tls_server: Made, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, kind = tls_server
    with pytest.raises(ConflictError, match=r"certificate of 127.0.0.1:\d+ is not trusted \(.*\): set SSL_CERT_FILE"):
        open_store(url).read("x.zip")
    monkeypatch.setenv(name, str(certificate[0]))
    store = open_store(url, StorageOptions(retries=0))
    assert store.read("x.zip") == store.read("x.zip") == DATA
    assert len(kind.requests) == 2


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
@pytest.mark.parametrize("content", [None, "no certificate"])
def test_bundle_without_certificates_is_named(
    name: str, content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bundle.pem"
    if content:
        path.write_text(content)
    monkeypatch.setenv(name, str(path))
    with pytest.raises(ConflictError, match=rf"{name} is {path}, which holds no certificates"):
        open_store("https://127.0.0.1:9").read("x.zip")


def test_proxy_that_refuses_is_named(closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", f"127.0.0.1:{closed_port}")
    with pytest.raises(TransientError, match="proxy for nowhere.invalid can't be reached"):
        open_store("https://nowhere.invalid/d", StorageOptions(retries=0)).read("x.zip")
