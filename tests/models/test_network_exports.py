"""ONNX and .pt2 against eager mode: logits, accuracy, any batch size; a file that differs is not kept."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from inat_job.errors import BadDataError, ConflictError
from inat_job.models import network_exports
from inat_job.models.backbones import build_backbone
from inat_job.models.five_block import FiveBlockSpec, build_five_block
from inat_job.models.network_exports import COMPARED, compare, export_verified, open_pt2
from inat_job.models.onnx_session import open_session

OPENERS = {"onnx": open_session, "pt2": open_pt2}
SPEC = FiveBlockSpec((4, 4, 8, 8, 8), (3, 3, 2, 3, 3), "mish", 6, "flatten", True, 0.1, 32, 3)
IMAGES = 255 * torch.rand(7, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, -1])  # the last is padding

pytestmark = pytest.mark.filterwarnings("ignore")  # the exporters' own deprecations


def views() -> Iterator[tuple[Tensor, Tensor]]:
    return zip(IMAGES.split(4), LABELS.split(4), strict=True)


@pytest.fixture(params=["five blocks", pytest.param("resnet18", marks=pytest.mark.soak)])
def network(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(1)
    made = build_five_block(SPEC) if request.param == "five blocks" else build_backbone("resnet18", 3, 32)
    made.network(IMAGES)  # so that batch norm has statistics
    return made.network.eval()


@pytest.mark.parametrize("name", OPENERS)
def test_export_has_the_logits_and_the_accuracy_of_the_network(name: str, network: nn.Module, tmp_path: Path) -> None:
    found = export_verified(name, network, 32, tmp_path, views)
    path = tmp_path / found["file"]
    assert [each.name for each in tmp_path.iterdir()] == [path.name]  # one file
    assert found["bytes"] == path.stat().st_size
    assert found["max_abs_diff"] <= 1e-5
    with torch.no_grad():
        right = network(IMAGES[:6]).argmax(dim=1) == LABELS[:6]
    assert found["accuracy"] == pytest.approx(right.float().mean().item())
    for count in (1, 5):
        with torch.no_grad():
            expected = network(IMAGES[:count]).numpy()
        np.testing.assert_allclose(OPENERS[name](path)(IMAGES[:count].numpy()), expected, atol=1e-5)


@pytest.mark.soak
def test_export_names_no_path_of_the_machine(network: nn.Module, tmp_path: Path) -> None:
    for name in OPENERS:
        export_verified(name, network, 32, tmp_path, views)
    root = str(Path(__file__).parents[2]).encode()
    assert not any(root in each.read_bytes() for each in tmp_path.iterdir())


@pytest.mark.soak
def test_onnx_file_passes_the_checker_and_has_a_dynamic_batch(network: nn.Module, tmp_path: Path) -> None:
    export_verified("onnx", network, 32, tmp_path, views)
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    [pixels], [logits] = model.graph.input, model.graph.output
    assert (pixels.name, logits.name) == ("pixels", "logits")
    assert pixels.type.tensor_type.shape.dim[0].dim_param
    assert [each.dim_value for each in pixels.type.tensor_type.shape.dim[1:]] == [3, 32, 32]


@pytest.mark.soak
@pytest.mark.parametrize("off_by", [0.001, float("nan")])
def test_export_that_differs_is_refused_and_deleted(
    off_by: float, network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(path: Path) -> network_exports.Run:
        run = open_session(path)
        return lambda batch: run(batch) + off_by

    monkeypatch.setitem(network_exports._OPENERS, "onnx", other)
    with pytest.raises(BadDataError, match="logits differ by"):
        export_verified("onnx", network, 32, tmp_path, views)
    assert not list(tmp_path.iterdir())


def test_accuracy_is_of_all_images_and_the_difference_of_the_first() -> None:
    network = nn.Linear(1, 2)
    nn.init.zeros_(network.weight)
    network.bias.data = torch.tensor([1.0, 0.0])
    n = COMPARED + 50

    def run(batch: np.ndarray) -> np.ndarray:
        return np.where(batch >= COMPARED, [[0.0, 1.0]], [[1.0, 0.0]]).astype(np.float32)  # differs beyond the first

    batches = zip(torch.arange(n).float()[:, None].split(64), torch.zeros(n, dtype=torch.int64).split(64), strict=True)
    assert compare(run, network, batches) == (0.0, 1.0, COMPARED / n)


def test_damaged_onnx_file_is_bad_data(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(BadDataError, match="export it again"):
        open_session(tmp_path / "model.onnx")


def test_missing_onnxruntime_is_a_conflict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConflictError, match="pip install onnxruntime"):
        open_session(tmp_path / "model.onnx")


def test_session_needs_no_torch() -> None:
    script = "import sys; sys.modules['torch'] = None; import onnxruntime, inat_job.models.onnx_session"
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=True)
