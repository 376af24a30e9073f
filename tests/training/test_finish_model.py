"""The last files of model/: what a failed export leaves, which packages it needs, and what timm gets."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import timm
import torch

from inat_job.errors import ConflictError
from inat_job.models import network_exports
from inat_job.models.export import load_exported
from inat_job.run import resources
from tests.harness.job_runs import SCHEMA, Make, report_of, run, settings_in
from tests.harness.made_images import tree, write_zip

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's and the exporters' remarks


@pytest.fixture
def settings(tmp_path: Path) -> Make:
    archive = write_zip(tmp_path / "x.zip", tree(train=8, test=4))
    return partial(settings_in, tmp_path, archive, train__epochs="1")


@pytest.mark.soak
def test_failed_export_fails_nothing_else(
    settings: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(network: Any, image_size: int, path: Path) -> None:
        path.write_bytes(b"half a file")
        raise RuntimeError("no operator\nfor this")

    monkeypatch.setitem(network_exports._WRITERS, "onnx", refuse)
    made = settings(run__export="onnx,pt2")
    run(made)
    report = report_of(made)
    jsonschema.validate(report, SCHEMA)
    assert report["exports"]["onnx"] == {"error": "no operator for this"}
    assert report["exports"]["pt2"]["max_abs_diff"] <= network_exports.TOLERANCE
    folder = Path(made.run.output) / "r" / "model"
    names = {"README.md", "model.json", "model.pt2", "model.safetensors"}
    assert {each.name for each in folder.iterdir()} == names
    assert list(json.loads((folder / "model.json").read_text())["exports"]) == ["pt2"]
    warnings = [line for line in capsys.readouterr().out.splitlines() if '"warning"' in line]
    assert any("The export to onnx failed, and is left out: no operator for this" in line for line in warnings)


@pytest.mark.soak
def test_missing_package_ends_the_job_at_its_start(settings: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_EXPORT_PACKAGES", ("onnx", "no_such_package"))
    made = settings(run__export="onnx")
    with pytest.raises(ConflictError, match="pip install no_such_package"):
        run(made)
    assert not Path(made.run.output).exists()
    run(settings(run__export="pt2"))


def test_export_changes_neither_the_run_id_nor_the_weights(settings: Make) -> None:
    assert settings().fingerprint() == settings(run__export="onnx").fingerprint()


@pytest.mark.soak
def test_timm_loads_the_model_of_a_run(settings: Make) -> None:
    made = settings("b", model__strategy="head")
    run(made)
    folder = Path(made.run.output) / "r" / "model"
    network, description = load_exported(folder)
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert loaded.pretrained_cfg["label_names"] == description["classes"]
    pixels = torch.randint(0, 256, (2, 3, 32, 32)).float()
    mean, std = (torch.tensor(loaded.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        assert torch.allclose(loaded((pixels / 255 - mean) / std), network(pixels), atol=1e-4)
    assert 'timm.create_model("local-dir:FOLDER"' in (folder / "README.md").read_text()
