"""Many jobs started at once for one run: only one of them trains, and the run ends as if it had been alone.

INAT_TEST_JOBS is the number of jobs, 4 by default; the full test uses 16.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.harness import soak, warm_jobs
from tests.harness.attempts import SoakSetup
from tests.harness.cases import SINGLE_WRITER_CASE
from tests.harness.runner import EndedJob, Job
from tests.harness.stores import Result, damaged_checkpoints, report_of, result_of

JOBS = int(os.environ.get("INAT_TEST_JOBS", "4"))
TRANSIENT = 75

pytestmark = [pytest.mark.soak, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module", params=["local", "s3"])
def setup(request: pytest.FixtureRequest) -> Iterator[SoakSetup]:
    with soak.soak_setup(request.param) as made:
        yield made


@pytest.fixture(scope="module")
def alone(setup: SoakSetup) -> Result:
    """The result of a job that is the only one for its run."""
    with start(setup, "alone", "alone", "work") as job:
        ended = job.end()
    result = result_of(setup.output, "alone")
    assert (ended.code, result is not None) == (0, True), ended.last
    assert result
    return result


def start(setup: SoakSetup, run: str, cache: str, work: str) -> Job:
    """A job in a fork of a process that has imported the libraries, so that the jobs reach the run close together."""
    arguments = SINGLE_WRITER_CASE.arguments(setup.data, setup.output.uri, setup.folder / cache, run)
    return Job(arguments, setup.environment, setup.folder / work, start=warm_jobs.fork_job)


def start_at_once(setup: SoakSetup, run: str, shared_cache: bool) -> list[EndedJob]:
    with ExitStack() as stack:
        jobs = []
        for number in range(JOBS):
            cache = f"{run}-cache" if shared_cache else f"{run}-cache-{number}"
            jobs.append(stack.enter_context(start(setup, run, cache, f"{run}-work-{number}")))
        return [job.end(timeout=60 + 20 * JOBS) for job in jobs]


@pytest.mark.parametrize("shared_cache", [True, False], ids=["one-cache", "own-caches"])
def test_exactly_one_of_many_jobs_trains(setup: SoakSetup, alone: Result, shared_cache: bool) -> None:
    run = "one-cache" if shared_cache else "own-caches"
    ended = start_at_once(setup, run, shared_cache)
    assert not any(each.hung for each in ended)
    trained = [each for each in ended if each.named("epoch") or "train" in each.phases()]
    assert len(trained) == 1
    assert trained[0].code == 0, trained[0].last
    for each in ended:
        if each is not trained[0]:
            assert was_turned_away(each), (each.code, each.last, each.named("done"))
    assert result_of(setup.output, run) == alone
    assert damaged_checkpoints(setup.output, run) == []
    assert len((report_of(setup.output, run) or {})["history"]) == 1


def was_turned_away(ended: EndedJob) -> bool:
    """Whether a job reported that another one holds the run, or had already finished it."""
    if ended.code == 0:
        return any("Already finished" in str(event.fields["message"]) for event in ended.named("done"))
    reasons = "is held by", "taken over"
    return ended.code == TRANSIENT and any(reason in ended.last for reason in reasons)
