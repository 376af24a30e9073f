"""The journal of a study: nothing lost and nothing doubled between workers, on a folder and on S3."""

import json
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from inat_job.errors import BadDataError, ConflictError
from inat_job.search.journal import FOLDER, SEGMENT, StoreJournal
from inat_job.storage import StorageOptions
from inat_job.storage.base import Store
from inat_job.storage.local import LocalStore
from inat_job.storage.open_store import open_store

optuna.logging.set_verbosity(optuna.logging.WARNING)

ROOT = Path(__file__).parents[2]


class CountingStore(LocalStore):
    """A local store that counts its requests by verb."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, StorageOptions())
        self.requests = {"stat": 0, "read": 0, "put": 0}

    def stat(self, key):
        self.requests["stat"] += 1
        return super().stat(key)

    def read(self, key):
        self.requests["read"] += 1
        return super().read(key)

    def put(self, key, source, **conditions):
        self.requests["put"] += 1
        return super().put(key, source, **conditions)


def journal(folder: Path | Store, stale_s: float = 0.0) -> StoreJournal:
    return StoreJournal(folder if not isinstance(folder, Path) else LocalStore(folder, StorageOptions()), stale_s)


def test_logs_that_are_appended_together_are_one_object(tmp_path: Path) -> None:
    store = CountingStore(tmp_path)
    own, other = journal(store), journal(tmp_path)
    with own.together():
        for number in range(5):
            own.append_logs(logs(number))
        other.append_logs(logs(9))
        assert list(own.read_logs(0)) == []
    assert store.requests["put"] == 2  # the second one after the other worker's
    assert [log["n"] for log in own.read_logs(0)] == [log["n"] for log in other.read_logs(0)] == [9, 0, 1, 2, 3, 4]


def test_logs_that_are_appended_together_are_kept_when_the_block_fails(tmp_path: Path) -> None:
    own = journal(tmp_path)

    def fail() -> None:
        with own.together():
            own.append_logs(logs(0))
            raise ConflictError("a test")

    with pytest.raises(ConflictError):
        fail()
    with own.together():
        pass
    assert [log["n"] for log in journal(tmp_path).read_logs(0)] == [0]


@pytest.fixture(params=["local", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"s3://{request.getfixturevalue('s3_bucket')}/sweep"


def logs(number: int, worker: int = 0) -> list[dict]:
    return [{"op_code": 0, "worker": worker, "n": number}]


@pytest.mark.soak
def test_workers_read_the_same_logs_in_the_same_order(uri: str) -> None:
    workers = [journal(open_store(uri, role="output")) for _ in range(4)]
    each_appends = 10 if uri.startswith("s3://") else 30

    def append(worker: int) -> None:
        for number in range(each_appends):
            workers[worker].append_logs(logs(number, worker))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(append, range(4)))
    read = [list(worker.read_logs(0)) for worker in [*workers, journal(open_store(uri))]]
    assert all(each == read[0] for each in read)
    expected = [(worker, number) for worker in range(4) for number in range(each_appends)]
    assert sorted((log["worker"], log["n"]) for log in read[0]) == expected
    for worker in range(4):
        assert [log["n"] for log in read[0] if log["worker"] == worker] == list(range(each_appends))


@given(batches=st.lists(st.integers(1, 3), max_size=150), at=st.integers(0, 200))
def test_reads_from_any_number(tmp_path_factory: pytest.TempPathFactory, batches: list[int], at: int) -> None:
    folder = tmp_path_factory.mktemp("journal")
    writer, everything = journal(folder), []
    for size in batches:
        batch = [{"op_code": 1, "n": len(everything) + extra} for extra in range(size)]
        writer.append_logs(batch)
        everything += batch
    assert list(journal(folder).read_logs(at)) == list(writer.read_logs(at)) == everything[at:]


def test_new_worker_reads_segments(tmp_path: Path) -> None:
    writer = journal(tmp_path)
    for number in range(3 * SEGMENT + 5):
        writer.append_logs(logs(number))
    store = CountingStore(tmp_path)
    assert len(journal(store).read_logs(0)) == 3 * SEGMENT + 5
    assert store.requests["read"] == 3 + 5


def test_missing_segment_is_read_as_single_objects_and_stored_again(tmp_path: Path) -> None:
    writer = journal(tmp_path)
    for number in range(2 * SEGMENT):
        writer.append_logs(logs(number))
    segments = sorted((tmp_path / FOLDER / "segments").iterdir())
    segments[1].unlink()  # its writer was killed
    assert [log["n"] for log in journal(tmp_path).read_logs(0)] == list(range(2 * SEGMENT))
    assert segments[1].exists()


def test_a_reader_asks_the_store_once_in_a_while(tmp_path: Path) -> None:
    now = [0.0]
    store = CountingStore(tmp_path)
    reader, other = StoreJournal(store, 1.0, lambda: now[0]), journal(tmp_path)
    reader.read_logs(0)
    other.append_logs(logs(0))
    before = store.requests["stat"]
    assert list(reader.read_logs(0)) == []
    assert store.requests["stat"] == before
    now[0] = 1.0
    assert list(reader.read_logs(0)) == logs(0)


def test_own_logs_are_read_at_once_after_those_of_others(tmp_path: Path) -> None:
    first, second = journal(tmp_path, stale_s=1e9), journal(tmp_path, stale_s=1e9)
    first.read_logs(0)
    second.read_logs(0)
    first.append_logs(logs(1))
    second.append_logs(logs(2))
    assert list(second.read_logs(0)) == [*logs(1), *logs(2)]


@pytest.mark.parametrize("text", ["", "{", "{}", '["a"]', '[{"n": 1}]', "null", "[" * 10**5], ids=range(7))
def test_damaged_journal(tmp_path: Path, text: str) -> None:
    journal(tmp_path).append_logs(logs(0))
    next((tmp_path / FOLDER).glob("*.json")).write_text(text)
    with pytest.raises(BadDataError, match=r"00000000\.json is damaged \(.+\): start the sweep again"):
        journal(tmp_path).read_logs(0)


def test_segment_of_another_length(tmp_path: Path) -> None:
    writer = journal(tmp_path)
    for number in range(SEGMENT):
        writer.append_logs(logs(number))
    next((tmp_path / FOLDER / "segments").iterdir()).write_text(json.dumps([logs(0)]))
    with pytest.raises(BadDataError, match=f"it has 1 entries and not {SEGMENT}"):
        journal(tmp_path).read_logs(0)


@pytest.mark.soak
def test_study_of_several_workers(uri: str) -> None:
    """Each worker asks and tells; every trial is told once, and all see the same study."""
    barrier = threading.Barrier(4)

    def work(worker: int) -> None:
        study = optuna.create_study(
            study_name="s", storage=JournalStorage(journal(open_store(uri))), load_if_exists=True, direction="maximize"
        )
        barrier.wait()
        for _ in range(5):
            trial = study.ask()
            study.tell(trial, trial.suggest_float("x", 0.0, 1.0))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    study = optuna.load_study(study_name="s", storage=JournalStorage(journal(open_store(uri))))
    assert [trial.number for trial in study.trials] == list(range(20))
    assert all(trial.value == trial.params["x"] for trial in study.trials)


class Unconditional(LocalStore):
    """A store that refuses conditions, as some S3-compatible servers do."""

    def put(self, key, source, **conditions):
        if conditions.get("if_none_match"):
            raise ConflictError("It takes no conditional writes.")
        return super().put(key, source, **conditions)


def test_one_worker_needs_no_conditional_writes(tmp_path: Path) -> None:
    store = Unconditional(tmp_path, StorageOptions())
    writer = StoreJournal(store, conditional=False)
    for number in range(SEGMENT + 3):
        writer.append_logs(logs(number))
    assert [log["n"] for log in journal(store).read_logs(0)] == list(range(SEGMENT + 3))


def test_command_that_makes_a_file_for_the_dashboard(tmp_path: Path) -> None:
    """optuna-dashboard reads a journal file with Optuna's own backend, whose log is in one file."""
    study = optuna.create_study(study_name="s", storage=JournalStorage(journal(tmp_path / "runs" / "ID")))
    for value in range(SEGMENT):  # so that there is a segment too
        trial = study.ask()
        trial.report(value, 1)
        study.tell(trial, value)
    [command] = re.findall(r"^python -c .+journal.+$", (ROOT / "docs" / "sweep.md").read_text(), re.M)
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True, cwd=tmp_path)
    shown = optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(tmp_path / "study.log"))))
    assert shown.trials == study.trials
