"""Too little memory or disk is refused before the work; on a real small disk where one can be mounted."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from inat_job.errors import ConflictError
from inat_job.host import memory
from inat_job.models.strategies import Architecture
from inat_job.run import resources
from inat_job.settings import TrainSettings

MIB = 2**20
NETWORK = nn.Sequential(nn.Linear(1024, 1024, bias=False), nn.Linear(1024, 1024, bias=False))  # 4 MiB each


def architecture(strategy: str) -> Architecture:
    return Architecture("x", NETWORK, stages=(("0",),), head=("1",), strategy=strategy)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 48 MiB."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_trained_bytes_count_only_what_the_strategy_trains() -> None:
    assert architecture("head").trained_bytes() == 4 * MIB
    assert architecture("full").trained_bytes() == 8 * MIB


def test_disk_too_small_for_checkpoints_is_refused(small_disk: Path) -> None:
    with pytest.raises(ConflictError, match=r"has 50 MB free, and the checkpoints need 126 MB: free some"):
        resources.check_training(architecture("full"), TrainSettings(), small_disk)
    with pytest.raises(ConflictError, match=r"the checkpoints need 168 MB"):
        resources.check_training(architecture("full"), TrainSettings(ema=0.9), small_disk)
    with pytest.raises(ConflictError, match=r"the checkpoints need 84 MB"):
        resources.check_training(architecture("full"), TrainSettings(optimiser="sgd"), small_disk)
    (small_disk / "checkpoints").mkdir()
    with (small_disk / "checkpoints" / "6.ckpt").open("wb") as file:
        file.write(bytes(24 * MIB))  # counts as one of the checkpoints that must fit
    with pytest.raises(ConflictError, match="need 101 MB"):
        resources.check_training(architecture("full"), TrainSettings(), small_disk)


def test_memory_limit_too_low_for_libraries_or_network_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "limit_bytes", lambda: 300 * MIB)
    with pytest.raises(ConflictError, match=r"may use 315 MB of memory and needs more than 419 MB: raise"):
        resources.check_memory()
    monkeypatch.setattr(memory, "limit_bytes", lambda: resources.LEAST_MEMORY + 37 * MIB)
    resources.check_memory()
    # Twice a state of 8 + 2 * 4 MiB, and 4 of gradients.
    resources.check_training(architecture("head"), TrainSettings(), tmp_path)
    with pytest.raises(ConflictError, match="needs more than 478 MB"):
        resources.check_training(architecture("full"), TrainSettings(), tmp_path)


def test_unknown_memory_limit_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "limit_bytes", lambda: None)
    resources.check_memory(2**60)
