"""Faults of the device in real runs: exit code, last line, and that nothing uses the device afterwards.

They are raised by patched calls, at each place of a run that uses the device.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy

from inat_job.data.batches import PixelRows
from inat_job.distributed.failures import lost_rank_errors
from inat_job.errors import DeviceError
from inat_job.job_status import STATUS
from inat_job.models.classifier import Classifier
from inat_job.signals import StopFlag
from inat_job.training import context
from inat_job.training.checkpoint_callback import CheckpointCallback
from inat_job.training.feature_cache import StemPass
from tests.harness.in_process import Ended, in_process

ECC = torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be late")
FULL = torch.AcceleratorError("CUDA error: out of memory")
ASSERT = torch.AcceleratorError("CUDA error: device-side assert triggered")
KERNEL = RuntimeError("CUDA error: no kernel image is available for execution on the device")
Job = Callable[..., Ended]

LAST = {
    ECC: (75, "Error: The device failed (CUDA error: uncorrectable ECC error encountered): run the same command again"),
    FULL: (78, "Error: Out of memory at these settings: lower --batch-size"),
    ASSERT: (1, "Error: Unexpected AcceleratorError: this is a bug"),
    KERNEL: (78, "Error: This torch has no code for the device: use a newer GPU"),
}
FAULTS = pytest.mark.parametrize("error", LAST, ids=["ecc", "memory", "assert", "kernel"])

SMALL = "--data demo: --image-size 32 --batch-size 32 --epochs 2 --wandb off --no-pictures --run-id r".split()
PART_A = ["parta", *SMALL, "--filters", "4", "--dense", "8"]
PART_B = ["partb", *SMALL, "--backbone", "mobilenet_v3_small", "--weights", "none"]


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def job(
    cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Job]:
    monkeypatch.setenv("INAT_OUTPUT", str(tmp_path / "runs"))
    monkeypatch.setenv("INAT_CACHE_DIR", str(cache_dir))
    with in_process(monkeypatch, capsys) as run:
        yield run


@pytest.fixture
def touches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What used the device, or would have, after a fault: Lightning's way back from it, and torch's own calls."""
    calls: list[str] = []
    monkeypatch.setattr(SingleDeviceStrategy, "teardown", lambda self: calls.append("teardown"))
    for name in ("empty_cache", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda *args, name=name: calls.append(name))
    return calls


def failing(
    owner: type, method: str, error: Exception, monkeypatch: pytest.MonkeyPatch, after: int = 0, earlier: Any = ()
) -> None:
    """Let a method work `after` times, and then raise, with the list `earlier` emptied."""
    right, calls = getattr(owner, method), [0]

    def fail(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] > after:
            if earlier:
                earlier.clear()
            raise error
        return right(*args, **kwargs)

    monkeypatch.setattr(owner, method, fail)


def ends_as(ended: Ended, error: Exception) -> bool:
    code, last = LAST[error]
    return ended.code == code and ended.last.startswith(last)


@FAULTS
def test_fault_in_training_names_the_last_checkpoint(
    job: Job, touches: list[str], error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failing(Classifier, "training_step", error, monkeypatch, after=15, earlier=touches)
    ended = job(*PART_A)
    assert ends_as(ended, error), ended
    lost = error in (ECC, ASSERT)
    stored = sorted(int(path.stem) for path in (tmp_path / "runs" / "r" / "checkpoints").glob("*.ckpt"))
    assert len(stored) == 1  # none was taken after the fault
    assert (f"The last checkpoint in {tmp_path}/runs/r is of step {stored[0]}." in ended.last) is lost
    assert (touches == []) is lost


@FAULTS
def test_fault_as_the_network_moves_to_the_device(job: Job, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(SingleDeviceStrategy, "model_to_device", error, monkeypatch)
    assert ends_as(job(*PART_A), error)


@FAULTS
def test_fault_as_the_network_is_built(job: Job, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(context, "build", error, monkeypatch)
    ended = job(*PART_A)
    assert ends_as(ended, error)
    assert error is not ECC or ended.last.endswith("/runs/r.")


@FAULTS
def test_fault_in_validation_and_again_in_the_owed_one(
    job: Job, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(Classifier, "validation_step", error, monkeypatch)
    take = CheckpointCallback.on_validation_start

    def take_and_write(self: CheckpointCallback, trainer: Trainer, pl_module: LightningModule) -> None:
        take(self, trainer, pl_module)
        self._uploader.wait_until_written()  # what is not written when the device fails is given up

    monkeypatch.setattr(CheckpointCallback, "on_validation_start", take_and_write)
    first = job(*PART_A)
    STATUS.__init__()  # type: ignore[misc]
    again = job(*PART_A)
    assert ends_as(first, error)
    assert ends_as(again, error)
    if error is ECC:
        assert first.last == again.last  # which names the checkpoint that it resumed from
        assert "is of step " in again.last


@FAULTS
def test_fault_in_the_final_evaluation_and_in_the_test_command(
    job: Job, error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failing(Classifier, "predict_step", error, monkeypatch)
    assert ends_as(job(*PART_A), error)
    ended = job("test", "--checkpoint", str(tmp_path / "runs" / "r"), "--wandb", "off")
    assert ends_as(ended, error)
    assert "--image-size" not in ended.last
    assert "--accumulate" not in ended.last


@pytest.mark.soak
@FAULTS
def test_fault_in_the_feature_pass(job: Job, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(StemPass, "predict_step", error, monkeypatch)
    assert ends_as(job(*PART_B, "--strategy", "head", "--no-augment", "--epochs", "3", "--image-size", "32"), error)


@FAULTS
def test_fault_in_the_bench(job: Job, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(Classifier, "training_step", error, monkeypatch, after=2)
    words = (
        "bench --part a --data demo: --image-size 32 --batch-size 32 --filters 4 --dense 8 --stages forward --runs 1"
    )
    assert ends_as(job(*words.split()), error)


def fake_gpu_context(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> tuple[Any, list[Any]]:
    """What `place` reads of a context on a GPU, where copying the images raises; and whether they became resident."""
    placed: list[Any] = []

    class Rows:
        nbytes = 10

        def place(self, device: torch.device, resident: bool) -> None:
            if error and resident:
                raise error
            placed.append(resident)

    class Fake:
        place = context.RunContext.place

        class execution:  # noqa: N801
            accelerator = "cuda"

        class images:  # noqa: N801
            pixel_rows = Rows()

        class settings:  # noqa: N801
            class train:  # noqa: N801
                resident_share = 0.5

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (100, 200))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    return Fake(), placed


def test_images_that_do_not_fit_after_all_stay_on_the_host(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error in (FULL, torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")):
        fake, placed = fake_gpu_context(monkeypatch, error)
        context.RunContext.move_images_to_gpu(fake)
        assert STATUS.resident is False
        assert placed == [False]
        out = capsys.readouterr().out
        assert "The pixels stay on the host" in out
        assert '"resident": false' in out
    fake, placed = fake_gpu_context(monkeypatch, None)
    context.RunContext.move_images_to_gpu(fake)
    assert STATUS.resident is True
    assert placed == [True]


def test_broken_device_in_residence_is_no_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, _ = fake_gpu_context(monkeypatch, ECC)
    with pytest.raises(torch.AcceleratorError):
        context.RunContext.move_images_to_gpu(fake)


@pytest.mark.soak
def test_half_copied_images_leave_the_host_rows_in_place(cache_dir: Path, job: Job, monkeypatch: Any) -> None:
    """Out of memory while the rows are copied, in a real run: it trains from the host."""
    real = PixelRows.place

    def no_room(self: PixelRows, device: torch.device, resident: bool) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(torch, "empty", lambda *args, **kwargs: (_ for _ in ()).throw(FULL))
            real(self, torch.device("cpu"), resident)

    def on_cpu(self: context.RunContext) -> None:
        monkeypatch.setattr(PixelRows, "place", no_room)
        fake, _ = fake_gpu_context(monkeypatch, None)
        fake.images.pixel_rows = self.images.pixel_rows
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**40, 2**40))
        right(fake)

    right = context.RunContext.move_images_to_gpu
    monkeypatch.setattr(context.RunContext, "move_images_to_gpu", on_cpu)
    ended = job(*PART_A)
    assert ended.code == 0, ended.last
    assert "The pixels stay on the host" in ended.stdout


def test_own_devices_fault_is_not_taken_for_the_loss_of_another_rank() -> None:
    stopped = StopFlag()
    stopped.set("SIGTERM")
    nccl = RuntimeError("NCCL error: unhandled cuda error\nLast error:\nCuda failure 'uncorrectable ECC error'")
    for error in (ECC, nccl):
        with pytest.raises(RuntimeError) as raised, lost_rank_errors(stopped, lambda: DeviceError("x")):
            raise error
        assert raised.value is error
