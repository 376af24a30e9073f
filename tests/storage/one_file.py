"""One file on a loopback web server, which is downloaded in many small chunks."""

import hashlib
import os
from pathlib import Path

import pytest

from inat_job.storage import StorageOptions, open_store, partial_download, retry
from inat_job.storage.partial_download import ChunkPlan
from tests.harness.web_sites import Site

CHUNK = 100_000
DATA = os.urandom(1_050_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
OPTIONS = StorageOptions(threads=4, retries=4)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    """Many small chunks, short waits, and one file to download."""
    monkeypatch.setattr(partial_download, "plan_chunks", lambda size: ChunkPlan(size, CHUNK))
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)
    site.files["x.zip"] = DATA
    site.etags["x.zip"] = '"v1"'


def get_file(site: Site, path: Path, key: str = "x.zip", **more: object) -> object:
    return open_store(site.url, OPTIONS).get(key, path, **more)  # type: ignore[arg-type]
