"""Downloads in ranges from a loopback web server that counts the bytes it serves."""

import hashlib
import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from inat_job.errors import ConflictError, Preempted, TransientError
from inat_job.storage import open_store, partial_download, retry
from inat_job.storage.partial_download import PartialDownload
from tests.harness.web_sites import Site
from tests.storage.one_file import CHUNK, DATA, SHA256, get_file, quick  # noqa: F401  # a fixture

ROOT = Path(__file__).parents[2]
PLAN_CHUNKS = partial_download.plan_chunks


def test_each_byte_is_downloaded_once(site: Site, tmp_path: Path) -> None:
    entry = get_file(site, tmp_path / "x", sha256=SHA256)
    assert entry == open_store(site.url).stat("x.zip")
    assert (tmp_path / "x").read_bytes() == DATA
    assert site.sent == len(DATA)
    ranges = [asked for _, asked in site.requests if asked != "bytes=0-0"]
    assert len(ranges) == 11


@pytest.mark.parametrize("fault", ["truncate", "reset", "503", "429", "500"])
def test_download_survives_faults(site: Site, tmp_path: Path, fault: str) -> None:
    site.faults = [fault, "", fault, fault]
    get_file(site, tmp_path / "x", sha256=SHA256)
    assert (tmp_path / "x").read_bytes() == DATA
    assert site.sent <= len(DATA) + len(site.faults) * CHUNK


@pytest.mark.parametrize("fault", ["whole", "page", "shifted"])
def test_another_answer_than_the_range_asked_for_is_not_believed(site: Site, tmp_path: Path, fault: str) -> None:
    site.faults = ["", *[fault] * 6]
    get_file(site, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA


@pytest.mark.parametrize("fault", ["whole", "page"])
def test_lasting_wrong_answers_end_as_transient(site: Site, tmp_path: Path, fault: str) -> None:
    site.faults = [fault] * 1000
    with pytest.raises(TransientError, match=r"the answer is not bytes .* \(HTTP 200, no Content-Range\)"):
        get_file(site, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_another_page_in_one_stream_is_not_believed(site: Site, tmp_path: Path) -> None:
    site.ranges = False
    site.faults = ["page"]
    get_file(site, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA


def test_truncated_body_continues_where_it_broke(site: Site, tmp_path: Path) -> None:
    site.faults = ["truncate"] * 3
    get_file(site, tmp_path / "x", sha256=SHA256)
    assert site.sent == len(DATA)


def test_resume_downloads_only_missing_bytes(site: Site, tmp_path: Path) -> None:
    stop_after = len(DATA) // 2
    done = 0

    def record(at: int, total: int) -> None:
        nonlocal done
        done = at

    site.before = lambda asked: time.sleep(0.05)
    with pytest.raises(Preempted):
        get_file(site, tmp_path / "x", progress=record, stop=lambda: done > stop_after)
    kept = partial_download.parse_journal((tmp_path / "x.part.json").read_text())
    assert kept is not None
    assert 0 < kept.bytes_done() < len(DATA)
    site.sent = 0
    get_file(site, tmp_path / "x", sha256=SHA256)
    assert site.sent == len(DATA) - kept.bytes_done()


def test_sigkill_loses_at_most_two_blocks_per_thread(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SIGKILL falls within chunks."""
    monkeypatch.setattr(partial_download, "plan_chunks", PLAN_CHUNKS)
    site.files["big"] = os.urandom(40 * 2**20)
    site.etags["big"] = '"v"'
    script = (
        "import sys; from pathlib import Path; from inat_job.storage import open_store\n"
        "open_store(sys.argv[1]).get('big', Path(sys.argv[2]))"
    )
    site.pace_s = 0.01
    target = tmp_path / "big"
    child = subprocess.Popen([sys.executable, "-c", script, site.url, str(target)], cwd=ROOT)
    try:
        until = time.monotonic() + 60
        while site.sent < 20 * 2**20:
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        child.kill()
        child.wait()
    time.sleep(1.0)  # until the server has noticed
    kept = partial_download.parse_journal((tmp_path / "big.part.json").read_text())
    assert kept is not None
    assert any(there < kept.plan.length(index) for index, (there, _) in kept.received.items())
    assert site.sent - kept.bytes_done() <= 5 * (2 * 2**20)  # one block read, and one in transit
    already, site.sent, site.pace_s = kept.bytes_done(), 0, 0.0
    get_file(site, target, "big", sha256=hashlib.sha256(site.files["big"]).hexdigest())
    assert site.sent == 40 * 2**20 - already


def test_resume_after_failed_download(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.1)  # long enough for some of the four answers to be read
    site.faults = [""] * 4 + ["503"] * 1000
    with pytest.raises(TransientError, match="HTTP 503"):
        get_file(site, tmp_path / "x")
    kept = partial_download.parse_journal((tmp_path / "x.part.json").read_text())
    assert kept is not None
    assert 0 < len(kept.received) <= 4
    site.faults, site.sent = [], 0
    get_file(site, tmp_path / "x", sha256=SHA256)
    assert site.sent == len(DATA) - kept.bytes_done()


@pytest.mark.parametrize("etag", ['"v2"', 'W/"v2"'])
def test_changed_object_restarts(site: Site, tmp_path: Path, etag: str) -> None:
    other = os.urandom(len(DATA))
    site.etags["x.zip"] = etag.replace("v2", "v1")
    asked = 0

    def change(range_: str) -> None:
        nonlocal asked
        asked += 1
        if asked == 5:
            site.files["x.zip"], site.etags["x.zip"] = other, etag

    site.before = change
    get_file(site, tmp_path / "x", sha256=hashlib.sha256(other).hexdigest())
    assert (tmp_path / "x").read_bytes() == other


def test_object_that_keeps_changing(site: Site, tmp_path: Path) -> None:
    def change(asked: str) -> None:
        site.etags["x.zip"] = f'"{time.monotonic_ns()}"'

    site.before = change
    with pytest.raises(TransientError, match="changed 3 times"):
        get_file(site, tmp_path / "x")


def test_stop_during_stalled_server(site: Site, tmp_path: Path) -> None:
    site.faults = ["stall"] * 100
    stalled: list[float] = []

    def stop() -> bool:
        if any(asked != "bytes=0-0" for _, asked in site.requests):
            stalled.append(time.monotonic())
        return bool(stalled)

    with pytest.raises(Preempted):
        get_file(site, tmp_path / "x", stop=stop)
    assert time.monotonic() - stalled[0] < 2.5
    assert (tmp_path / "x.part.json").exists()


def test_stop_during_a_second_reading_from_a_stalled_server(site: Site, tmp_path: Path) -> None:
    polls = 0

    def stop() -> bool:
        nonlocal polls
        polls += bool(site.faults)
        return polls > 3

    with closing(PartialDownload()) as incoming:
        get_file(site, tmp_path / "x", incoming=incoming, stop=stop, progress=lambda *_: incoming.wait(0, 10))
        site.faults = ["stall"] * 100
        with pytest.raises(Preempted):
            incoming.repair(0, 1000)
    assert polls == 4


def test_full_disk_names_folder(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inat_job.storage.disk._free_bytes", lambda folder: 1_000_000)
    with pytest.raises(ConflictError, match=rf"No space left in {tmp_path} \(1 MB free, 1 MB more needed\)"):
        get_file(site, tmp_path / "x")
