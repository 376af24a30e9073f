"""Checkpoints on their way to the store: what is known of each, which is next, and which are not worth sending."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from inat_job.training.manifest import Manifest, best_of, to_keep
from inat_job.training.state import Write


@dataclass
class Job:
    """A checkpoint on its way. `write` makes its file, where that was put off; `sent` says that the file is stored."""

    manifest: Manifest
    taken_at: float
    write: Write | None = None
    sent: bool = False


def next_step(waiting: Collection[int], known: Sequence[Manifest]) -> int:
    """The step that is stored first of those that wait: the best one's, and else the newest.

    Were a newer one stored before the best and the machine lost in between, the run would end with another best.
    """
    best = best_of(known)
    return best.step if best and best.step in waiting else max(waiting)


def superfluous(waiting: Collection[int], known: Sequence[Manifest]) -> set[int]:
    """The steps that retention would not keep, once they were stored."""
    return set(waiting) - to_keep(known)
