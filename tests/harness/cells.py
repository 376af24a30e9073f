"""The cells of the fault matrix: which fault on which phase's requests, and how the job may end."""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.harness.faults import LIST, Fault

TRANSIENT, NO_PERMISSION, BAD_DATA = 75, 77, 65

_RUNS = r" /[^/]+/runs/"
PHASES = {
    "pull": r"^GET .*/data/images\.zip",
    "checkpoint": rf"^PUT{_RUNS}.*/checkpoints/",
    "resume": rf"^(GET|HEAD){_RUNS}.*/(checkpoints|attempts|metrics)|^{LIST}",
    "report": rf"^PUT{_RUNS}.*/(report\.|model/|plots/)",
    "killed": rf"^PUT{_RUNS}.*/checkpoints/",
}
"""In "killed" the job is killed in mid-training while its checkpoints meet the fault, and goes on elsewhere."""

KILLED = -9
_BODIES_OF_CHECKPOINTS = rf"^(GET|PUT){_RUNS}.*/checkpoints/[0-9]+\.ckpt"
_ANYTHING = ""


@dataclass(frozen=True)
class Cell:
    """A fault in a phase. `codes` are those that the disturbed attempt may end with; after any but 0 the same command
    must end with 0 once the fault is gone, and with `kept` without another epoch of training."""

    fault: str
    phase: str
    codes: Sequence[int] = (0,)
    kept: bool = False

    @property
    def name(self) -> str:
        return f"{self.fault}-{self.phase}"

    def make(self, last_step: int) -> Fault:
        """The fault to arm; `last_step` is the run's."""
        return _MAKERS.get(self.fault, _burst)(self.fault, self.phase, last_step)


def _burst(kind: str, phase: str, last_step: int) -> Fault:
    """A few requests in a row; where a resume makes many, every other one of them."""
    if phase == "resume":
        return Fault(kind, PHASES[phase], times=12, every=2)
    return Fault(kind, PHASES[phase], times=4)


def _one_body(kind: str, phase: str, last_step: int) -> Fault:
    match = _BODIES_OF_CHECKPOINTS if phase in ("resume", "checkpoint") else PHASES[phase]
    return Fault(kind, match, times=1)


def _long_stall(kind: str, phase: str, last_step: int) -> Fault:
    """Longer than any client waits for a byte by default."""
    made = _one_body(kind, phase, last_step)
    made.amount = 70.0
    return made


def _for_good(kind: str, phase: str, last_step: int) -> Fault:
    return Fault(kind, PHASES[phase])


def _everything(kind: str, phase: str, last_step: int) -> Fault:
    return Fault(kind, _ANYTHING, trigger=PHASES[phase])


def _outage(kind: str, phase: str, last_step: int) -> Fault:
    return Fault(kind, PHASES[phase], times=1)


def _lists(kind: str, phase: str, last_step: int) -> Fault:
    """Nothing is listed any more once the report goes up, so there it begins with the last checkpoint."""
    trigger = rf"^PUT .*/checkpoints/{last_step}\.json" if phase == "report" else PHASES[phase]
    return Fault("denied", f"^{LIST}", trigger=trigger)


_MAKERS = {
    "flip": _one_body,
    "rot": _one_body,
    "stall": _long_stall,
    "latency": _for_good,
    "throttle": _for_good,
    "outage": _outage,
    "expired": _everything,
    "expired-403": _everything,
    "denied-list": _lists,
}


def cells(faults: Sequence[str] = (), phases: Sequence[str] = ()) -> list[Cell]:
    """All cells, or those of the faults and phases named. Raises ValueError when there is none."""
    everywhere = tuple(phase for phase in PHASES if phase != "killed")
    passing = ("503", "500", "429", "reset", "truncate", "flip", "stall", "latency", "throttle")
    found = [Cell(fault, phase) for fault in passing for phase in everywhere if (fault, phase) != ("flip", "pull")]
    # What came flipped has not the digest that --data demands: that may be said, or mended at once.
    found.append(Cell("flip", "pull", codes=(0, BAD_DATA)))
    # Damaged behind the digest that was checked: on the way in, or later, at rest.
    found += [Cell("rot", phase) for phase in ("checkpoint", "resume", "report")]
    found += [Cell(fault, "killed", codes=(KILLED,)) for fault in ("503", "latency", "throttle")]
    found += [Cell("outage", phase) for phase in ("pull", "checkpoint", "resume", "report")]
    for fault in ("expired", "expired-403", "denied-list"):
        found += [Cell(fault, p, codes=(NO_PERMISSION,), kept=p in ("checkpoint", "report")) for p in everywhere]
    wanted = [c for c in found if (not faults or c.fault in faults) and (not phases or c.phase in phases)]
    if not wanted:
        names = ", ".join(dict.fromkeys(cell.fault for cell in found))
        raise ValueError(f"no such cell: the faults are {names}; the phases {', '.join(PHASES)}")
    return sorted(wanted, key=lambda cell: (cell.fault, list(PHASES).index(cell.phase)))
