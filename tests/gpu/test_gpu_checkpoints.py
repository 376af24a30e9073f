"""Checkpoints taken while training goes on: they hold the state of their step, and cost training little."""

import io
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from torch import Tensor

from inat_job.checkpoints.uploader import Uploader
from inat_job.settings import Settings
from inat_job.storage import run_folder
from inat_job.training.checkpoint_callback import CheckpointCallback
from tests.gpu.figures import Figures
from tests.gpu.watched_runs import folder_of, on_both_slowly, run, tensors_of
from tests.harness.job_runs import Make

STORE_MB_PER_S = 50
STEPS_PER_EPOCH = 24


class SlowStore:
    """A remote store of STORE_MB_PER_S; it keeps its objects in a local one, and their sizes in `sent`."""

    def __init__(self, kept: Any, sent: list[int]) -> None:
        self._kept, self._sent = kept, sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kept, name)

    def put(self, key: str, source: Path | bytes, **conditions: Any) -> Any:
        self._sent.append(source.stat().st_size if isinstance(source, Path) else len(source))
        time.sleep(self._sent[-1] / (STORE_MB_PER_S * 1e6))
        return self._kept.put(key, source, **conditions)


class KeepStates(Callback):
    """Keeps a copy, on the device, of weights and optimiser after every step; in stream order, so without a wait."""

    def __init__(self) -> None:
        self.states: dict[int, dict[str, Tensor]] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        state = {"state_dict": pl_module.state_dict(), "optimizer_states": [trainer.optimizers[0].state_dict()]}
        pl_module.on_save_checkpoint(state)  # the average of the weights takes their place
        copies = {name: tensor.detach().clone() for name, tensor in tensors_of(state).items()}
        self.states[trainer.global_step] = copies


@on_both_slowly
@pytest.mark.parametrize("minutes", ["5", "0"], ids=["each epoch", "each step"])
def test_checkpoint_holds_the_state_of_its_step(
    device: str, minutes: str, settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many steps are trained while it is written. Every file that was written is compared."""
    written: dict[int, dict[str, Tensor]] = {}
    save = torch.save

    def save_and_read(state: Any, file: Any, *rest: Any, **named: Any) -> None:
        buffer = io.BytesIO()
        save(state, buffer, *rest, **named)
        file.write(buffer.getvalue())
        found = torch.load(io.BytesIO(buffer.getvalue()), map_location="cpu", weights_only=True)
        kept = {name: found[name] for name in ("state_dict", "optimizer_states", "raw_weights")}
        written[int(found["global_step"])] = tensors_of(kept)

    monkeypatch.setattr(torch, "save", save_and_read)
    network = {"model__filters": "32,64,128,256,512"} if device == "cuda" else {}
    kept = KeepStates()
    run(settings(train__epochs="4", train__accelerator=device, run__checkpoint_minutes=minutes, **network), kept)
    assert len(written) >= 3
    for step, tensors in written.items():
        wrong = [name for name, each in tensors.items() if not torch.equal(each, kept.states[step][name].cpu())]
        assert wrong == [], f"the checkpoint of step {step}"


class EpochSeconds(Callback):
    """The seconds of each epoch's steps, the card's work included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._began = self._now()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """The checkpoint has been taken by now."""
        self.seconds.append(self._now() - self._began)

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def epoch_seconds(settings: Settings) -> list[float]:
    """Seconds of all epochs but the first, which warms up."""
    timer = EpochSeconds()
    run(settings, timer)
    return timer.seconds[1:]


@pytest.fixture
def stalls(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that training waits for each epoch's checkpoint."""
    found: list[float] = []
    take = CheckpointCallback.on_validation_start

    def timed(self: Any, trainer: Any, pl_module: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the steps before it are no part of it
        began = time.perf_counter()
        take(self, trainer, pl_module)
        found.append(time.perf_counter() - began)

    monkeypatch.setattr(CheckpointCallback, "on_validation_start", timed)
    return found


@on_both_slowly
def test_cost_of_checkpoints_is_recorded(
    device: str,
    settings: Make,
    large_archive: Path,
    tmp_path: Path,
    figures: Figures,
    stalls: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ResNet-50, whose state has 283 MB: with a fast store, with one of 50 MB/s, and without checkpoints."""
    is_card = device == "cuda"
    common = {
        "part": "b",
        "model__backbone": "resnet50" if is_card else "resnet18",
        "model__strategy": "full",
        "train__accelerator": device,
        "train__epochs": "6" if is_card else "3",
        "data__image_size": "224" if is_card else "32",
    }
    if is_card:  # epochs of some seconds
        common |= {"data__uri": str(large_archive), "data__cache_dir": str(large_archive.parent / "cache")}
        common |= {"train__batch_size": "64"}
    found: dict[str, list[float]] = {}
    waited: dict[str, list[float]] = {}
    save, opened = Uploader.save, run_folder.open_store
    sent: list[int] = []

    def open_slow(*given: Any, **named: Any) -> Any:
        return SlowStore(opened(*given, **named), sent)

    def save_first_and_last(self: Any, manifest: Any, *rest: Any, **named: Any) -> Any:
        last = manifest.epoch == int(common["train__epochs"])
        return save(self, manifest, *rest, **named) if last else manifest

    for name in ("fast store", "slow store", "none"):
        stalls.clear()
        monkeypatch.setattr(run_folder, "open_store", open_slow if name == "slow store" else opened)
        monkeypatch.setattr(Uploader, "save", save_first_and_last if name == "none" else save)
        found[name] = epoch_seconds(settings(run__output=str(tmp_path / name.replace(" ", "-")), **common))
        waited[name] = stalls[1:-1]
    monkeypatch.setattr(run_folder, "open_store", opened)
    size = max(path.stat().st_size for path in folder_of(settings(run__output=str(tmp_path / "none"))).rglob("*.ckpt"))
    assert max(sent) == size
    medians = {name: statistics.median(values) for name, values in found.items()}
    figures.record(f"checkpoints, {device}", bytes=size, epoch_s=found, stall_s=waited)
    for name in ("fast store", "slow store"):
        assert waited[name]
        if is_card:
            figures.aim(f"stall at a checkpoint, {name}, s", max(waited[name]), 0.02, at_most=True)
            figures.aim(
                f"epoch with a checkpoint, {name}, over without", medians[name] / medians["none"], 1.03, at_most=True
            )
            lost = medians[name] - medians["none"]
            figures.aim(f"checkpoint's share of an epoch of 3 s, {name}", lost / 3, 0.01, at_most=True)
