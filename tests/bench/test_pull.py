"""The plain download brings the whole object, over the web and from a bucket."""

import http.server
import threading
from pathlib import Path

import pytest

from inat_job.bench import pull
from inat_job.storage import Entry, open_store

CONTENT = bytes(range(256)) * 400


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was downloaded, before it is deleted."""
    found: list[bytes] = []
    unlink = Path.unlink

    def look(path: Path, missing_ok: bool = False) -> None:
        found.append(path.read_bytes())
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", look)
    monkeypatch.setattr(pull, "RANGE", 1000)
    return found


def test_from_a_bucket_in_ranges(s3_bucket: str, tmp_path: Path, kept: list[bytes]) -> None:
    store = open_store(f"s3://{s3_bucket}")
    entry = store.put("a b.zip", CONTENT)
    pull.plain(store, entry, tmp_path / "x")
    assert kept == [CONTENT]


def test_from_the_web_in_one_stream(tmp_path: Path, kept: list[bytes]) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(CONTENT)

        def log_message(self, *words: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        store = open_store(f"http://127.0.0.1:{server.server_port}/there")
        pull.plain(store, Entry("x.zip", len(CONTENT), ""), tmp_path / "x")
        server.shutdown()
    assert kept == [CONTENT]
