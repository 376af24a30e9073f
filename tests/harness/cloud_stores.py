"""Google Cloud Storage and Azure Blob Storage on loopback: a front of an S3 server, and Microsoft's own azurite.

No emulator on PyPI or npm serves the writes of Google's XML API, which obstore uses: fake-gcs-server and
gcp-storage-emulator answer them with errors. That API is S3's but for its headers and its generations
(https://cloud.google.com/storage/docs/xml-api/overview), so the front translates both. Azurite needs node and:
npm install --global azurite
"""

import base64
import email.utils
import hashlib
import hmac
import http.client
import itertools
import json
import re
import shutil
import socket
import subprocess
import threading
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.harness import loopback
from tests.harness.stores import S3Output, credentials, moto_server, s3_endpoint, wait_until_open

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's account and its key, which are the same everywhere and documented:
https://learn.microsoft.com/azure/storage/common/storage-connect-azurite"""
_SIGNED = "AWS4-HMAC-SHA256 Credential=test/20200101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
"""What moto, which verifies no signature, takes for a login."""
_NOT_FORWARDED = ("authorization", "connection", "content-length", "expect", "transfer-encoding")


@dataclass
class GoogleFront:
    """Translates Google's XML API into S3's at `upstream`, a moto server.

    `faults` maps a method to the faults of its next requests: a status refuses it, "lose" drops the answer, "flip"
    changes a byte of the request's body. `seen` lists (method, path).
    """

    upstream: str
    faults: dict[str, list[str]] = field(default_factory=dict)
    seen: list[tuple[str, str]] = field(default_factory=list)
    generations: dict[str, int] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1_700_000_000_000_000))
    writing: threading.Lock = field(default_factory=threading.Lock)


class _FrontHandler(loopback.Handler):
    protocol_version = "HTTP/1.1"
    front: GoogleFront

    def _handle(self) -> None:
        front, (path, query) = self.front, urlsplit(self.path)[2:4]
        path = quote(unquote(path))  # moto does not decode all that obstore encodes
        self.path = f"{path}?{query}" if query else path
        front.seen.append((self.command, self.path))
        body = self.body()
        fault = next(iter(front.faults.get(self.command, [])), "")
        if fault:
            front.faults[self.command].pop(0)
        if fault.isdigit():
            return self._answer(int(fault), {}, b"")
        body = body[:-1] + bytes([body[-1] ^ 1]) if fault == "flip" and body else body
        names = parse_qs(query, keep_blank_values=True)
        is_read = self.command == "GET" or {"partNumber", "uploads"} & {*names}
        is_read = is_read or (self.command == "DELETE" and "uploadId" in names)
        status, headers, answer = self._forward(body) if is_read else self._in_turn(path, body)
        if fault == "lose":
            self.close_connection = True
            return None
        return self._answer(status, headers, answer)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle

    def _in_turn(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """A write, or a HEAD, whose generation must be that of its ETag."""
        with self.front.writing:
            status, headers, answer = self._forward(body) if self.command == "HEAD" else self._write(path, body)
            if path in self.front.generations:
                headers["x-goog-generation"] = str(self.front.generations[path])
        return status, headers, answer

    def _write(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        asked = self.headers.get("x-goog-if-generation-match")
        if asked is not None and asked != str(self.front.generations.get(path, 0)):
            return 412, {}, b"<Error><Code>PreconditionFailed</Code></Error>"
        if self.command == "DELETE" and path not in self.front.generations:
            return 404, {}, b"<Error><Code>NoSuchKey</Code></Error>"
        status, headers, answer = self._forward(body)
        if status < 300 and self.command == "DELETE":
            del self.front.generations[path]
        elif status < 300:
            self.front.generations[path] = next(self.front.numbers)
        return status, headers, answer

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        host = urlsplit(self.front.upstream)
        link = http.client.HTTPConnection(str(host.hostname), host.port)
        headers = {
            name.replace("x-goog-", "x-amz-"): value
            for name, value in ((name.lower(), value) for name, value in self.headers.items())
            if name not in _NOT_FORWARDED
        }
        headers["authorization"] = _SIGNED
        try:
            link.request(self.command, self.path, body or None, headers)
            answer = link.getresponse()
            kept = {name.lower().replace("x-amz-", "x-goog-"): value for name, value in answer.getheaders()}
            return answer.status, kept, answer.read()
        finally:
            link.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        length = headers.get("content-length", str(len(body))) if self.command == "HEAD" else str(len(body))
        for name, value in {**headers, "content-length": length}.items():
            if name not in ("connection", "transfer-encoding", "date", "server"):
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def google_front(upstream: str, folder: Path) -> Iterator[tuple[GoogleFront, dict[str, str]]]:
    """A front of the moto server `upstream`, and the environment by which obstore finds it; a bucket is one of moto's.

    No other server takes its requests, whose signature is made up.
    """
    front = GoogleFront(upstream)
    with loopback.serve(type("Handler", (_FrontHandler,), {"front": front})) as url:
        file = folder / "service-account.json"
        keys = {"gcs_base_url": url, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
        file.write_text(json.dumps(keys))
        yield front, {"GOOGLE_SERVICE_ACCOUNT": str(file)}


def has_azurite() -> bool:
    """Whether azurite is installed."""
    return shutil.which("azurite-blob") is not None


@contextmanager
def azurite() -> Iterator[dict[str, str]]:
    """The environment by which obstore finds an azurite that is started for the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = f"azurite-blob --inMemoryPersistence --disableTelemetry --silent --blobPort {port} --skipApiVersionCheck"
    server = subprocess.Popen(words.split(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until_open(port)
        yield {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": f"http://127.0.0.1:{port}/{ACCOUNT}",
        }
    finally:
        server.terminate()
        server.wait()


def create_container(endpoint: str, name: str) -> None:
    """Create a container in azurite, which obstore can't; signed with the account's key
    (https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key).
    """
    date, version = email.utils.formatdate(usegmt=True), "2021-08-06"
    path = f"/{ACCOUNT}{urlsplit(endpoint).path}/{name}"
    text = "PUT" + 12 * "\n" + f"x-ms-date:{date}\nx-ms-version:{version}\n{path}\nrestype:container"
    signature = base64.b64encode(hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()).decode()
    headers = {"x-ms-date": date, "x-ms-version": version, "Authorization": f"SharedKey {ACCOUNT}:{signature}"}
    url = f"{endpoint}/{name}?restype=container"
    assert re.match(r"http://127\.0\.0\.1:", url)
    with urllib.request.urlopen(urllib.request.Request(url, method="PUT", headers=headers)) as answer:
        assert answer.status == 201


class GoogleOutput(S3Output):
    """Runs in a bucket behind the front, accessed directly."""

    scheme = "gs"


class AzureOutput:
    """Runs in a new container, accessed with obstore itself."""

    def __init__(self, environment: dict[str, str]) -> None:
        import obstore
        from obstore.store import AzureStore

        self.bucket = f"inat-harness-{uuid.uuid4().hex[:12]}"
        create_container(environment["AZURE_STORAGE_ENDPOINT"], self.bucket)
        config: Any = {name.lower(): value for name, value in environment.items()}
        self._client = AzureStore(self.bucket, config=config, client_options={"allow_http": True})
        self._obstore = obstore
        self.uri = f"az://{self.bucket}/runs"

    def put(self, key: str, path: Path) -> str:
        """Store a file beside the runs; returns its URI."""
        self._obstore.put(self._client, key, path)
        return f"az://{self.bucket}/{key}"

    def read(self, run: str, name: str) -> bytes | None:
        try:
            return bytes(self._obstore.get(self._client, f"runs/{run}/{name}").bytes())
        except FileNotFoundError:
            return None

    def names(self, run: str) -> list[str]:
        found = self._obstore.list(self._client, f"runs/{run}").collect()
        return sorted(str(each["path"])[len(f"runs/{run}/") :] for each in found)

    def delete(self, run: str) -> None:
        for name in self.names(run):
            self._obstore.delete(self._client, f"runs/{run}/{name}")


@contextmanager
def cloud_output(kind: str, folder: Path) -> Iterator[tuple[S3Output | AzureOutput, dict[str, str]]]:
    """A place for runs in S3 (s3), behind Google's API (gs) or in azurite (az), and the environment that names it."""
    if kind == "az":
        with azurite() as environment:
            yield AzureOutput(environment), environment
    elif kind == "gs":
        with moto_server() as upstream, google_front(upstream, folder) as (_, environment):
            yield GoogleOutput(upstream), environment
    else:
        with s3_endpoint() as endpoint:
            yield S3Output(endpoint), {"AWS_ENDPOINT_URL": endpoint, **credentials()}
