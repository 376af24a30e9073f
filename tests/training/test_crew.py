"""How ranks wait for each other, where no tensor goes between them yet."""

import threading

import pytest
from torch.distributed import HashStore

from inat_job.errors import Preempted
from inat_job.platforms.ranks import Rank
from inat_job.signals import StopFlag
from inat_job.training.crew import Crew


def test_who_is_done_sooner_waits_for_the_others_each_time() -> None:
    store = HashStore()
    slow, quick = (Crew(Rank(rank, 2, rank, 2), store) for rank in range(2))
    for _ in range(2):
        waiting = threading.Thread(target=quick.gather)
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        slow.gather()
        waiting.join(5)
        assert not waiting.is_alive()


def test_a_stop_ends_the_wait() -> None:
    stop = StopFlag()
    stop.set("SIGTERM")
    with pytest.raises(Preempted, match="waiting for the other ranks"):
        Crew(Rank(0, 2, 0, 2), HashStore(), stop).gather()


def test_alone_nobody_is_waited_for() -> None:
    Crew().gather()
