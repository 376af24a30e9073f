"""The cells of the fault matrix: which fault hits the requests of which phase, and how the job may end."""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.harness.faults import HEADS, LIST, Fault

TRANSIENT, NO_PERMISSION, BAD_DATA = 75, 77, 65

_RUNS = r" /[^/]+/runs/"
PHASES = {
    "pull": r"^GET .*/data/images\.zip",
    "unproven": r"^GET .*/data/images\.zip",
    "lookup": r"^HEAD .*/data/images\.zip",
    "checkpoint": rf"^PUT{_RUNS}.*/checkpoints/",
    "resume": rf"^(GET|HEAD){_RUNS}.*/(checkpoints|attempts|metrics)|^{LIST}",
    "report": rf"^PUT{_RUNS}.*/(report\.|model/|plots/)",
    "killed": rf"^PUT{_RUNS}.*/checkpoints/",
}
"""In "unproven" and "lookup" --data has no digest.

In "killed" the job is killed in training while its checkpoints meet the fault, and resumed on another machine."""

KILLED = -9
_CHECKPOINT_BODIES = rf"^(GET|PUT){_RUNS}.*/checkpoints/[0-9]+\.ckpt"
_ANYTHING = ""


@dataclass(frozen=True)
class Cell:
    """A fault in a phase.

    The disturbed attempt may end with one of `codes`. After any code but 0 the same command must end with 0 once the
    fault is over, and if `training_kept`, without training another epoch.
    """

    fault: str
    phase: str
    codes: Sequence[int] = (0,)
    training_kept: bool = False

    @property
    def name(self) -> str:
        return f"{self.fault}-{self.phase}"

    def fault_for(self, last_step: int) -> Fault:
        """The fault to arm; `last_step` is the last step of the run."""
        return _MAKERS.get(self.fault, _burst)(self.fault, self.phase, last_step)


def _burst(kind: str, phase: str, last_step: int) -> Fault:
    """A few requests in a row, or every other of several for a resume, which makes many."""
    if phase == "resume":
        return Fault(kind, PHASES[phase], times=12, every=2)
    return Fault(kind, PHASES[phase], times=4)


def _one_body(kind: str, phase: str, last_step: int) -> Fault:
    match = _CHECKPOINT_BODIES if phase in ("resume", "checkpoint") else PHASES[phase]
    return Fault(kind, match, times=1)


def _long_stall(kind: str, phase: str, last_step: int) -> Fault:
    """Longer than the default time-out of any client."""
    fault = _one_body(kind, phase, last_step)
    fault.amount = 70.0
    return fault


def _permanent(kind: str, phase: str, last_step: int) -> Fault:
    return Fault(kind, PHASES[phase])


def _all_requests(kind: str, phase: str, last_step: int) -> Fault:
    return Fault(kind, _ANYTHING, trigger=PHASES[phase])


def _outage(kind: str, phase: str, last_step: int) -> Fault:
    return Fault(kind, PHASES[phase], times=1)


def _listings(kind: str, phase: str, last_step: int) -> Fault:
    """Listings are denied; from the last checkpoint on in the phase report, since a report lists nothing."""
    trigger = rf"^PUT .*/checkpoints/{last_step}\.json" if phase == "report" else PHASES[phase]
    return Fault("denied", f"^{LIST}", trigger=trigger)


def _page_for_listing(kind: str, phase: str, last_step: int) -> Fault:
    return Fault("page", f"^{LIST}", trigger=PHASES[phase], times=1)


_MAKERS = {
    "flip": _one_body,
    "rot": _one_body,
    **dict.fromkeys(HEADS, _one_body),
    "stall": _long_stall,
    "latency": _permanent,
    "throttle": _permanent,
    "outage": _outage,
    "expired": _all_requests,
    "expired-403": _all_requests,
    "denied-list": _listings,
    "page-list": _page_for_listing,
}


def select_cells(faults: Sequence[str] = (), phases: Sequence[str] = ()) -> list[Cell]:
    """All cells, or those of the given faults and phases. Raises ValueError if there is none."""
    all_phases = tuple(phase for phase in PHASES if phase not in ("killed", "lookup"))
    transient = ("503", "500", "429", "reset", "truncate", "flip", "stall", "latency", "throttle")
    found = [Cell(fault, phase) for fault in transient for phase in all_phases if (fault, phase) != ("flip", "pull")]
    # A flipped byte contradicts the digest in --data: the job may report that, or download it again at once.
    found.append(Cell("flip", "pull", codes=(0, BAD_DATA)))
    found += [Cell(fault, phase) for fault in HEADS for phase in ("pull", "unproven", "resume")]
    found += [Cell("page", "lookup"), Cell("page-list", "resume")]
    # Damage after the digest was checked: on the way into the store, or later, at rest.
    found += [Cell("rot", phase) for phase in ("checkpoint", "resume", "report")]
    found += [Cell(fault, "killed", codes=(KILLED,)) for fault in ("503", "latency", "throttle")]
    found += [Cell("outage", phase) for phase in all_phases]
    for fault in ("expired", "expired-403", "denied-list"):
        found += [
            Cell(fault, p, codes=(NO_PERMISSION,), training_kept=p in ("checkpoint", "report")) for p in all_phases
        ]
    wanted = [c for c in found if (not faults or c.fault in faults) and (not phases or c.phase in phases)]
    if not wanted:
        names = ", ".join(dict.fromkeys(cell.fault for cell in found))
        raise ValueError(f"no such cell: the faults are {names}; the phases {', '.join(PHASES)}")
    return sorted(wanted, key=lambda cell: (cell.fault, list(PHASES).index(cell.phase)))
