"""What `make gpu` finds out, as one JSON: environment, tests, figures, speed table, and targets beside the figures."""

import json
import platform
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from inat_job.host import nvidia
from inat_job.training.execution import choose_precision

_PACKAGES = ("torch", "torchvision", "lightning", "numpy", "triton", "timm")
_SLOWEST = 10


def environment() -> dict[str, Any]:
    """The machine and its libraries; values of the card are None without one."""
    has_card = torch.cuda.is_available()
    return {
        "python": sys.version.split()[0],
        "kernel": platform.release(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": nvidia.find_driver().version,
        "gpus": torch.cuda.device_count(),
        "gpu": torch.cuda.get_device_name() if has_card else None,
        "memory_gib": torch.cuda.get_device_properties(0).total_memory / 2**30 if has_card else None,
        "capability": list(torch.cuda.get_device_capability()) if has_card else None,
        "architectures": torch.cuda.get_arch_list(),
        "precision": choose_precision("cuda") if has_card else None,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@dataclass
class Figures:
    """The figures of one run of the tests."""

    tests: dict[str, dict[str, Any]] = field(default_factory=dict)
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    speed: list[dict[str, Any]] = field(default_factory=list)
    targets: dict[str, dict[str, Any]] = field(default_factory=dict)
    _environment: dict[str, Any] = field(default_factory=dict)

    def record(self, section: str, **values: Any) -> None:
        """Keep figures under the name of what was measured."""
        self.figures.setdefault(section, {}).update(values)

    def aim(self, name: str, value: float | None, target: float, *, at_most: bool = False) -> None:
        """Keep a figure beside its target; None where it was not measured."""
        met = None if value is None else (value <= target if at_most else value >= target)
        self.targets[name] = {"value": value, "target": target, "at_most": at_most, "met": met}

    def add_test(self, name: str, outcome: str, seconds: float, message: str) -> None:
        """Keep the outcome of a test."""
        self.tests[name] = {"outcome": outcome, "seconds": round(seconds, 2), "message": message[:500]}

    def write(self, path: Path) -> None:
        """Write everything, completely or not at all."""
        self._environment = self._environment or environment()
        content = {
            "environment": self._environment,
            "tests": self.tests,
            "figures": self.figures,
            "speed": self.speed,
            "targets": self.targets,
        }
        draft = path.with_suffix(".tmp")
        draft.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        draft.replace(path)

    def lines(self) -> list[str]:
        """What a person reads at the end: the speed table, the targets, the slowest tests."""
        slowest = sorted(self.tests.items(), key=lambda item: -item[1]["seconds"])[:_SLOWEST]
        total = sum(test["seconds"] for test in self.tests.values())
        return [
            *(_row(row) for row in self.speed),
            *(_target_line(name, each) for name, each in self.targets.items()),
            f"Tests of the card: {total:.0f} s. The slowest:",
            *(f"{test['seconds']:8.1f} s  {name}" for name, test in slowest),
        ]


def _row(row: dict[str, Any]) -> str:
    return "  ".join(f"{name} {_short(value)}" for name, value in row.items())


def _target_line(name: str, each: dict[str, Any]) -> str:
    verdict = {True: "met", False: "NOT met", None: "not measured"}[each["met"]]
    bound = "at most" if each["at_most"] else "at least"
    return f"{verdict}: {name} is {_short(each['value'])}, the target is {bound} {_short(each['target'])}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
