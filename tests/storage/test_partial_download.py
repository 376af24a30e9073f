"""An object is read while it is on its way: what has landed at once, the rest when it comes, or not at all."""

import io
import os
import threading
from pathlib import Path

import pytest

from inat_job.errors import Preempted
from inat_job.storage import StorageOptions, open_store, partial_download
from inat_job.storage.partial_download import DownloadJournal, DownloadPlan, LostError, PartialDownload, PartialFile

from .conftest import Site

CHUNK = 10_000
DATA = os.urandom(95_000)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    monkeypatch.setattr(partial_download, "plan_for", lambda size: DownloadPlan(size, CHUNK))
    site.files["x"], site.etags["x"] = DATA, '"1"'


def get(site: Site, path: Path, landing: PartialDownload) -> None:
    open_store(site.url, StorageOptions(threads=1, retries=1)).get("x", path, landing=landing)


def starts(site: Site) -> list[int]:
    asked = [each.removeprefix("bytes=") for _, each in site.requests if each != "bytes=0-0"]
    return [int(each.split("-")[0]) // CHUNK for each in asked]


def test_the_end_comes_first_and_then_what_is_waited_for(site: Site, tmp_path: Path) -> None:
    landing, waited = PartialDownload(), threading.Event()

    def before(asked: str) -> None:
        if asked == "bytes=10000-19999":  # not before the reader waits for what is far behind it
            waited.wait(10)

    site.before = before
    thread = threading.Thread(target=get, args=(site, tmp_path / "x", landing))
    thread.start()
    file = PartialFile(landing)
    file.seek(-10, io.SEEK_END)
    assert file.read() == DATA[-10:]
    threading.Timer(0.3, waited.set).start()
    assert landing.read(69_990, 70_010) == DATA[69_990:70_010]
    thread.join()
    assert starts(site)[0] == 9
    assert starts(site).index(6) < starts(site).index(4)
    assert landing.whole()
    assert landing.became(tmp_path / "x")
    (tmp_path / "y").write_bytes(DATA)
    assert not landing.became(tmp_path / "y")
    landing.close()


def test_a_file_is_read_from_any_place(site: Site, tmp_path: Path) -> None:
    landing = PartialDownload()
    site.pace_s = 0.001
    thread = threading.Thread(target=get, args=(site, tmp_path / "x", landing))
    thread.start()
    file = PartialFile(landing)
    assert file.read(5) == DATA[:5]
    assert file.tell() == 5
    assert file.seek(10, io.SEEK_CUR) == 15
    assert file.read() == DATA[15:]
    assert file.read(1) == b""
    assert file.seek(200_000) == 200_000
    assert file.read(1) == b""
    with pytest.raises(ValueError, match="negative"):
        file.seek(-1)
    thread.join()
    landing.close()


def test_a_server_without_ranges_lets_nothing_be_read_before_it_is_whole(site: Site, tmp_path: Path) -> None:
    landing, site.ranges = PartialDownload(), False
    get(site, tmp_path / "x", landing)
    with pytest.raises(LostError):
        landing.read(0, 1)
    assert not landing.whole()


@pytest.mark.parametrize(("start", "end"), [(-5, 3), (-20_000, -10_000), (-1, 95_000)])
def test_bytes_that_are_nowhere_are_not_waited_for(start: int, end: int, site: Site, tmp_path: Path) -> None:
    """A damaged directory tells of members before the archive's beginning."""
    landing = PartialDownload()
    thread = threading.Thread(target=get, args=(site, tmp_path / "x", landing))
    thread.start()
    assert landing.read(0, 5) == DATA[:5]
    thread.join()
    with pytest.raises(LostError, match="no bytes from"):
        landing.wait(start, end)
    assert landing.read(94_990, 200_000) == DATA[-10:]
    landing.close()


@pytest.mark.parametrize("again", [False, True])
def test_who_waits_in_vain_is_told(again: bool, tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(bytes(95_000))
    landing, begun, told = PartialDownload(), threading.Event(), threading.Event()
    known = DownloadJournal("v", DownloadPlan(95_000, CHUNK), {0: (CHUNK, 0)})

    def read() -> None:
        assert landing.read(0, CHUNK) == bytes(CHUNK)
        begun.set()
        with pytest.raises(LostError):
            landing.read(0, CHUNK + 1)
        told.set()

    landing.begin(tmp_path / "part", known)
    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(10)
    if again:
        landing.begin(tmp_path / "part", known)
    else:
        landing.lose()
    assert told.wait(10)
    reader.join()
    landing.finish()
    assert not landing.whole()
    assert not landing.became(tmp_path / "part")
    landing.close()


def test_who_waits_reads_the_stop_flag() -> None:
    def tick() -> None:
        raise Preempted("stopped")

    with pytest.raises(Preempted):
        PartialDownload(tick).read(0, 1)
