"""How many GPUs this machine has, without the seconds that torch takes to import, where that can be known."""

import re
import subprocess
import sys
from pathlib import Path

_DEVICE = re.compile(r"nvidia\d+")
_ASK = "import torch; print(torch.cuda.device_count())"
_PATIENCE_S = 120.0


def count(devices: Path = Path("/dev")) -> int:
    """GPUs that torch may use here, 0 without one.

    A container sees a device file for each GPU that it was given. Where there is more than one, torch is asked, which
    knows of CUDA_VISIBLE_DEVICES, of parts of a GPU, and of drivers that are too old.
    """
    seen = sum(bool(_DEVICE.fullmatch(path.name)) for path in devices.glob("nvidia*"))
    return seen if seen < 2 else _asked()


def _asked() -> int:
    command = [sys.executable, "-c", _ASK]
    said = subprocess.run(command, capture_output=True, timeout=_PATIENCE_S, check=False)  # noqa: S603
    return int(said.stdout) if said.stdout.strip().isdigit() else 0
