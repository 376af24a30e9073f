"""Waiting for a submitted job: what is printed, how many failures are tolerated, and what ends it."""

from collections.abc import Iterator

import pytest

from inat_job import events
from inat_job.commands import submit
from inat_job.errors import JobError, Preempted, TransientError
from inat_job.platforms.submission import State, our_code


class ScriptedJob:
    """A job whose looks return given states and errors."""

    name = "scripted"

    def __init__(self, *looks: State | JobError) -> None:
        self._looks: Iterator[State | JobError] = iter(looks)

    def read_state(self) -> State:
        found = next(self._looks)
        if isinstance(found, JobError):
            raise found
        return found


def never() -> bool:
    return False


DONE = State("Done", code=0)


def test_wait_prints_each_line_and_state_once(capsys: pytest.CaptureFixture[str]) -> None:
    looks = State("Pending"), State("Running", ("a", "b")), State("Running", ("c",)), DONE
    assert submit.wait(ScriptedJob(*looks), never, 0.0) == DONE
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith("{")] == ["a", "b", "c"]
    assert sum('"state"' in line for line in lines) == 3


@pytest.mark.parametrize("failures", [1, 23])
def test_wait_survives_passing_failures(failures: int) -> None:
    assert submit.wait(ScriptedJob(*[TransientError("away")] * failures, DONE), never, 0.0) == DONE


def test_wait_gives_up_on_lasting_failures() -> None:
    with pytest.raises(TransientError):
        submit.wait(ScriptedJob(*[TransientError("away")] * 24, DONE), never, 0.0)


def test_wait_counts_failures_in_a_row() -> None:
    failures = [TransientError("away")] * 20
    assert submit.wait(ScriptedJob(*failures, State("Running"), *failures, DONE), never, 0.0) == DONE


def test_stop_while_waiting_leaves_the_job() -> None:
    with pytest.raises(Preempted, match="continues by itself"):
        submit.wait(ScriptedJob(State("Running")), lambda: True, 60.0)


def test_container_exit_codes() -> None:
    assert [our_code(code) for code in (0, 1, 2, 65, 75, 77, 78, 143)] == [0, 1, 2, 65, 75, 77, 78, 143]
    assert [our_code(code) for code in (137, 127, 139)] == [75, 1, 1]


def test_wait_in_text(capsys: pytest.CaptureFixture[str]) -> None:
    events.configure(text=True)
    looks = State("Pending", reason="no room"), State("Running", ("a",)), DONE
    assert submit.wait(ScriptedJob(*looks), never, 0.0) == DONE
    assert capsys.readouterr() == ("a\n", "scripted: Pending (no room)\nscripted: Running\nscripted: Done\n")
