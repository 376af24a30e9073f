"""Networks of timm as Part B uses them: names, stages, weights, preprocessing, export; and a machine without timm."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from inat_job import timm_networks
from inat_job.configuration import configure
from inat_job.errors import BadDataError, ConflictError, TransientError, UsageError
from inat_job.evaluation.introspection import grad_cam
from inat_job.inference.image_model import load_model
from inat_job.models.backbones import build_backbone
from inat_job.models.build import BuildInputs, build
from inat_job.models.export import DESCRIPTION, export, load_exported
from inat_job.models.find_weights import check_names, find_weights
from inat_job.models.frozen_stem import cut_stem
from inat_job.models.network_exports import export_verified
from inat_job.models.strategies import apply_strategy, has_prefix
from inat_job.models.timm_config import CONFIG, timm_config
from inat_job.settings import BackboneSettings
from inat_job.signals import never
from inat_job.storage import StorageOptions
from tests.harness import loopback

timm = pytest.importorskip("timm")
huggingface_hub = pytest.importorskip("huggingface_hub")

RESNET, VIT = "timm/test_resnet.r160_in1k", "timm/test_vit.r160_in1k"
OF_ONE_SIZE = "timm/deit_tiny_patch16_224"
FIELDS = {"classes": ["a", "b", "c"], "preprocessing": {"image_size": 64, "eval_crop": 0.95}}
PIXELS = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def inputs(tmp_path: Path) -> BuildInputs:
    return BuildInputs(3, 64, True, tmp_path / "cache", StorageOptions(retries=0), never)


@pytest.fixture
def without_timm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    timm_networks.pretrained_cfg.cache_clear()
    monkeypatch.setitem(sys.modules, "timm", None)
    yield
    timm_networks.pretrained_cfg.cache_clear()


def state_of(name: str, **arguments: object) -> dict[str, Tensor]:
    """Made-up weights of ImageNet's classes, as timm would save them."""
    torch.manual_seed(5)
    return timm.create_model(name.removeprefix("timm/"), **arguments).state_dict()


def saved(name: str, folder: Path) -> Path:
    path = folder / "given.safetensors"
    save_file(state_of(name), path)
    return path


@pytest.mark.parametrize(
    "name", [RESNET, VIT, "timm/test_convnext", "timm/test_efficientnet", "timm/deit_tiny_distilled_patch16_224"]
)
def test_stages_and_heads_cover_every_parameter_once(name: str) -> None:
    architecture = build_backbone(name, 3, 64)
    groups = (*architecture.stages, architecture.head)
    for parameter, _ in architecture.network.named_parameters():
        assert sum(has_prefix(parameter, prefixes) for prefixes in groups) == 1, parameter
    assert len(architecture.stages) == 5


def test_stages_are_those_of_timm_and_otherwise_found_as_in_any_network() -> None:
    layers = [(f"backbone.layer{each}",) for each in range(1, 5)]
    assert build_backbone(RESNET, 3, 64).stages == (("backbone.conv1", "backbone.bn1"), *layers)
    convnext = build_backbone("timm/test_convnext", 3, 64)
    assert convnext.stages[-1] == ("backbone.stages.3", "backbone.head.norm")
    assert convnext.head == ("backbone.head.fc",)
    assert len(build_backbone("timm/pit_ti_224", 3, 64).stages) == 5  # which timm does not divide


@pytest.mark.parametrize("name", ["timm/test_resnt", "timm/test_resnet.r160_in2k"])
def test_unknown_names_get_near_ones(name: str) -> None:
    for refusing in (lambda: build_backbone(name, 3), lambda: check_names(BackboneSettings(backbone=name))):
        with pytest.raises(UsageError, match=r"which timm does not have: did you mean one of timm/test_resnet\b"):
            refusing()


@pytest.mark.soak
@pytest.mark.parametrize("name", ["timm/qwen3_vit_306m_enc", "timm/mobilenetv5_300m_enc"])
def test_network_that_is_no_classifier_is_refused(name: str) -> None:
    with torch.device("meta"), pytest.raises(UsageError, match=f"--backbone is '{name}', "):
        build_backbone(name, 3, 768)


def test_machine_without_timm_says_how_to_get_it(without_timm: None) -> None:
    settings = BackboneSettings(backbone=RESNET)
    for refusing in (lambda: configure("b", {"model.backbone": RESNET}, [], None), lambda: check_names(settings)):
        with pytest.raises(ConflictError, match="needs timm, .*: pip install timm, or .* EXTRAS=timm"):
            refusing()


def test_model_is_not_rebuilt_without_timm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    export(build_backbone(RESNET, 3, 64), tmp_path, FIELDS)
    request.getfixturevalue("without_timm")
    with pytest.raises(ConflictError, match=f"{RESNET}.* needs timm"):
        load_model(tmp_path)


def test_crop_and_pixel_statistics_are_those_of_the_name() -> None:
    for name, crop, mean in ((VIT, 0.95, 0.5), (OF_ONE_SIZE, 0.9, 0.485), ("timm/resnet10t", 0.875, 0.485)):
        given = {"model.backbone": name, "model.weights": "none"}
        assert configure("b", given, [], None).settings.data.eval_crop == crop
        assert configure("b", given | {"data.eval_crop": "0.8"}, [], None).settings.data.eval_crop == 0.8
        network = build_backbone(name, 3, 64).network
        assert network.get_buffer("preprocess.mean")[0, 0].item() == pytest.approx(255 * mean)


def test_weights_that_were_tested_on_more_than_the_image_get_whole_images() -> None:
    assert configure("b", {"model.backbone": "timm/volo_d4_448"}, [], None).settings.data.eval_crop == 1.0


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_weights_of_a_file_are_loaded_but_the_head(ending: str, inputs: BuildInputs, tmp_path: Path) -> None:
    given, path = state_of(RESNET), tmp_path / f"w.{ending}"
    save_file(given, path) if ending == "safetensors" else torch.save(given, path)
    architecture = build(BackboneSettings(backbone=RESNET, weights=str(path)), inputs)
    found = architecture.network.get_submodule("backbone").state_dict()
    assert architecture.lacking == ()
    assert {name for name in given if not torch.equal(found[name], given[name])} == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(("name", "size"), [(VIT, 96), (OF_ONE_SIZE, 64)])
def test_weights_of_another_image_size_are_adapted_as_timm_does_it(
    name: str, size: int, inputs: BuildInputs, tmp_path: Path
) -> None:
    path = saved(name, tmp_path)
    settings = BackboneSettings(backbone=name, weights=str(path))
    found = build(settings, dataclasses.replace(inputs, image_size=size)).network.get_submodule("backbone")
    theirs = timm.create_model(
        name.removeprefix("timm/"),
        pretrained=True,
        pretrained_cfg_overlay={"file": str(path)},
        num_classes=3,
        img_size=size,
    )
    body = {key: each for key, each in theirs.state_dict().items() if not key.startswith("head.")}
    assert all(torch.equal(found.state_dict()[key], each) for key, each in body.items())


def test_foreign_and_partial_weights_are_refused(inputs: BuildInputs, tmp_path: Path) -> None:
    with pytest.raises(ConflictError, match="has no tensor that fits timm/test_resnet"):
        build(BackboneSettings(backbone=RESNET, weights=str(saved(VIT, tmp_path))), inputs)
    state = {name: each for name, each in state_of(VIT).items() if not name.startswith("blocks.5")}
    save_file(state, tmp_path / "partial.safetensors")
    settings = BackboneSettings(backbone=VIT, weights=str(tmp_path / "partial.safetensors"))
    with pytest.raises(ConflictError, match=r"lacks blocks\.5\..* --allow-partial-weights"):
        build(settings, inputs)
    lacking = build(dataclasses.replace(settings, allow_partial_weights=True), inputs).lacking
    assert lacking
    assert all(each.startswith("backbone.blocks.5") for each in lacking)


def test_default_weights_are_those_of_the_tag() -> None:
    of_hub = "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
    assert timm_networks.weights_url(RESNET, "DEFAULT").endswith(of_hub)
    assert "/timm/resnet50.a1_in1k/" in timm_networks.weights_url("timm/resnet50", "DEFAULT")
    assert timm_networks.weights_url("timm/gcvit_tiny", "DEFAULT").endswith("/gcvit_tiny_224_nvidia-ac783954.pth")
    with pytest.raises(UsageError, match="'timm/darknet17', for which timm has no weights"):
        check_names(BackboneSettings(backbone="timm/darknet17"))
    with pytest.raises(UsageError, match="--weights is 'IMAGENET1K_V1': .*--backbone timm/resnet50.a1_in1k"):
        check_names(BackboneSettings(backbone=RESNET, weights="IMAGENET1K_V1"))


def test_default_weights_are_downloaded_once(
    inputs: BuildInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = saved(RESNET, tmp_path).read_bytes()

    class Hub(loopback.Handler):
        def do_GET(self) -> None:
            self.answer(200, content, ETag='"1"')

    with loopback.serve(Hub) as address:
        monkeypatch.setattr(timm_networks, "weights_url", lambda *_: f"{address}/model.safetensors")
        settings = BackboneSettings(backbone=RESNET)
        assert "to be downloaded" in str(find_weights(settings, tmp_path, inputs.options))
        first = build(settings, inputs).network.get_parameter("backbone.conv1.0.weight")
    assert torch.equal(first, state_of(RESNET)["conv1.0.weight"])
    assert len(list((tmp_path / "cache").glob("weights/*/model.safetensors"))) == 1


def test_unreachable_hub_is_transient(inputs: BuildInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_networks, "weights_url", lambda *_: "http://127.0.0.1:9/model.safetensors")
    with pytest.raises(TransientError, match=r"127.0.0.1.*name the file by --weights"):
        build(BackboneSettings(backbone=RESNET), inputs)


def test_weights_in_the_hubs_own_cache_are_used(
    inputs: BuildInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    (kept / "snapshots" / "abc").mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    saved(RESNET, kept / "snapshots" / "abc").rename(kept / "snapshots" / "abc" / "model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    settings = BackboneSettings(backbone=RESNET)
    assert str(find_weights(settings, tmp_path, inputs.options)).endswith("already downloaded")
    found = build(settings, inputs).network.get_parameter("backbone.conv1.0.weight")
    assert torch.equal(found, state_of(RESNET)["conv1.0.weight"])


def test_size_that_a_network_cannot_take_is_refused_with_its_usual_one(inputs: BuildInputs) -> None:
    with pytest.raises(
        UsageError, match=r"--image-size is 224, which timm/halonet26t cannot take .*: 256 is the usual"
    ):
        build_backbone("timm/halonet26t", 3, 224)
    settings = BackboneSettings(backbone=OF_ONE_SIZE, weights="none")
    with pytest.raises(UsageError, match="--test-size is 96, which timm/deit_tiny"):
        build(settings, dataclasses.replace(inputs, other_sizes={"--test-size": 96}))


def test_probe_needs_a_single_dense_head(inputs: BuildInputs) -> None:
    for name in ("timm/deit_tiny_distilled_patch16_224", "timm/resnetv2_50x1_bit"):
        with pytest.raises(UsageError, match=f"--strategy lp-ft .*{name}.*: use --strategy full"):
            build(BackboneSettings(backbone=name, weights="none", strategy="lp-ft"), inputs)
    build(BackboneSettings(backbone=VIT, weights="none", strategy="lp-ft"), inputs)


@pytest.mark.parametrize(
    "name", [RESNET, pytest.param(OF_ONE_SIZE, marks=pytest.mark.soak), "timm/test_convnext", "timm/test_efficientnet"]
)
def test_frozen_stem_and_tail_compute_what_the_network_does(name: str) -> None:
    """Also in training, with norms and random layers that are timm's own."""
    torch.manual_seed(2)
    architecture = build_backbone(name, 3, 64)
    for n_trainable in range(len(architecture.stages)):
        for training in (False, True):
            apply_strategy(architecture, n_trainable)
            cut = cut_stem(architecture, n_trainable)
            if not training:
                architecture.network.eval()
            found = cut.tail(cut.stem(PIXELS))
            assert torch.equal(found, architecture.network(PIXELS)), cut.cut_at


@pytest.mark.parametrize(
    "name",
    [pytest.param("timm/swin_tiny_patch4_window7_224", marks=pytest.mark.soak), "timm/vit_tiny_patch16_224", RESNET],
)
def test_grad_cam_has_a_map_for_each_image(name: str) -> None:
    torch.manual_seed(0)
    network = build_backbone(name, 3, 224).network
    pixels = 255 * torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    found = grad_cam(network, pixels, torch.tensor([0, 1]))
    assert found.shape == (2, 224, 224)
    assert found.amax() > 0


@pytest.mark.parametrize("name", [RESNET, VIT, "timm/test_efficientnet"])
def test_exported_model_is_rebuilt_here_and_by_timm(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    architecture = build_backbone(name, 3, 64)
    architecture.network(PIXELS)  # so that batch norm statistics change
    export(architecture, tmp_path, FIELDS)
    network, description = load_exported(tmp_path)
    expected = architecture.network.eval()(PIXELS)
    assert description["architecture"] == {"kind": "timm", "name": name, "num_classes": 3, "image_size": 64}
    assert torch.equal(network(PIXELS), expected)
    (tmp_path / CONFIG).write_text(json.dumps(timm_config(json.loads((tmp_path / DESCRIPTION).read_text()))))
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    mean, std = (torch.tensor(theirs.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    assert torch.allclose(theirs((PIXELS / 255 - mean) / std), expected, atol=1e-4)


def test_model_of_a_network_that_timm_has_no_longer_is_bad_data(tmp_path: Path) -> None:
    export(build_backbone(RESNET, 3, 64), tmp_path, FIELDS)
    text = (tmp_path / DESCRIPTION).read_text()
    (tmp_path / DESCRIPTION).write_text(text.replace(RESNET, "timm/test_resnet.gone"))
    with pytest.raises(BadDataError, match="which timm does not have"):
        load_exported(tmp_path)


@pytest.mark.filterwarnings("ignore")  # the exporters' own deprecations
@pytest.mark.parametrize(
    ("name", "form"),
    [
        pytest.param(RESNET, "onnx", marks=pytest.mark.soak),
        (RESNET, "pt2"),
        pytest.param(VIT, "pt2", marks=pytest.mark.soak),
    ],
)
def test_network_is_exported_to_other_formats(name: str, form: str, tmp_path: Path) -> None:
    network = build_backbone(name, 3, 64).network.eval()
    views = [(PIXELS.float(), torch.tensor([0, 1]))]
    assert export_verified(form, network, 64, tmp_path, lambda: views)["max_abs_diff"] <= 1e-4
