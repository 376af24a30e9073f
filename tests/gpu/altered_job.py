"""A job on a machine that is broken or lacks something, as a process of its own.

    python tests/gpu/altered_job.py CHANGE parta --data demo: ...

`illegal-access` has the card fail in the third step, `memory` has it run out of memory there, `no-compiler` hides
Triton and the C compiler, `no-nvml` hides the package that asks the driver, with a heartbeat each 0.2 s. On a CPU, the
first two raise what torch raises for a card.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FAILING_STEP = 3
COMPILERS = ("cc", "gcc", "clang", "c++", "g++", "clang++")


Ended = subprocess.CompletedProcess[str]


def run_altered(change: str, arguments: Sequence[str], cwd: Path) -> Ended:
    """Run a job to its end, with a change applied."""
    command = [sys.executable, __file__, change, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def lose_device(module: Any) -> None:
    """An illegal access, after which the process cannot use the card."""
    import torch

    if module.device.type != "cuda":
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    from tests.gpu.illegal_access import lose_card

    lose_card()


def exhaust_memory(module: Any) -> None:
    """Ask for more memory than any card has."""
    import torch

    if module.device.type != "cuda":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 PiB.")
    torch.empty(2**50, dtype=torch.uint8, device="cuda")


def _fail_in_step(act: Callable[[Any], None]) -> None:
    from inat_job.models.classifier import Classifier

    step, count = Classifier.training_step, 0

    def failing(self: Any, batch: Any, batch_idx: int) -> Any:
        nonlocal count
        count += 1
        if count == FAILING_STEP:
            act(self)
        return step(self, batch, batch_idx)

    Classifier.training_step = failing  # type: ignore[method-assign]


def _hide_compiler() -> None:
    import shutil

    which = shutil.which
    shutil.which = lambda name, *rest: None if name in COMPILERS else which(name, *rest)  # type: ignore
    sys.modules["triton"] = None  # type: ignore[assignment]


def _hide_nvml() -> None:
    from inat_job.telemetry import heartbeat

    sys.modules["pynvml"] = None  # type: ignore[assignment]
    heartbeat.emit_heartbeats = partial(heartbeat.emit_heartbeats, 0.2)


CHANGES: dict[str, Callable[[], None]] = {
    "illegal-access": partial(_fail_in_step, lose_device),
    "memory": partial(_fail_in_step, exhaust_memory),
    "no-compiler": _hide_compiler,
    "no-nvml": _hide_nvml,
}


def main() -> None:
    sys.path.insert(0, str(ROOT))
    change = sys.argv.pop(1)
    import entrypoint

    CHANGES[change]()
    entrypoint.main()


if __name__ == "__main__":
    main()
