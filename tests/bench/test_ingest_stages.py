"""The plain download, the limit of `pull`, fetches the whole object from the web and from a bucket."""

from pathlib import Path

import pytest

from inat_job.address import basic_login
from inat_job.bench import ingest_stages
from inat_job.signals import never
from inat_job.storage import Entry, StorageOptions, open_store
from tests.harness import loopback
from tests.harness.made_images import tree, write_zip
from tests.harness.web_sites import Site, site  # noqa: F401  # a fixture

CONTENT = bytes(range(256)) * 400


@pytest.fixture
def downloaded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The contents of downloaded files, read before they are deleted."""
    found: list[bytes] = []
    unlink = Path.unlink

    def read_and_unlink(path: Path, missing_ok: bool = False) -> None:
        found.append(path.read_bytes())
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", read_and_unlink)
    monkeypatch.setattr(ingest_stages, "RANGE", 1000)
    return found


def test_plain_download_from_a_bucket_in_ranges(s3_bucket: str, tmp_path: Path, downloaded: list[bytes]) -> None:
    store = open_store(f"s3://{s3_bucket}")
    entry = store.put("a b.zip", CONTENT)
    ingest_stages.plain_download(store, entry, tmp_path / "x")
    assert downloaded == [CONTENT]


def test_plain_download_from_the_web_in_one_stream(tmp_path: Path, downloaded: list[bytes]) -> None:
    class Handler(loopback.Handler):
        def do_GET(self) -> None:
            self.answer(200, CONTENT)

    with loopback.serve(Handler) as url:
        ingest_stages.plain_download(open_store(f"{url}/data"), Entry("x.zip", len(CONTENT), ""), tmp_path / "x")
    assert downloaded == [CONTENT]


def test_pull_sends_the_login_with_each_request(site: Site, tmp_path: Path) -> None:  # noqa: F811
    site.files["x.zip"] = write_zip(tmp_path / "x.zip", tree(train=3, test=2)).read_bytes()
    site.etags["x.zip"] = '"1"'
    uri = f"{site.url.replace('://', '://user:password@')}/x.zip"
    assert len(ingest_stages.pull(uri, StorageOptions(), 16, tmp_path, 1, never)) == 2
    assert {headers.get("Authorization") for headers in site.headers} == {basic_login(uri)}
