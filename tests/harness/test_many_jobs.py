"""Many jobs started at once for one run: only one of them trains, and the run ends as if it had been alone.

INAT_TEST_JOBS is the number of jobs, 4 by default; the full test uses 16.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.harness import runner, soak
from tests.harness.attempts import SoakSetup
from tests.harness.cases import SINGLE_WRITER_CASE
from tests.harness.runner import EndedJob, Job
from tests.harness.stores import damaged_checkpoints, report_of, result_of

JOBS = int(os.environ.get("INAT_TEST_JOBS", "4"))
TRANSIENT = 75

pytestmark = [pytest.mark.soak, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(params=["local", "s3"])
def setup(request: pytest.FixtureRequest) -> Iterator[SoakSetup]:
    with soak.soak_setup(request.param) as made:
        yield made


def command(setup: SoakSetup, run: str, cache: str) -> list[str]:
    return SINGLE_WRITER_CASE.arguments(setup.data, setup.output.uri, setup.folder / cache, run)


def start_at_once(setup: SoakSetup, run: str, shared_cache: bool) -> list[EndedJob]:
    with ExitStack() as stack:
        jobs = []
        for number in range(JOBS):
            arguments = command(setup, run, "shared" if shared_cache else f"cache-{number}")
            jobs.append(stack.enter_context(Job(arguments, setup.environment, setup.folder / f"work-{number}")))
        return [job.end(timeout=60 + 20 * JOBS) for job in jobs]


@pytest.mark.parametrize("shared_cache", [True, False], ids=["one-cache", "own-caches"])
def test_exactly_one_of_many_jobs_trains(setup: SoakSetup, shared_cache: bool) -> None:
    alone = runner.run(command(setup, "alone", "alone"), setup.environment, setup.folder)
    assert alone.code == 0, alone.last
    ended = start_at_once(setup, "together", shared_cache)
    assert not any(each.hung for each in ended)
    trained = [each for each in ended if each.named("epoch") or "train" in each.phases()]
    assert len(trained) == 1
    assert trained[0].code == 0, trained[0].last
    for each in ended:
        if each is not trained[0]:
            assert was_turned_away(each), (each.code, each.last, each.named("done"))
    result = result_of(setup.output, "together")
    assert result is not None
    assert result == result_of(setup.output, "alone")
    assert damaged_checkpoints(setup.output, "together") == []
    assert len((report_of(setup.output, "together") or {})["history"]) == 1


def was_turned_away(ended: EndedJob) -> bool:
    """Whether a job reported that another one holds the run, or had already finished it."""
    if ended.code == 0:
        return any("Already finished" in str(event.fields["message"]) for event in ended.named("done"))
    reasons = "is held by", "taken over"
    return ended.code == TRANSIENT and any(reason in ended.last for reason in reasons)
