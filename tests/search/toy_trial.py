"""A trial that trains nothing: its accuracy is a function of its settings, kept in a folder, an epoch at a time."""

import fcntl
import json
import os
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from inat_job.run.trial_link import Ended, TrialLink
from inat_job.signals import StopFlag


@dataclass(frozen=True)
class Toy:
    """A trial's folder, its learning rate, its epochs, their seconds, and how it fails: a code, or a signal's name."""

    folder: Path
    lr: float
    epochs: int = 3
    epoch_s: float = 0.0
    fails: int = 0

    def write_all(self) -> None:
        """Write every epoch, as a run that has finished."""
        self.folder.mkdir(parents=True)
        lines = [{"accuracy": accuracy(self.lr, epoch)} for epoch in range(1, self.epochs + 1)]
        (self.folder / "epochs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def accuracy(lr: float, epoch: int) -> float:
    """The validation accuracy after an epoch, from 1."""
    return round(max(0.0, 0.9 - abs(lr - 3e-3) * 50) * (1 - 0.5**epoch), 6)


def run(toy: Toy, connection: Connection) -> Ended:
    """Go on after the epochs that the folder holds. Each epoch adds a line to epochs.jsonl."""
    stop = StopFlag()
    stop.install()
    stop.ignore_repeats()
    toy.folder.mkdir(parents=True, exist_ok=True)
    with (toy.folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return Ended(75, "Another job holds the run.", held=True)
        return _train(toy, TrialLink(connection, stop, 10.0), stop)


def _train(toy: Toy, link: TrialLink, stop: StopFlag) -> Ended:
    if toy.fails < 0:
        os.kill(os.getpid(), -toy.fails)
    if toy.fails:
        return Ended(toy.fails, f"It failed with {toy.fails}.", on_images=toy.fails == 65)
    path = toy.folder / "epochs.jsonl"
    done = [json.loads(line)["accuracy"] for line in path.read_text().splitlines()] if path.exists() else []
    if 0 < len(done) < toy.epochs:  # a finished run says nothing more
        link.report(done, len(done) == toy.epochs)
    while len(done) < toy.epochs:
        if stop():
            return Ended(143, f"Stopped by {stop.why}.")
        time.sleep(toy.epoch_s)
        done.append(accuracy(toy.lr, len(done) + 1))
        with path.open("a") as file:
            file.write(json.dumps({"accuracy": done[-1], "pid": os.getpid()}) + "\n")
        link.report(done, len(done) == toy.epochs)
    return Ended(0, "Done.", tuple(done))


def is_free(folder: Path, begun_at: float, lease_s: float) -> bool:
    """Whether no live process holds the trial's lock, or none was made `lease_s` seconds after the trial was begun."""
    if not folder.exists():
        return time.time() - begun_at >= lease_s
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True
