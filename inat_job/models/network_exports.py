"""The network in formats that need none of this code, each verified before it counts: ONNX, and torch.export's .pt2.

One file each. The input is `pixels`, float32 (batch, 3, S, S): RGB in 0..255, a view as `data/augment.py` cuts it,
with any batch size. The network's first layer, which normalises them, is inside. The output is `logits`.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inat_job.errors import BadDataError
from inat_job.models.model_files import EXPORTS
from inat_job.models.onnx_session import LOGITS, PIXELS, Run, open_session
from inat_job.storage.disk import sha256_of

TOLERANCE = 1e-4
"""Largest difference of a logit from eager mode's, in float32: absolute, or as a share of the largest logit if that is
beyond 1, since rounding grows with it."""
COMPARED = 200
"""Images whose logits are compared; the accuracy is of all."""

Views = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Makes the test batches: views float32 (B, 3, S, S) on the CPU, and labels int64 (B,), negative where padded."""


def export_verified(name: str, network: nn.Module, image_size: int, folder: Path, views: Views) -> dict[str, Any]:
    """Write a format's file to `folder`, and verify it: file, sha256, bytes, max_abs_diff, accuracy.

    `network` is in eval mode on the CPU, in float32. The file is deleted if it differs. Raises BadDataError for a
    difference beyond `TOLERANCE`, and whatever torch and onnx raise.
    """
    path = folder / EXPORTS[name]
    try:
        _WRITERS[name](network, image_size, path)
        difference, largest, accuracy = compare(_OPENERS[name](path), network, views())
        allowed = TOLERANCE * max(1.0, largest)
        if not difference <= allowed:  # also if it is not a number
            raise BadDataError(f"its logits differ by {difference:.2g} from those of the network, beyond {allowed:.2g}")
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    facts = {"file": path.name, "sha256": sha256_of(path), "bytes": path.stat().st_size}
    return {**facts, "max_abs_diff": difference, "accuracy": accuracy}


@torch.no_grad()
def compare(run: Run, network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float, float]:
    """The largest absolute difference of a logit and the largest absolute logit of the network, both over the first
    `COMPARED` images, and the accuracy of `run` on all images.
    """
    difference, largest, correct, n = 0.0, 0.0, 0, 0
    for padded, labels in batches:
        views, true = padded[labels >= 0], labels[labels >= 0]
        logits = run(views.numpy())
        if n < COMPARED:
            own = network(views[: COMPARED - n]).numpy()
            difference = float(np.maximum(difference, np.abs(own - logits[: len(own)]).max()))
            largest = max(largest, float(np.abs(own).max()))
        correct += int((logits.argmax(axis=1) == true.numpy()).sum())
        n += len(true)
    return difference, largest, correct / n


def open_pt2(path: Path) -> Run:
    """The program in a .pt2 file."""
    module = torch.export.load(path).module()

    @torch.no_grad()
    def run(views: np.ndarray) -> np.ndarray:
        logits: np.ndarray = module(torch.from_numpy(views)).numpy()
        return logits

    return run


def _traced(network: nn.Module, image_size: int) -> Any:
    """The network as an ExportedProgram with a dynamic batch; two example images, since torch specialises on one."""
    example = (torch.zeros(2, 3, image_size, image_size),)
    program = torch.export.export(network, example, dynamic_shapes={PIXELS: {0: torch.export.Dim("batch")}})
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # with the paths of this machine
    return program


def _write_pt2(network: nn.Module, image_size: int, path: Path) -> None:
    torch.export.save(_traced(network, image_size), path)


def _write_onnx(network: nn.Module, image_size: int, path: Path) -> None:
    program = torch.onnx.export(
        _traced(network, image_size),
        (),
        dynamo=True,
        input_names=[PIXELS],
        output_names=[LOGITS],
        verbose=False,  # or it prints to stdout
    )
    assert program is not None
    program.save(path, external_data=False)


_WRITERS: dict[str, Callable[[nn.Module, int, Path], None]] = {"onnx": _write_onnx, "pt2": _write_pt2}
_OPENERS: dict[str, Callable[[Path], Run]] = {"onnx": open_session, "pt2": open_pt2}
