"""Which trials nobody works on."""

import time
from pathlib import Path

import pytest

from inat_job.host import process
from inat_job.search.trial_leases import TrialLeases
from inat_job.storage import StorageOptions, attempts
from inat_job.storage.attempts import Attempt
from inat_job.storage.base import Store
from inat_job.storage.local import LocalStore

ELSEWHERE = {"host": "another machine", "pid": "1"}


class Watched:
    """The leases of the trials in a folder, as a worker with a clock of its own sees them."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.now = folder, 0.0
        self.leases = TrialLeases(self.open, lease_s=20.0, clock=lambda: self.now)

    def open(self, number: int) -> Store:
        return LocalStore(self._folder / str(number), StorageOptions())

    def hold(self, number: int, beat: int = 0, **changes: object) -> None:
        attempt = Attempt(1, 20.0, ELSEWHERE, beat=beat)
        data = attempts.dataclasses.replace(attempt, **changes).to_json()  # type: ignore[arg-type]
        self.open(number).put("attempts/1.json", data)

    def is_free(self, number: int, age_s: float = 100.0) -> bool:
        return self.leases.is_free(number, time.time() - age_s)


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_trial_that_was_just_drawn_is_left_to_its_worker(watched: Watched) -> None:
    assert not watched.is_free(0, age_s=5.0)
    assert watched.is_free(0, age_s=21.0)


def test_live_trial_is_not_free(watched: Watched) -> None:
    for beat in range(10):
        watched.hold(0, beat)
        assert not watched.is_free(0)
        watched.now += 19.0


def test_silent_trial_is_free_after_its_lease(watched: Watched) -> None:
    watched.hold(0)
    assert not watched.is_free(0)
    watched.now += 19.0
    assert not watched.is_free(0)
    watched.now += 1.0
    assert watched.is_free(0)


def test_stopped_trial_is_free_at_once(watched: Watched) -> None:
    watched.hold(0, why="preempted")
    assert watched.is_free(0)


def test_trial_whose_process_has_ended_on_this_machine_is_free_at_once(watched: Watched) -> None:
    watched.hold(0, holder=process.identity() | {"started": "1"})
    assert watched.is_free(0)
    watched.hold(1, holder=process.identity())
    assert not watched.is_free(1)
