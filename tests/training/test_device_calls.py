"""A training step copies nothing to a GPU and does not wait for it, counted on tensors of a GPU that is not there."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

from inat_job.data.augment import cut_views
from inat_job.data.batches import Batch
from inat_job.data.cache_index import Cache
from inat_job.data.features import Features
from inat_job.data.module import ImageDataModule
from inat_job.models.backbones import build_backbone
from inat_job.models.classifier import Classifier
from inat_job.models.five_block import FiveBlockSpec, build_five_block
from inat_job.settings import DataSettings, TrainSettings
from inat_job.training.checkpoint_callback import CheckpointCallback
from inat_job.training.metrics_log import MetricsLog
from tests.harness.device_calls import DeviceCalls, fake_cuda
from tests.harness.job_runs import run, settings_in
from tests.harness.made_images import tree, write_zip
from tests.harness.small_caches import small_cache

ROWS, SIDE = 40, 40
DATA, TRAIN = DataSettings(image_size=32), TrainSettings(batch_size=8, colour=0.3, rotation=10.0)
MIXED = dataclasses.replace(TRAIN, trivial_augment=1.0, erase=0.5, cutmix=1.0, mixup=0.2)
GPU = torch.device("cuda", 0)
VIEW_OPERATORS = 20
"""One for each change of a whole batch: more would be work on a few numbers, each of which is a launch too."""


@pytest.fixture
def images(tmp_path: Path) -> ImageDataModule:
    return opened(small_cache(tmp_path, bytes(ROWS * SIDE * SIDE * 3), SIDE, ((40, 30),) * ROWS), TRAIN)


def opened(cache: Cache, train: TrainSettings) -> ImageDataModule:
    """With its file open, which no fake tensor can have."""
    found = ImageDataModule(cache, train, DATA)
    assert found.pixel_rows.device.type == "cpu"
    return found


def classifier(part: str) -> Classifier:
    with torch.device("cuda"):
        if part == "a":
            spec = FiveBlockSpec((4, 4, 8, 8, 8), (3,) * 5, "relu", 8, "flatten", True, 0.1, 32, 2)
            return Classifier(build_five_block(spec), TRAIN, 10)
        return Classifier(build_backbone("resnet50", 2, 32), TRAIN, 10)


@pytest.mark.parametrize("part", ["a", "b"])
def test_step_neither_copies_nor_waits(images: ImageDataModule, part: str) -> None:
    with fake_cuda():
        images.pixel_rows.place(GPU, resident=True)
        module = classifier(part).train()
        with DeviceCalls() as epoch:
            take = images.view_batches(0, images.train_rows)
        assert (len(epoch.copies), epoch.waits) == (4, []), "order, labels, maps and colours, once an epoch"
        for step in range(2):
            with DeviceCalls() as assembly:
                batch = take(slice(8 * step, 8 * step + 8))
            assert assembly.operators == {"index_select": 1}
            with torch.autocast("cuda", torch.bfloat16), DeviceCalls() as forward:
                module.training_step(batch, step)
            assert not (assembly.copies + assembly.waits + forward.copies + forward.waits)


def test_mixed_step_neither_copies_nor_waits(images: ImageDataModule) -> None:
    mixed = opened(images.cache, MIXED)
    with fake_cuda():
        mixed.pixel_rows.place(GPU, resident=True)
        module, kinds = classifier("a").train(), set[bool]()
        with DeviceCalls() as epoch:
            take = mixed._train_batches(0, mixed.train_rows)
        assert (len(epoch.copies), epoch.waits) == (5, []), "with the boxes to erase"
        for step in range(4):
            batch = take(slice(8 * step, 8 * step + 8))
            kinds.add(batch.mix.is_cutmix)
            with torch.autocast("cuda", torch.bfloat16), DeviceCalls() as forward:
                module.training_step(batch, step)
            assert forward.copies + forward.waits == []
    assert kinds == {True, False}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
def test_view_is_cut_in_float32_by_few_operators(images: ImageDataModule, training: bool, dtype: torch.dtype) -> None:
    with fake_cuda():
        images.pixel_rows.place(GPU, resident=True)
        take = images.view_batches(0, images.train_rows) if training else images._plain_batches(images.train_rows)
        batch = take(slice(8))
        with torch.autocast("cuda", dtype), DeviceCalls() as view:
            cut_views(batch.pixels, batch.maps, batch.colour, 32)
    assert set.union(*view.dtypes.values()) == {torch.float32}
    assert sum(view.operators.values()) <= VIEW_OPERATORS
    assert not view.copies + view.waits
    assert "bmm" not in view.operators, "which may be rounded, in TF32 too"


def test_images_in_host_memory_are_copied_once_a_batch(images: ImageDataModule) -> None:
    with fake_cuda():
        images.pixel_rows.place(GPU, resident=False)
        take = images.view_batches(0, images.train_rows)
        batch = take(slice(8))
        assert [each.is_cuda for each in batch[:4]] == [False, True, True, True]
        with DeviceCalls() as calls:
            Batch(*(each.to(GPU, non_blocking=True) for each in batch[:4]), *batch[4:])
    assert (calls.copies, calls.waits) == (["_to_copy"], [])


def test_step_on_resident_features_neither_copies_nor_waits(tmp_path: Path) -> None:
    features = Features(tmp_path, np.arange(6) % 2, train=np.array([5, 2, 3]), val=np.array([0, 1]), views=1)
    for file in (features.views[0], features.val):
        with file.writer() as writer:
            writer.add(torch.zeros(len(file.rows), 4))
        assert file.load()
    with fake_cuda():
        features.place(GPU, resident=True)
        take = features.train_batches(0, np.array([2, 5, 3]))
        with DeviceCalls() as calls:
            batch = take(slice(2))
    assert (batch.features.is_cuda, batch.labels.is_cuda) == (True, True)
    assert (calls.operators, calls.copies, calls.waits) == ({"index_select": 1}, [], [])


@pytest.mark.filterwarnings("ignore")  # Lightning's remarks on a trainer without workers and loggers
def test_training_reads_no_scalar_in_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a whole run of Lightning with our callbacks, on a CPU, where reading a scalar is the same operator."""
    calls, waits = DeviceCalls(), list[list[str]]()
    start, end, flush = MetricsLog.on_train_batch_start, CheckpointCallback.on_train_batch_end, MetricsLog.flush

    def on_start(self: MetricsLog, *args: Any) -> None:
        calls.__enter__()
        start(self, *args)

    def on_end(self: CheckpointCallback, *args: Any) -> None:
        end(self, *args)
        calls.__exit__(None, None, None)
        waits.append(list(calls.waits))
        calls.waits.clear()

    def on_flush(self: MetricsLog) -> None:
        with _disable_current_modes():  # what it reads has arrived
            flush(self)

    monkeypatch.setattr(MetricsLog, "flush", on_flush)
    monkeypatch.setattr(MetricsLog, "on_train_batch_start", on_start)
    monkeypatch.setattr(CheckpointCallback, "on_train_batch_end", on_end)
    archive = write_zip(tmp_path / "x.zip", tree(train=20, test=5))
    settings = settings_in(tmp_path, archive, train__precision="fp32", train__epochs="4")
    run(settings)
    assert [each for each in waits if each] == []
    rows = Path(settings.run.output, settings.run_id, "metrics.jsonl").read_text().splitlines()
    steps = [row["step"] for row in map(json.loads, rows) if "train_loss" in row]
    last = len(waits) // 4
    assert steps == sorted({*range(10, len(waits) + 1, 10), *range(last, len(waits) + 1, last)})
