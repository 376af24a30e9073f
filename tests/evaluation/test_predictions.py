"""The report's logits are those of the exported model on the same images, also where the run used mixed precision."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from inat_job.data.augment import centre_maps, cut_views
from inat_job.data.module import ImageDataModule
from inat_job.evaluation.predictions import predict
from inat_job.models.export import load_exported
from inat_job.training import results
from tests.harness.job_runs import run, settings_in
from tests.harness.made_images import tree, write_zip

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's remarks on a trainer without workers and loggers


def test_exported_model_has_the_logits_of_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[Tensor] = []
    modules: list[ImageDataModule] = []
    batches = ImageDataModule.batches

    def keep_logits(*given: Any) -> Tensor:
        reported.append(predict(*given))
        return reported[-1]

    def keep_images(self: ImageDataModule, *given: Any) -> Any:
        modules.append(self)
        return batches(self, *given)

    monkeypatch.setattr(results, "predict", keep_logits)
    monkeypatch.setattr(ImageDataModule, "batches", keep_images)
    archive = write_zip(tmp_path / "x.zip", tree(train=20, test=8))
    settings = settings_in(tmp_path, archive, train__precision="bf16", train__batch_size="4")
    run(settings)

    images, test = modules[-1], modules[-1].test_rows
    index = images.cache.index
    pixels = torch.from_numpy(images.cache.pixels[test]).permute(0, 3, 1, 2)
    network, description = load_exported(Path(settings.run.output, settings.run_id, "model"))
    size, crop = description["preprocessing"]["image_size"], description["preprocessing"]["eval_crop"]
    views = cut_views(pixels, centre_maps(torch.tensor(index.sizes)[test], crop), None, size)
    with torch.inference_mode():
        logits = network(views)
    spread = logits.std(dim=0).mean()
    assert (reported[-1] - logits).abs().max() < 1e-4 * spread, "also where training computes in bf16"
