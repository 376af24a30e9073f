"""Reading an object during its download, the plan of its chunks, and the journal that it resumes from."""

import io
import json
import os
import threading
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.errors import Preempted
from inat_job.storage import StorageOptions, open_store, partial_download
from inat_job.storage.partial_download import (
    MIB,
    ChunkPlan,
    DownloadJournal,
    IncompleteDownloadError,
    PartialDownload,
    PartialFile,
    parse_journal,
    plan_chunks,
    resume,
)
from tests.harness.web_sites import Site

CHUNK = 10_000
DATA = os.urandom(95_000)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    monkeypatch.setattr(partial_download, "plan_chunks", lambda size: ChunkPlan(size, CHUNK))
    site.files["x"], site.etags["x"] = DATA, '"1"'


def download(site: Site, path: Path, incoming: PartialDownload) -> None:
    open_store(site.url, StorageOptions(threads=1, retries=1)).get("x", path, incoming=incoming)


def requested_chunks(site: Site) -> list[int]:
    asked = [each.removeprefix("bytes=") for _, each in site.requests if each != "bytes=0-0"]
    return [int(each.split("-")[0]) // CHUNK for each in asked]


@pytest.mark.usefixtures("small_chunks")
def test_chunk_order_is_end_first_then_waited_for(site: Site, tmp_path: Path) -> None:
    incoming, waited = PartialDownload(), threading.Event()

    def before(asked: str) -> None:
        if asked == "bytes=10000-19999":  # held back until the reader waits for a chunk far behind it
            waited.wait(10)

    site.before = before
    thread = threading.Thread(target=download, args=(site, tmp_path / "x", incoming))
    thread.start()
    file = PartialFile(incoming)
    file.seek(-10, io.SEEK_END)
    assert file.read() == DATA[-10:]
    threading.Timer(0.3, waited.set).start()
    assert incoming.read(69_990, 70_010) == DATA[69_990:70_010]
    thread.join()
    assert requested_chunks(site)[0] == 9
    assert requested_chunks(site).index(6) < requested_chunks(site).index(4)
    assert incoming.is_complete()
    assert incoming.is_now(tmp_path / "x")
    (tmp_path / "y").write_bytes(DATA)
    assert not incoming.is_now(tmp_path / "y")
    incoming.close()


@pytest.mark.usefixtures("small_chunks")
def test_partial_file_seek_and_read(site: Site, tmp_path: Path) -> None:
    incoming = PartialDownload()
    site.pace_s = 0.001
    thread = threading.Thread(target=download, args=(site, tmp_path / "x", incoming))
    thread.start()
    file = PartialFile(incoming)
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
    incoming.close()


@pytest.mark.usefixtures("small_chunks")
def test_read_without_ranges_fails(site: Site, tmp_path: Path) -> None:
    incoming, site.ranges = PartialDownload(), False
    download(site, tmp_path / "x", incoming)
    with pytest.raises(IncompleteDownloadError):
        incoming.read(0, 1)
    assert not incoming.is_complete()


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(("start", "end"), [(-5, 3), (-20_000, -10_000), (-1, 95_000)])
def test_read_outside_object_fails(start: int, end: int, site: Site, tmp_path: Path) -> None:
    """A damaged zip directory may list members before the archive's beginning."""
    incoming = PartialDownload()
    thread = threading.Thread(target=download, args=(site, tmp_path / "x", incoming))
    thread.start()
    assert incoming.read(0, 5) == DATA[:5]
    thread.join()
    with pytest.raises(IncompleteDownloadError, match="no bytes from"):
        incoming.wait(start, end)
    assert incoming.read(94_990, 200_000) == DATA[-10:]
    incoming.close()


@pytest.mark.parametrize("again", [False, True])
def test_waiting_reader_fails_when_download_fails(again: bool, tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(bytes(95_000))
    incoming, started, failed = PartialDownload(), threading.Event(), threading.Event()
    journal = DownloadJournal("v", ChunkPlan(95_000, CHUNK), {0: (CHUNK, 0)})

    def read() -> None:
        assert incoming.read(0, CHUNK) == bytes(CHUNK)
        started.set()
        with pytest.raises(IncompleteDownloadError):
            incoming.read(0, CHUNK + 1)
        failed.set()

    incoming.begin(tmp_path / "part", journal)
    reader = threading.Thread(target=read)
    reader.start()
    assert started.wait(10)
    if again:
        incoming.begin(tmp_path / "part", journal)
    else:
        incoming.fail()
    assert failed.wait(10)
    reader.join()
    incoming.finish()
    assert not incoming.is_complete()
    assert not incoming.is_now(tmp_path / "part")
    incoming.close()


def test_waiting_reader_checks_stop() -> None:
    def tick() -> None:
        raise Preempted("stopped")

    with pytest.raises(Preempted):
        PartialDownload(tick).read(0, 1)


plans = st.builds(ChunkPlan, st.integers(0, 10_000), st.integers(1, 3_000))
versions = st.text(max_size=40)


@st.composite
def journals(draw: st.DrawFn) -> DownloadJournal:
    plan = draw(plans)
    chunks = draw(st.sets(st.integers(0, plan.count - 1), max_size=20)) if plan.count else set()
    crcs = st.integers(0, 2**32 - 1)
    received = {index: (draw(st.integers(0, plan.length(index))), draw(crcs)) for index in chunks}
    return DownloadJournal(draw(versions), plan, received)


@given(plans)
def test_chunks_cover_every_byte_once(plan: ChunkPlan) -> None:
    covered = [byte for index in range(plan.count) for byte in range(*plan.span(index))]
    assert covered == list(range(plan.size))
    assert all(0 < plan.length(index) <= plan.chunk for index in range(plan.count))


@given(st.integers(0, 5 * 2**40))
def test_plan_chunks_makes_64_chunks_or_16_mib_ones(size: int) -> None:
    plan = plan_chunks(size)
    assert MIB <= plan.chunk <= 16 * MIB
    assert plan.count <= 64 or plan.chunk == 16 * MIB


@given(journals())
def test_journal_round_trip(journal: DownloadJournal) -> None:
    assert parse_journal(journal.text()) == journal
    whole = [index for index, (received, _) in journal.received.items() if received == journal.plan.length(index)]
    assert sorted([*journal.missing(), *whole]) == list(range(journal.plan.count))
    missing = sum(journal.plan.length(index) for index in journal.missing())
    assert journal.plan.size - missing <= journal.bytes_done() <= journal.plan.size


@given(journals(), st.data())
def test_truncated_journal_is_a_subset(journal: DownloadJournal, data: st.DataObject) -> None:
    text = journal.text()
    found = parse_journal(text[: data.draw(st.integers(0, len(text)))])
    assert found is None or (found.version, found.plan) == (journal.version, journal.plan)
    assert found is None or found.received.items() <= journal.received.items()


foreign = st.recursive(st.none() | st.integers() | st.text(max_size=5) | st.booleans(), st.lists, max_leaves=4)


@given(st.text() | st.lists(foreign).map(lambda lines: "\n".join(map(json.dumps, lines)) + "\n"))
def test_foreign_text_is_no_journal(text: str) -> None:
    assert parse_journal(text) is None


@given(st.lists(foreign))
def test_foreign_lines_are_ignored(lines: list[object]) -> None:
    head = DownloadJournal("v", ChunkPlan(10, 3))
    found = parse_journal(head.header() + "".join(json.dumps(line) + "\n" for line in lines))
    assert found is not None
    assert set(found.received) <= set(range(4))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=8))
def test_last_line_of_chunk_counts(lines: list[tuple[int, int]]) -> None:
    head = DownloadJournal("v", ChunkPlan(12, 3))
    found = parse_journal(head.header() + "".join(json.dumps([index, received, 7]) + "\n" for index, received in lines))
    assert found is not None
    assert found.received == {index: (received, 7) for index, received in lines}


@pytest.mark.parametrize(("size", "chunk"), [(5, 0), (-5, 1), (5, -1)])
def test_impossible_plan_is_no_journal(size: int, chunk: int) -> None:
    assert parse_journal(json.dumps({"version": "v", "size": size, "chunk": chunk}) + "\n[0, 1, 1]\n") is None


@pytest.mark.parametrize("text", ["", "\n", "[]\n", "\x00\xff\n", '{"version": "v"}\n[0, 1, 1]\n'])
def test_resume_with_damaged_journal_starts_over(tmp_path: Path, text: str) -> None:
    part = tmp_path / "x.part"
    part.write_bytes(b"longer than it should be")
    (tmp_path / "x.part.json").write_text(text)
    journal = resume(part, "v", 5)
    assert journal == DownloadJournal("v", plan_chunks(5))
    assert part.read_bytes() == bytes(5)


def test_stop_during_resume_keeps_journal(tmp_path: Path) -> None:
    part, size = tmp_path / "x.part", 3 * MIB
    part.write_bytes(bytes(3 * MIB))
    journal = DownloadJournal("v", plan_chunks(3 * MIB), {0: (MIB, zlib.crc32(bytes(MIB)))})
    (tmp_path / "x.part.json").write_text(journal.text())

    def stopped() -> None:
        raise Preempted("stopped")

    with pytest.raises(Preempted):
        resume(part, "v", size, stopped)
    assert resume(part, "v", size) == journal
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.part", "x.part.json"]
