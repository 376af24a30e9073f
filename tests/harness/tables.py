"""The output of the harness: tables for people, summaries for machines."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from tests.harness.attempts import Attempt


class SoakedRun(Protocol):
    """A run of the soak, as far as the tables need it."""

    case: str
    name: str
    attempts: list[Attempt]

    @property
    def rounds(self) -> int: ...

    def violations(self) -> list[str]: ...


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |" for line in lines)


def soak_table(runs: Sequence[SoakedRun]) -> str:
    """A table with a row for each case, followed by what went wrong."""
    heads = ("case", "runs", "rounds", "codes", "killed in", "lost s, mean", "most", "verdict")
    rows = [_soak_row(case, [run for run in runs if run.case == case]) for case in dict.fromkeys(r.case for r in runs)]
    wrong = [f"- {text}" for run in runs for text in run.violations()]
    return "\n".join([markdown_table(heads, rows), *wrong])


def soak_summary(runs: Sequence[SoakedRun]) -> dict[str, Any]:
    """The same in plain values."""
    interrupted = _interrupted(runs)
    killed = [each.loss.seconds for each in interrupted if each.code != 143]
    return {
        "runs": len(runs),
        "rounds": sum(run.rounds for run in runs),
        "codes": dict(Counter(str(each.code) for run in runs for each in run.attempts)),
        "killed_in": dict(Counter(each.phase for each in interrupted)),
        "kill_lost_s": {"mean": round(_mean(killed), 3), "most": round(max(killed, default=0.0), 3)},
        "lost_steps": sum(each.loss.steps for each in interrupted),
        "slowest_attempt_s": round(max((each.seconds for run in runs for each in run.attempts), default=0.0), 1),
        "violations": [text for run in runs for text in run.violations()],
    }


def _soak_row(case: str, runs: Sequence[SoakedRun]) -> tuple[object, ...]:
    interrupted = _interrupted(runs)
    codes = Counter(each.code for each in interrupted)
    phases = Counter(each.phase for each in interrupted)
    lost = [each.loss.seconds for each in interrupted]
    wrong = sum(len(run.violations()) for run in runs)
    return (
        case,
        len(runs),
        sum(run.rounds for run in runs),
        " ".join(f"{code}x{count}" for code, count in sorted(codes.items())),
        " ".join(f"{phase}x{count}" for phase, count in phases.most_common()),
        f"{_mean(lost):.2f}",
        f"{max(lost, default=0.0):.2f}",
        f"{wrong} WRONG" if wrong else "same bits",
    )


def _interrupted(runs: Sequence[SoakedRun]) -> list[Attempt]:
    return [each for run in runs for each in run.attempts if each.interrupted]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
