"""Waiting for a job that was submitted: what is shown, how much trouble is borne, and what ends it."""

from collections.abc import Iterator

import pytest

from inat_job.commands import submit
from inat_job.errors import JobError, Preempted, TransientError
from inat_job.platforms.submission import State, our_code


class Played:
    """A job whose looks are given: states and errors."""

    name = "played"

    def __init__(self, *looks: State | JobError) -> None:
        self._looks: Iterator[State | JobError] = iter(looks)

    def look(self) -> State:
        found = next(self._looks)
        if isinstance(found, JobError):
            raise found
        return found


def never() -> bool:
    return False


DONE = State("Done", code=0)


def test_lines_and_changes_are_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    looks = State("Pending"), State("Running", ("a", "b")), State("Running", ("c",)), DONE
    assert submit.wait(Played(*looks), never, 0.0) == DONE
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith("{")] == ["a", "b", "c"]
    assert sum('"state"' in line for line in lines) == 3


@pytest.mark.parametrize("failures", [1, 23])
def test_trouble_that_passes_is_borne(failures: int) -> None:
    assert submit.wait(Played(*[TransientError("away")] * failures, DONE), never, 0.0) == DONE


def test_trouble_that_stays_is_not() -> None:
    with pytest.raises(TransientError):
        submit.wait(Played(*[TransientError("away")] * 24, DONE), never, 0.0)


def test_trouble_is_counted_anew_after_each_answer() -> None:
    troubles = [TransientError("away")] * 20
    assert submit.wait(Played(*troubles, State("Running"), *troubles, DONE), never, 0.0) == DONE


def test_who_stops_waiting_stops_nothing_else() -> None:
    with pytest.raises(Preempted, match="continues by itself"):
        submit.wait(Played(State("Running")), lambda: True, 60.0)


def test_a_containers_code_is_ours_or_becomes_one() -> None:
    assert [our_code(code) for code in (0, 1, 2, 65, 75, 77, 78, 143)] == [0, 1, 2, 65, 75, 77, 78, 143]
    assert [our_code(code) for code in (137, 127, 139)] == [75, 1, 1]
