"""Building the network of some settings, and where its pretrained weights come from."""

import dataclasses
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from inat_job.errors import BadDataError, ConflictError, TransientError, UsageError
from inat_job.models import build as build_module
from inat_job.models import find_weights
from inat_job.models.backbones import build_backbone
from inat_job.models.build import BuildInputs, build
from inat_job.settings import BackboneSettings, FiveBlockSettings
from inat_job.signals import never
from inat_job.storage import StorageOptions, open_store


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BuildInputs:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return BuildInputs(3, 32, True, tmp_path / "cache", StorageOptions(retries=0), never)


@pytest.fixture
def saved_weights(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    path = tmp_path / "given.pth"
    torch.save(build_backbone("resnet18", 1000, 32).network.backbone.state_dict(), path)
    return path


def first_convolution(weights: str, inputs: BuildInputs, **changes: object) -> torch.Tensor:
    settings = BackboneSettings(backbone="resnet18", weights=weights, **changes)
    return build(settings, inputs).network.state_dict()["backbone.conv1.weight"]


def test_filters_are_one_number_or_five(inputs: BuildInputs) -> None:
    def filters(**changes: object) -> tuple[int, ...]:
        return build(FiveBlockSettings(**changes), inputs).blueprint["filters"]

    assert filters(filters=(4,)) == (4, 8, 16, 32, 64)
    assert filters(filters=(64,), filter_organisation="half") == (64, 32, 16, 8, 4)
    assert filters(filters=(1, 2, 3, 4, 5)) == (1, 2, 3, 4, 5)


@pytest.mark.soak
def test_weights_from_a_path_or_a_bucket(inputs: BuildInputs, saved_weights: Path, s3_bucket: str) -> None:
    expected = torch.load(saved_weights, weights_only=True)["conv1.weight"]
    open_store(f"s3://{s3_bucket}").put("w/given.pth", saved_weights)
    digest = hashlib.sha256(saved_weights.read_bytes()).hexdigest()
    for weights in (
        str(saved_weights),
        f"s3://{s3_bucket}/w/given.pth",
        f"s3://{s3_bucket}/w/given.pth#sha256={digest}",
    ):
        assert torch.equal(first_convolution(weights, inputs), expected)
    assert not torch.equal(first_convolution("none", inputs), expected)
    with pytest.raises(BadDataError, match="sha256"):
        first_convolution(f"s3://{s3_bucket}/w/given.pth#sha256={'0' * 64}", inputs)
    with pytest.raises(BadDataError, match="does not exist"):
        first_convolution(f"s3://{s3_bucket}/w/none.pth", inputs)
    with pytest.raises(UsageError, match="64 hexadecimal"):
        first_convolution(f"{saved_weights}#md5=1", inputs)


def test_weights_are_not_loaded_if_a_checkpoint_follows(inputs: BuildInputs) -> None:
    fresh = first_convolution("/nowhere.pth", dataclasses.replace(inputs, pretrained=False))
    assert fresh.shape == (64, 3, 7, 7)


def test_named_weights_in_torchs_folder_are_used(
    inputs: BuildInputs, saved_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(saved_weights.read_bytes()).hexdigest()
    name = f"resnet18-{digest[:8]}.pth"
    kept = Path(torch.hub.get_dir()) / "checkpoints" / name
    kept.parent.mkdir(parents=True)
    saved_weights.rename(kept)
    monkeypatch.setattr(find_weights, "weights_url", lambda *_: f"http://127.0.0.1:9/{name}")
    assert torch.equal(first_convolution("DEFAULT", inputs), torch.load(kept, weights_only=True)["conv1.weight"])


def test_failed_download_of_named_weights_is_transient(inputs: BuildInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find_weights, "weights_url", lambda *_: "http://127.0.0.1:9/x.pth")
    with pytest.raises(TransientError, match=r"127.0.0.1.*--weights"):
        first_convolution("DEFAULT", inputs)


def test_partial_weights_need_allow_partial_weights(inputs: BuildInputs, saved_weights: Path) -> None:
    state = torch.load(saved_weights, weights_only=True)
    torch.save({key: each for key, each in state.items() if not key.startswith("layer4")}, saved_weights)
    with pytest.raises(ConflictError, match=r"layer4.* and \d+ more .*--allow-partial-weights"):
        first_convolution(str(saved_weights), inputs)
    assert torch.equal(first_convolution(str(saved_weights), inputs, allow_partial_weights=True), state["conv1.weight"])


@pytest.mark.soak
def test_parallel_downloads_of_the_same_weights_take_turns(
    inputs: BuildInputs, saved_weights: Path, s3_bucket: str
) -> None:
    open_store(f"s3://{s3_bucket}").put("given.pth", saved_weights)
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: build_module._download(f"s3://{s3_bucket}/given.pth", inputs), range(4)))
    assert {path.read_bytes() for path in paths} == {saved_weights.read_bytes()}


def test_unwritable_cache_folder_is_a_conflict(inputs: BuildInputs, saved_weights: Path, s3_bucket: str) -> None:
    open_store(f"s3://{s3_bucket}").put("given.pth", saved_weights)
    with pytest.raises(ConflictError, match="--cache-dir .*given.pth cannot be written"):
        first_convolution(f"s3://{s3_bucket}/given.pth", dataclasses.replace(inputs, cache_dir=saved_weights))
