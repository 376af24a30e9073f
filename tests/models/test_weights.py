"""Loading pretrained weights: formats, hashes, heads, partial and foreign weights."""

import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import VisionTransformer, Weights, WeightsEnum, get_model
from torchvision.transforms._presets import ImageClassification

from inat_job.errors import BadDataError, ConflictError
from inat_job.models.backbones import BackboneNet, build_backbone
from inat_job.models.strategies import Architecture
from inat_job.models.weights import load_weights, read_state

State = dict[str, torch.Tensor]


@pytest.fixture
def architecture() -> Architecture:
    return build_backbone("resnet18", 3, 32)


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(5)
    return dict(get_model("resnet18", weights=None).state_dict())


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[object], Path]:
    def save(content: object, name: str = "weights.pth", **options: object) -> Path:
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return save


def _backbone(architecture: Architecture) -> State:
    return architecture.network.get_submodule("backbone").state_dict()


def test_everything_but_a_head_of_other_classes_is_loaded(architecture, state, saved):
    head = _backbone(architecture)["fc.weight"].clone()
    path = saved(state)
    loaded = load_weights(architecture, path)
    now = _backbone(architecture)
    assert torch.equal(now["fc.weight"], head)
    assert all(torch.equal(now[name], state[name]) for name in state if not name.startswith("fc."))
    assert loaded.missing == ()
    assert loaded.loaded == len(state) - 2
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_head_of_the_same_classes_is_loaded(state, saved):
    architecture = build_backbone("resnet18", 1000, 32)
    load_weights(architecture, saved(state))
    assert torch.equal(_backbone(architecture)["fc.weight"], state["fc.weight"])


def _safetensors(state: State, folder: Path) -> Path:
    save_file(state, folder / "w.safetensors")
    return folder / "w.safetensors"


def _torch_saved(content: object, folder: Path, **options: object) -> Path:
    torch.save(content, folder / "w.pt", **options)
    return folder / "w.pt"


@pytest.mark.parametrize(
    "write",
    [
        _safetensors,
        lambda state, folder: _torch_saved(state, folder, _use_new_zipfile_serialization=False),
        lambda state, folder: _torch_saved({"state_dict": state, "epoch": 3}, folder),
        lambda state, folder: _torch_saved({"model": state}, folder),
    ],
    ids=["safetensors", "before torch 1.6", "state_dict", "model"],
)
def test_supported_file_formats(write, architecture, state, tmp_path):
    load_weights(architecture, write(state, tmp_path))
    assert torch.equal(_backbone(architecture)["conv1.weight"], state["conv1.weight"])


def test_partial_weights_are_refused_unless_allowed(architecture, state, saved):
    path = saved({name: each for name, each in state.items() if not name.startswith(("layer4", "fc"))})
    fresh = {name: each.clone() for name, each in _backbone(architecture).items()}
    with pytest.raises(ConflictError, match=r"lacks layer4\.0\.conv1\.weight and 24 more .*--allow-partial-weights"):
        load_weights(architecture, path)
    assert all(torch.equal(each, fresh[name]) for name, each in _backbone(architecture).items())
    loaded = load_weights(architecture, path, allow_partial=True)
    assert len(loaded.missing) == 25
    assert torch.equal(_backbone(architecture)["layer3.0.conv1.weight"], state["layer3.0.conv1.weight"])
    assert torch.equal(_backbone(architecture)["layer4.0.conv1.weight"], fresh["layer4.0.conv1.weight"])


def test_missing_batch_counts_are_accepted(architecture, state, saved):
    old = {name: each for name, each in state.items() if not name.endswith("num_batches_tracked")}
    assert load_weights(architecture, saved(old)).missing == ()


def test_weights_of_a_deeper_network_are_refused(architecture, saved):
    # ResNet-34 has every tensor of ResNet-18, and more.
    with pytest.raises(ConflictError, match=r"has layer1\.2\.conv1\.weight and 95 more, which resnet18 does not have"):
        load_weights(architecture, saved(get_model("resnet34", weights=None).state_dict()))


@pytest.mark.parametrize("allow_partial", [False, True])
def test_other_shapes_are_always_refused(allow_partial, architecture, state, saved):
    wide = {**state, "layer2.0.conv1.weight": torch.zeros(1, 2, 3, 3)}
    with pytest.raises(ConflictError, match=r"another shape than resnet18 in layer2\.0\.conv1\.weight"):
        load_weights(architecture, saved(wide), allow_partial=allow_partial)


def test_foreign_weights_are_always_refused(architecture, saved):
    with pytest.raises(ConflictError, match=r"has no tensor that fits resnet18 \(it has blocks\.0\.weight\)"):
        load_weights(architecture, saved({"blocks.0.weight": torch.zeros(3)}), allow_partial=True)


class _Code:
    def __reduce__(self):
        return (os.mkdir, ("ran",))


def test_code_in_a_pickle_is_not_run(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = saved({"conv1.weight": _Code()})
    with pytest.raises(BadDataError, match="never run"):
        read_state(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 and then cut"])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_damaged_file_is_bad_data(content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadDataError):
        read_state(tmp_path / name)


def test_truncated_file_is_bad_data(state, saved):
    path = saved(state)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(BadDataError, match="download it again"):
        read_state(path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, torch.zeros(2)])
def test_other_content_than_a_state_dict_is_bad_data(content, saved):
    with pytest.raises(BadDataError, match="not a state dict"):
        read_state(saved(content))


def test_hash_in_the_file_name_is_checked(architecture, state, saved):
    with pytest.raises(BadDataError, match="delete it and download it again"):
        load_weights(architecture, saved(state, "resnet18-0123abcd.pth"))


def test_requested_hash_is_checked(architecture, state, saved):
    path = saved(state)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    load_weights(architecture, path, sha256=digest.upper())
    with pytest.raises(BadDataError, match=f"has the sha256 {digest} instead"):
        load_weights(architecture, path, sha256="0" * 64)


def test_missing_file_is_bad_data(architecture, tmp_path):
    with pytest.raises(BadDataError, match=r"--weights is .*, which is not a file"):
        load_weights(architecture, tmp_path / "none.pth")


def _tiny_transformer(image_size: int) -> VisionTransformer:
    return VisionTransformer(image_size, patch_size=32, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8)


def test_position_embedding_is_interpolated_to_another_image_size(saved):
    given = _tiny_transformer(64).state_dict()
    network = BackboneNet(_tiny_transformer(96))
    target = Architecture("vit_b_32", network, (), ("backbone.heads.head",), {"image_size": 96})
    loaded = load_weights(target, saved(given))
    positions = _backbone(target)["encoder.pos_embedding"]
    assert loaded.missing == ()
    assert positions.shape == (1, 10, 8)
    corners = positions[0, 1:].reshape(3, 3, 8)[::2, ::2].reshape(4, 8)
    torch.testing.assert_close(corners, given["encoder.pos_embedding"][0, 1:])


def test_old_key_names_of_densenet_files_are_read(saved):
    architecture = build_backbone("densenet121", 3, 32)
    given = get_model("densenet121", weights=None).state_dict()
    old = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.") if "denselayer" in name else name: each
        for name, each in given.items()
    }
    assert load_weights(architecture, saved(old)).missing == ()


def test_pixel_statistics_of_known_weights_are_set(state, saved):
    class Known(WeightsEnum):
        HALF = Weights("https://host/half.pth", partial(ImageClassification, crop_size=32, mean=(0.5,) * 3), {})

    architecture = build_backbone("resnet18", 3, 32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inat_job.models.weights.get_model_weights", lambda _: Known)
        known = load_weights(architecture, saved(state, "half.pth")).statistics
    assert architecture.network.get_submodule("preprocess").mean.flatten().tolist() == [127.5] * 3
    assert known != load_weights(build_backbone("resnet18", 3, 32), saved(state, "other.pth")).statistics


@pytest.mark.skipif("INAT_BENCH_DATA" not in os.environ, reason="INAT_BENCH_DATA names no folder with real weights")
def test_real_pretrained_files():
    folder = Path(os.environ["INAT_BENCH_DATA"]) / "weights"
    assert load_weights(build_backbone("densenet121", 10), folder / "densenet121_imagenet1k_keras.pth").missing == ()
    with pytest.raises(ConflictError, match="allow-partial-weights"):
        load_weights(build_backbone("resnet50", 10), folder / "resnet50_imagenet1k_keras_partial.pth")
