"""An exported model is rebuilt bit for bit, and a damaged one refused."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.models import get_model

from inat_job.errors import BadDataError
from inat_job.models.backbones import build_backbone
from inat_job.models.export import DESCRIPTION, WEIGHTS, export, load_exported
from inat_job.models.five_block import FiveBlockSpec, build_five_block
from inat_job.models.strategies import Architecture
from inat_job.storage.disk import sha256_of

SPEC = FiveBlockSpec((4, 4, 8, 8, 8), (3, 3, 2, 3, 3), "silu", 6, "gap", True, 0.1, 32, 3)
DESCRIPTION_FIELDS = {"classes": ["a", "b", "c"], "preprocessing": {"image_size": 32, "eval_crop": 0.95}}
PIXELS = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["five blocks", "shufflenet_v2_x0_5"])
def architecture(request: pytest.FixtureRequest) -> Architecture:
    torch.manual_seed(1)
    return build_five_block(SPEC) if request.param == "five blocks" else build_backbone("shufflenet_v2_x0_5", 3, 32)


def test_loaded_model_has_the_same_logits_and_description(architecture: Architecture, tmp_path: Path):
    architecture.network.get_submodule("preprocess").normalise_by((0.5,) * 3, (0.5,) * 3)
    architecture.network(PIXELS)  # so that batch norm statistics change
    export(architecture, tmp_path, DESCRIPTION_FIELDS)
    network, description = load_exported(tmp_path)
    assert not network.training
    assert {name: description[name] for name in DESCRIPTION_FIELDS} == DESCRIPTION_FIELDS
    assert torch.equal(network(PIXELS), architecture.network.eval()(PIXELS))


def test_model_of_an_earlier_version_is_loaded(architecture: Architecture, tmp_path: Path):
    """Its weights have the names of the whole network, and the first layer too."""
    export(architecture, tmp_path, DESCRIPTION_FIELDS)
    save_file(architecture.network.state_dict(), tmp_path / WEIGHTS)
    description = json.loads((tmp_path / DESCRIPTION).read_text())
    del description["normalisation"]
    description["weights"]["sha256"] = sha256_of(tmp_path / WEIGHTS)
    (tmp_path / DESCRIPTION).write_text(json.dumps(description))
    network, _ = load_exported(tmp_path)
    assert torch.equal(network(PIXELS), architecture.network.eval()(PIXELS))


def test_weights_have_torchvisions_names(tmp_path: Path):
    export(build_backbone("shufflenet_v2_x0_5", 3, 32), tmp_path, DESCRIPTION_FIELDS)
    plain = get_model("shufflenet_v2_x0_5", num_classes=3)
    plain.load_state_dict(load_file(tmp_path / WEIGHTS), strict=True)


def test_files_have_the_mode_of_the_umask(architecture: Architecture, tmp_path: Path):
    before = os.umask(0o022)
    try:
        export(architecture, tmp_path, DESCRIPTION_FIELDS)
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {"0o644"}


def test_safetensors_bytes_depend_on_the_weights_alone(architecture: Architecture, tmp_path: Path):
    export(architecture, tmp_path / "one", DESCRIPTION_FIELDS)
    architecture.network.to(memory_format=torch.channels_last)
    architecture.network.eval()
    export(architecture, tmp_path / "other", {"classes": ["x", "y", "z"]})
    assert (tmp_path / "one" / WEIGHTS).read_bytes() == (tmp_path / "other" / WEIGHTS).read_bytes()


def test_loading_does_not_change_the_random_state(architecture: Architecture, tmp_path: Path):
    export(architecture, tmp_path, DESCRIPTION_FIELDS)
    before = torch.get_rng_state()
    load_exported(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def _flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def _describe(folder: Path, **changes: object) -> None:
    path = folder / DESCRIPTION
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "damage",
    [
        _flip_a_byte,
        lambda folder: (folder / WEIGHTS).unlink(),
        lambda folder: (folder / DESCRIPTION).unlink(),
        lambda folder: (folder / DESCRIPTION).write_text("{"),
        lambda folder: _describe(folder, format_version=2),
        lambda folder: _describe(folder, architecture={"kind": "unknown"}),
        lambda folder: _describe(folder, architecture={"kind": "five_block", "filters": [1]}),
        lambda folder: _describe(folder, architecture=None),
        lambda folder: _describe(folder, architecture={**build_five_block(SPEC).blueprint, "dense": 7}),
    ],
    ids=["flipped", "no weights", "no description", "cut", "version", "kind", "fields", "none", "other shape"],
)
def test_damaged_export_is_bad_data(damage: object, tmp_path: Path):
    export(build_five_block(SPEC), tmp_path, DESCRIPTION_FIELDS)
    damage(tmp_path)
    with pytest.raises(BadDataError, match="export it again"):
        load_exported(tmp_path)
