"""A holder of a run that is frozen at any write, and goes on after its run was taken over and finished."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inat_job.address import in_bucket
from inat_job.checkpoints import manifest as manifests
from inat_job.checkpoints.checkpoint_index import CheckpointIndex
from inat_job.checkpoints.checkpoint_store import CheckpointStore
from inat_job.run.run_state import delete_run
from inat_job.signals import never
from inat_job.storage import StorageOptions
from inat_job.storage.fenced import lost_lease_first
from inat_job.storage.lease import Lease, LeaseError, acquire
from inat_job.storage.run_folder import RunFolder
from inat_job.storage.threads import start_daemon
from inat_job.training.metrics_log import MetricsFile
from tests.checkpoints.unreliable_store import manifest
from tests.harness.cloud_stores import cloud_output, has_azurite
from tests.harness.run_folders import open_run_folder

STEPS = range(1, 5)
BEST = 2


class FreezePoint:
    """Freezes the thread that passes it for the `at`-th time, until `go_on` is set."""

    def __init__(self, at: int) -> None:
        self._left = at
        self.frozen, self.go_on = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self._left -= 1
        if self._left == 0:
            self.frozen.set()
            assert self.go_on.wait(60)


def frozen_around(action: Callable[..., Any], point: FreezePoint) -> Callable[..., Any]:
    def frozen(*arguments: Any, **options: Any) -> Any:
        point()
        result = action(*arguments, **options)
        point()
        return result

    return frozen


def hold(output: str, spools: Path, point: Callable[[], None] = lambda: None) -> tuple[RunFolder, Lease]:
    """The run's folder and its lease, which passes `point` before and after each put and between check and write."""
    folder = open_run_folder(output, "r", StorageOptions(), spools)
    held = acquire(folder.store, folder.background, 60, {}, lambda holder: True, never)
    if isinstance(point, FreezePoint):
        for name in ("put", "delete"):
            setattr(folder.background, name, frozen_around(getattr(folder.background, name), point))

    def confirm() -> None:
        held.check()
        point()

    folder.fence(held.number, confirm)
    return folder, held


def work(folder: RunFolder, held: Lease) -> None:
    """What is left of the run, to the report."""
    with lost_lease_first(held.check):
        index = CheckpointIndex(folder).discover(spooled=True)
        resumed = index.load_newest_intact()
        if resumed is None:
            folder.write_json("config.json", {"holder": held.number})
            folder.publish("config.json")
        metrics = MetricsFile(folder, resumed[0] if resumed else None)
        store = CheckpointStore(index, ["metrics.jsonl"], resumed[0].step if resumed else None)
        store.finish_earlier()
        for pending in index.waiting:
            upload(store, index, pending)
        for step in STEPS[resumed[0].step if resumed else 0 :]:
            metrics.add(step, {"by": held.number})
            upload(store, index, written(folder, step))
        with folder.drafts("model") as drafts:
            (drafts / "model.json").write_text(f"exported by {held.number}")
        folder.write_json("report.json", {"status": "done", "holder": held.number})
        folder.publish_all(last="report.json", leave_out=["checkpoints"])
    held.end()


def written(folder: RunFolder, step: int) -> manifests.Manifest:
    content = b"%d" % step * 100
    with folder.drafts("checkpoints") as drafts:
        (drafts / f"{step}.ckpt").write_bytes(content)
    return manifest(step, 0.9 if step == BEST else 0.1, sha256=hashlib.sha256(content).hexdigest(), size=len(content))


def upload(store: CheckpointStore, index: CheckpointIndex, made: manifests.Manifest) -> None:
    index.mark_waiting(made)
    store.write_local_manifest(made)
    store.put_file(made, lambda done, total: None)
    store.put_manifest(made)
    index.mark_stored(made)
    store.apply_retention()


def contents(output: str) -> dict[str, bytes]:
    store = open_run_folder(output, "r", StorageOptions(), Path("unused")).store
    return {entry.key: store.read(entry.key) for entry in store.list()}


@pytest.fixture(params=["local", *(pytest.param(kind, marks=pytest.mark.soak) for kind in ("s3", "gs", "az"))])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder, or an address of a fresh bucket."""
    if request.param == "local":
        yield str(tmp_path)
        return
    if request.param != "s3":
        pytest.importorskip("obstore")
    if request.param == "az" and not has_azurite():
        pytest.skip("azurite is not installed")
    with cloud_output(request.param, tmp_path) as (place, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield place.uri


@pytest.mark.soak
def test_run_is_byte_equal_after_its_frozen_holder_goes_on(root: str, tmp_path: Path) -> None:
    every = 7 if in_bucket(root) else 1  # three points a write: another of them each time
    for at in range(1, 1000, every):
        output, spools = f"{root}/{at}", tmp_path / f"spool-{at}"
        point = FreezePoint(at)
        folder, held = hold(output, spools, point)
        first = start_daemon(lambda folder=folder, held=held: work(folder, held), "frozen holder")  # type: ignore[misc]
        while not point.frozen.wait(0.01) and not first.done():
            pass
        if not point.frozen.is_set():
            break
        finished = (open_run_folder(output, "r", StorageOptions(), spools).store).stat("report.json")
        work_or_nothing(output, spools, bool(finished))
        expected = contents(output)
        point.go_on.set()
        if finished:
            first.exception(60)
        else:
            assert isinstance(first.exception(60), LeaseError), at
        assert contents(output) == expected, at
        assert not finished or b'"done"' in expected["report.json"]
    assert at > 40
    first.result()


def work_or_nothing(output: str, spools: Path, finished: bool) -> None:
    """The second job, for which a finished run leaves nothing to do."""
    folder, held = hold(output, spools)
    if finished:
        held.end()
    else:
        work(folder, held)


@pytest.mark.soak
def test_frozen_force_deletes_nothing_of_the_run_that_started_again(root: str, tmp_path: Path) -> None:
    """In a bucket it may finish the one deletion that it was frozen in, but never that of the report."""
    every = 9 if in_bucket(root) else 1
    for at in range(1, 1000, every):
        output, spools = f"{root}/{at}", tmp_path / f"spool-{at}"
        work(*hold(output, spools))
        point = FreezePoint(at)
        folder, held = hold(output, spools, point)

        def begin_again(folder: RunFolder = folder, held: Lease = held) -> None:
            with lost_lease_first(held.check):
                delete_run(folder, keep=held.key)

        first = start_daemon(begin_again, "frozen holder")
        while not point.frozen.wait(0.01) and not first.done():
            pass
        if not point.frozen.is_set():
            break
        next_folder, next_held = hold(output, spools)
        delete_run(next_folder, keep=next_held.key)
        work(next_folder, next_held)
        expected = contents(output)
        point.go_on.set()
        first.exception(60)
        left = contents(output)
        assert left["report.json"] == expected["report.json"], at
        lost = {name for name in expected if left.get(name) != expected[name]}
        assert len(lost) <= in_bucket(root), (at, lost)
    assert at > 8
    first.result()
