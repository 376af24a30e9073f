"""Views: the same pixels whatever the precision and the device."""

from typing import Any

import pytest
import torch
from lightning import Callback
from torch import Tensor

from inat_job.settings import Settings
from tests.gpu.figures import Figures
from tests.gpu.watched_runs import on_both, run
from tests.harness.job_runs import Make

LARGEST_ERROR = 0.05
"""Of 0..255: what fp32's rounding may change between devices. TF32 or bf16 coordinates change more."""


class KeepViews(Callback):
    """Keeps the first training view and the first validation view, cut under autocast and without."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self.under_autocast: dict[str, Tensor] = {}
        self.without: dict[str, Tensor] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._keep("training", pl_module, batch)

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, *rest: int) -> None:
        self._keep("validation", pl_module, batch)

    def _keep(self, name: str, module: Any, batch: Any) -> None:
        if name in self.without:
            return
        kind = module.device.type
        with torch.no_grad(), torch.autocast(kind, dtype=self._dtype):
            self.under_autocast[name] = module.view(batch).cpu()
        with torch.no_grad(), torch.autocast(kind, enabled=False):
            self.without[name] = module.view(batch).cpu()


def views_of(settings: Settings, dtype: torch.dtype) -> KeepViews:
    kept = KeepViews(dtype)
    run(settings, kept)
    assert kept.without.keys() == {"training", "validation"}
    return kept


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@on_both
def test_views_do_not_depend_on_the_precision(
    device: str, dtype: torch.dtype, settings: Make, figures: Figures
) -> None:
    kept = views_of(settings(train__epochs="1", train__accelerator=device, train__precision="fp32"), dtype)
    errors = {name: float((kept.under_autocast[name] - view).abs().max()) for name, view in kept.without.items()}
    figures.record(f"views under autocast, {device}", **{f"{dtype}": errors})
    assert set(errors.values()) == {0.0}


@pytest.mark.gpu
@pytest.mark.parametrize("resident_share", ["0.5", "0"])
def test_views_of_the_card_are_those_of_the_cpu(
    resident_share: str, settings: Make, figures: Figures, tmp_path: Any
) -> None:
    """Also with TF32, which the job allows in matrix products."""
    kept = [
        views_of(
            settings(
                run__output=str(tmp_path / device),
                train__epochs="1",
                train__accelerator=device,
                train__precision="fp32",
                train__resident_share=resident_share,
            ),
            torch.bfloat16,
        )
        for device in ("cpu", "cuda")
    ]
    errors = {name: float((kept[0].without[name] - view).abs().max()) for name, view in kept[1].without.items()}
    figures.record("views of the card against the CPU", **{f"resident share {resident_share}": errors})
    assert max(errors.values()) < LARGEST_ERROR
