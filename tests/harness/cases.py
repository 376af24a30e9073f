"""The runs that the harness tries: each takes seconds, and together they cover everything that has state."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.harness.made_images import tree, write_zip


@dataclass(frozen=True)
class Case:
    """One command of the job, run by `ranks` processes."""

    name: str
    part: str
    checkpoint_minutes: float
    options: Sequence[str]
    ranks: int = 1

    def arguments(self, data: str, output: str, cache: Path, run: str) -> list[str]:
        """The whole command line."""
        small = "--image-size 32 --wandb off".split()
        paths = ["--data", data, "--output", output, "--cache-dir", str(cache), "--run-id", run]
        minutes = ["--checkpoint-minutes", str(self.checkpoint_minutes)]
        return [f"part{self.part}", *paths, *small, *minutes, *self.options]


def _part_a(name: str, options: str, ranks: int = 1) -> Case:
    network = "--filters 8 --dense 16 --dropout 0.3 --batch-size 8"
    return Case(name, "a", 0.004, f"{network} {options}".split(), ranks)


def _part_b(name: str, options: str) -> Case:
    # Checkpoints have 45 to 134 MB; with one each second, the run would do nothing but upload them.
    network = "--backbone resnet18 --weights none --precision fp32 --batch-size 24"
    return Case(name, "b", 0.05, f"{network} {options}".split())


CASES = (
    _part_a("a-fp32", "--precision fp32 --epochs 12 --early-stop 3"),
    _part_a("a-bf16", "--precision bf16 --epochs 9"),
    _part_a("a-ranks", "--precision fp32 --epochs 9 --accelerator cpu --devices 2", ranks=2),
    _part_b("b-head", "--strategy head --epochs 5 --feature-views 0"),
    _part_b("b-features", "--strategy head --epochs 6 --feature-views 2"),
    _part_b("b-last-k", "--strategy last-k --epochs 4 --feature-views 2"),
    _part_b("b-gradual", "--strategy gradual --epochs 3"),
    _part_b("b-full", "--strategy full --epochs 3"),
    _part_b("b-lp-ft", "--strategy lp-ft --epochs 3 --feature-views 1"),
)
MATRIX_CASE = _part_a("matrix", "--precision fp32 --epochs 6 --batch-size 24 --no-pictures --lease-seconds 20")
SINGLE_WRITER_CASE = _part_a("lone", "--precision fp32 --epochs 4 --no-pictures --lease-seconds 8")
FREEZE_CASE = Case(
    "freeze",
    "a",
    0.001,
    "--filters 4 --dense 8 --batch-size 8 --precision fp32 --epochs 3 --lease-seconds 4 --accelerator cpu".split(),
)
HANG_GRACE_S = 6.0
_HANG = f"--lease-seconds 4 --accelerator cpu --precision fp32 --batch-size 8 --grace-seconds {HANG_GRACE_S:g}"
HANG_CASE = Case("hang", "a", 0.001, f"--filters 4 --dense 8 --epochs 3 {_HANG}".split())
WEIGHTS_HANG_CASE = Case("weights", "b", 0.05, f"--backbone mobilenet_v3_small --epochs 1 {_HANG}".split())


def select_cases(parts: str) -> list[Case]:
    """The cases of the parts, such as "a,b", or those with the names given. Raises SystemExit if there is none."""
    wanted = parts.split(",")
    found = [case for case in CASES if case.part in wanted or case.name in wanted]
    if not found:
        raise SystemExit(f"--parts {parts} names none of {', '.join(case.name for case in CASES)}")
    return found


def write_images(folder: Path) -> Path:
    """Write a zip with three classes: 720 training, 180 validation and 30 test images."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_zip(folder / "images.zip", tree(train=300, test=10))


def with_digest(uri: str, archive: Path) -> str:
    """The URI, followed by the SHA-256 that the job must find."""
    return f"{uri}#sha256={hashlib.sha256(archive.read_bytes()).hexdigest()}"
