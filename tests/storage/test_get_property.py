"""The pure parts of a pull, for whatever size, text and key: the chunk plan, the journal, the key's safety."""

import json
import zlib
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.errors import BadDataError, Preempted
from inat_job.storage.base import Entry, checked_key, without_query
from inat_job.storage.open_store import split_uri
from inat_job.storage.partial_download import MIB, DownloadJournal, DownloadPlan, parse, plan_for, resume
from inat_job.storage.s3.multipart_upload import part_plan

plans = st.builds(DownloadPlan, st.integers(0, 10_000), st.integers(1, 3_000))
versions = st.text(max_size=40)


@st.composite
def journals(draw: st.DrawFn) -> DownloadJournal:
    plan = draw(plans)
    chunks = draw(st.sets(st.integers(0, plan.count - 1), max_size=20)) if plan.count else set()
    crcs = st.integers(0, 2**32 - 1)
    reached = {index: (draw(st.integers(0, plan.length(index))), draw(crcs)) for index in chunks}
    return DownloadJournal(draw(versions), plan, reached)


@given(plans)
def test_chunks_cover_every_byte_once(plan: DownloadPlan) -> None:
    covered = [byte for index in range(plan.count) for byte in range(*plan.span(index))]
    assert covered == list(range(plan.size))
    assert all(0 < plan.length(index) <= plan.chunk for index in range(plan.count))


@given(st.integers(0, 5 * 2**40))
def test_chunks_are_few_up_to_16_mib_and_parts_at_most_10000(size: int) -> None:
    plan = plan_for(size)
    assert MIB <= plan.chunk <= 16 * MIB
    assert plan.count <= 64 or plan.chunk == 16 * MIB
    parts = part_plan(size)
    assert parts.chunk >= 16 * MIB
    assert parts.count <= 10_000
    assert size == 0 or parts.span(parts.count - 1)[1] == size


@given(journals())
def test_a_journal_comes_back(journal: DownloadJournal) -> None:
    assert parse(journal.text()) == journal
    whole = [index for index, (there, _) in journal.reached.items() if there == journal.plan.length(index)]
    assert sorted([*journal.missing(), *whole]) == list(range(journal.plan.count))
    missed = sum(journal.plan.length(index) for index in journal.missing())
    assert journal.plan.size - missed <= journal.bytes_done() <= journal.plan.size


@given(journals(), st.data())
def test_a_torn_journal_forgets_and_never_lies(journal: DownloadJournal, data: st.DataObject) -> None:
    text = journal.text()
    found = parse(text[: data.draw(st.integers(0, len(text)))])
    assert found is None or (found.version, found.plan) == (journal.version, journal.plan)
    assert found is None or found.reached.items() <= journal.reached.items()


foreign = st.recursive(st.none() | st.integers() | st.text(max_size=5) | st.booleans(), st.lists, max_leaves=4)


@given(st.text() | st.lists(foreign).map(lambda lines: "\n".join(map(json.dumps, lines)) + "\n"))
def test_a_foreign_journal_is_no_journal(text: str) -> None:
    assert parse(text) is None


@given(st.lists(foreign))
def test_foreign_lines_do_no_harm(lines: list[object]) -> None:
    head = DownloadJournal("v", DownloadPlan(10, 3))
    found = parse(head.header() + "".join(json.dumps(line) + "\n" for line in lines))
    assert found is not None
    assert set(found.reached) <= set(range(4))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=8))
def test_the_last_line_of_a_chunk_counts(lines: list[tuple[int, int]]) -> None:
    head = DownloadJournal("v", DownloadPlan(12, 3))
    found = parse(head.header() + "".join(json.dumps([index, there, 7]) + "\n" for index, there in lines))
    assert found is not None
    assert found.reached == {index: (there, 7) for index, there in lines}


@pytest.mark.parametrize(("size", "chunk"), [(5, 0), (-5, 1), (5, -1)])
def test_an_impossible_plan_is_no_journal(size: int, chunk: int) -> None:
    assert parse(json.dumps({"version": "v", "size": size, "chunk": chunk}) + "\n[0, 1, 1]\n") is None


@pytest.mark.parametrize("text", ["", "\n", "[]\n", "\x00\xff\n", '{"version": "v"}\n[0, 1, 1]\n'])
def test_a_journal_of_nonsense_starts_afresh(tmp_path: Path, text: str) -> None:
    part = tmp_path / "x.part"
    part.write_bytes(b"longer than it should be")
    (tmp_path / "x.part.json").write_text(text)
    journal = resume(part, Entry("x", 5, "v"))
    assert journal == DownloadJournal("v", plan_for(5))
    assert part.read_bytes() == bytes(5)


@given(st.text(alphabet="ab./\0~é\\", max_size=12))
def test_a_key_that_is_let_through_stays_under_the_root(key: str) -> None:
    try:
        checked_key(key, "/root")
    except BadDataError:
        parts = key.split("/")
        assert not key or "\0" in key or {"", ".", ".."} & set(parts)
        return
    path = PurePosixPath("/root") / key
    assert path.is_relative_to("/root")
    assert ".." not in path.parts
    assert path != PurePosixPath("/root")


segments = st.text(alphabet="abc.-_%é ", min_size=1, max_size=6).filter(lambda s: s.strip(". "))


@given(st.sampled_from(["s3", "https", "http"]), st.lists(segments, min_size=2, max_size=5))
def test_an_address_splits_at_its_last_slash(scheme: str, parts: list[str]) -> None:
    assert split_uri(f"{scheme}://{'/'.join(parts)}") == (f"{scheme}://{'/'.join(parts[:-1])}", parts[-1])


@given(segments, segments, segments)
def test_nothing_secret_is_said(user: str, query: str, path: str) -> None:
    assert without_query(f"https://{user}:s3cret@host/{path}?{query}=s3cret#s3cret") == f"https://host/{path}"


def test_a_stop_while_the_part_is_verified_forgets_nothing(tmp_path: Path) -> None:
    part, entry = tmp_path / "x.part", Entry("x", 3 * MIB, "v")
    part.write_bytes(bytes(3 * MIB))
    known = DownloadJournal("v", plan_for(3 * MIB), {0: (MIB, zlib.crc32(bytes(MIB)))})
    (tmp_path / "x.part.json").write_text(known.text())

    def stopped() -> None:
        raise Preempted("stopped")

    with pytest.raises(Preempted):
        resume(part, entry, stopped)
    assert resume(part, entry) == known
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.part", "x.part.json"]
