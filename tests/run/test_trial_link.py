"""The connection between a trial and its worker."""

import multiprocessing
import threading

from inat_job.run.trial_link import PRUNED, Epochs, TrialLink
from inat_job.signals import StopFlag


def answered(answer: bool | None) -> tuple[StopFlag, object]:
    """The stop flag after a report that is answered so, or whose worker is gone for None, and what the worker read."""
    ours, theirs = multiprocessing.Pipe()
    stop, read = StopFlag(), []

    def work() -> None:
        read.append(ours.recv())
        if answer is None:
            ours.close()
        else:
            ours.send(answer)

    worker = threading.Thread(target=work)
    worker.start()
    TrialLink(theirs, stop, 30.0).report((0.25, 0.5), last=False)
    worker.join()
    ours.close()
    theirs.close()
    return stop, read[0]


def test_trial_goes_on() -> None:
    stop, read = answered(False)
    assert not stop()
    assert read == Epochs([0.25, 0.5], last=False)


def test_trial_is_pruned() -> None:
    stop, _ = answered(True)
    assert stop()
    assert stop.why == PRUNED


def test_trial_stops_when_its_worker_is_gone() -> None:
    stop, _ = answered(None)
    assert stop()
    assert stop.why == "the loss of the sweep's worker"


def test_trial_does_not_wait_for_a_hung_worker() -> None:
    ours, theirs = multiprocessing.Pipe()
    stop = StopFlag()
    TrialLink(theirs, stop, 0.01).report([0.5], last=False)
    assert not stop()
    ours.close()
    theirs.close()
