"""Many jobs that are started at once for one run: one of them trains, and the run ends as if it had been alone.

INAT_TEST_JOBS says how many, 4 by default; the full number is 16.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.harness import runner, soak
from tests.harness.attempts import Platform
from tests.harness.cases import LONE_CASE
from tests.harness.runner import Ended, Job
from tests.harness.stores import damaged_checkpoints, report_of, result_of

JOBS = int(os.environ.get("INAT_TEST_JOBS", "4"))
TRANSIENT = 75

pytestmark = [pytest.mark.soak, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest) -> Iterator[Platform]:
    with soak.place(request.param) as made:
        yield made


def command(place: Platform, run: str, cache: str) -> list[str]:
    return LONE_CASE.arguments(place.data, place.output.uri, place.folder / cache, run)


def started_at_once(place: Platform, run: str, shared_cache: bool) -> list[Ended]:
    with ExitStack() as stack:
        jobs = []
        for number in range(JOBS):
            arguments = command(place, run, "shared" if shared_cache else f"cache-{number}")
            jobs.append(stack.enter_context(Job(arguments, place.environment, place.folder / f"work-{number}")))
        return [job.end(timeout=60 + 20 * JOBS) for job in jobs]


@pytest.mark.parametrize("shared_cache", [True, False], ids=["one-cache", "own-caches"])
def test_exactly_one_of_many_trains(place: Platform, shared_cache: bool) -> None:
    alone = runner.run(command(place, "alone", "alone"), place.environment, place.folder)
    assert alone.code == 0, alone.last
    ended = started_at_once(place, "together", shared_cache)
    assert not any(each.hung for each in ended)
    trained = [each for each in ended if each.named("epoch") or "train" in each.phases()]
    assert len(trained) == 1
    assert trained[0].code == 0, trained[0].last
    for each in ended:
        if each is not trained[0]:
            assert is_turned_away(each), (each.code, each.last, each.named("done"))
    result = result_of(place.output, "together")
    assert result is not None
    assert result == result_of(place.output, "alone")
    assert damaged_checkpoints(place.output, "together") == []
    assert len((report_of(place.output, "together") or {})["history"]) == 1


def is_turned_away(ended: Ended) -> bool:
    """Whether a job said that another one has the run, or had finished it when its turn came."""
    if ended.code == 0:
        return any("Already finished" in str(event.fields["message"]) for event in ended.named("done"))
    words = "is held by", "taken over"
    return ended.code == TRANSIENT and any(word in ended.last for word in words)
