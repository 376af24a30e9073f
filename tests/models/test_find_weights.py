"""The URLs read from torchvision's source are its own, for every network; and what `--weights` may be."""

import hashlib
from pathlib import Path

import pytest
import torch
import torchvision
from torchvision.models import get_model_weights, list_models

from inat_job.errors import BadDataError, UsageError
from inat_job.host import environment
from inat_job.models.find_weights import find_weights, parse_weights
from inat_job.settings import BackboneSettings, FiveBlockSettings
from inat_job.storage import StorageOptions, open_store
from inat_job.torchvision_weights import EVAL_CROP, eval_crop, weights_url


def test_weights_url_is_torchvisions_for_every_network_and_name() -> None:
    wrong = {
        (backbone, name): (weights_url(backbone, name), weights.url)
        for backbone in list_models(module=torchvision.models)
        for name, weights in get_model_weights(backbone).__members__.items()
        if weights_url(backbone, name) != weights.url
    }
    assert not wrong


def test_crop_is_that_of_torchvisions_transforms_for_every_network_and_name() -> None:
    wrong = {}
    for backbone in list_models(module=torchvision.models):
        for name, weights in get_model_weights(backbone).__members__.items():
            transforms = weights.transforms()
            wanted = round(transforms.crop_size[0] / transforms.resize_size[0], 4)
            path = f"/w/{weights.url.rpartition('/')[2]}#sha256={'0' * 64}"
            if {eval_crop(backbone, name), eval_crop(backbone, path)} != {wanted}:
                wrong[backbone, name] = wanted
    assert not wrong
    assert {eval_crop("resnet18", each) for each in ("none", "/w/x.pth", "NO_SUCH")} == {EVAL_CROP}


def test_crop_of_a_signed_address_is_that_of_its_file() -> None:
    address = "https://user:pw@host/w/resnet50-11ad3fa6.pth?X-Amz-Signature=1&download=1#sha256=" + 64 * "0"
    assert eval_crop("resnet50", address) == eval_crop("resnet50", "DEFAULT") == 0.9655


def test_weights_url_takes_full_names_and_refuses_unknown_ones() -> None:
    assert weights_url("resnet50", "ResNet50_Weights.DEFAULT") == get_model_weights("resnet50")["DEFAULT"].url
    with pytest.raises(UsageError, match="IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT for resnet50"):
        weights_url("resnet50", "IMAGENET22K")
    with pytest.raises(UsageError, match="no_such_network.*no weights"):
        weights_url("no_such_network", "DEFAULT")


@pytest.mark.parametrize("name", ["TORCH_HOME", "XDG_CACHE_HOME", "HOME"])
def test_torch_folder_is_torchs_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, "/somewhere")
    assert str(environment.torch_hub_folder()) == f"{torch.hub.get_dir()}/checkpoints"


def find(weights: str, torch_folder: Path = Path("/nowhere")) -> str | None:
    settings = BackboneSettings(backbone="resnet18", weights=weights)
    return find_weights(settings, torch_folder, StorageOptions(retries=0))


def test_weights_names_are_no_paths_or_uris() -> None:
    names = ("DEFAULT", "IMAGENET1K_V2", "ResNet50_Weights.IMAGENET1K_V2")
    others = ("none", "weights.pth", "/w/DEFAULT", "s3://bucket/DEFAULT")
    assert all(parse_weights(each).is_name for each in names)
    assert not any(parse_weights(each).is_name for each in others)
    assert [parse_weights(each).is_uri for each in others] == [False, False, False, True]


def test_sha256_of_weights_is_taken_from_the_fragment() -> None:
    digest = "0123456789ABCDEF" * 4
    assert parse_weights(f"w.pth#sha256={digest}").sha256 == digest.lower()
    assert parse_weights("w.pth").sha256 == ""
    with pytest.raises(UsageError, match="64 hexadecimal"):
        parse_weights("w.pth#md5=1")


def test_home_at_the_start_of_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "w.pth").write_bytes(b"1" * 10**6)
    assert find("~/w.pth") == f"{tmp_path}/w.pth, 1 MB"


def test_networks_without_pretrained_weights_need_none() -> None:
    assert find("none") is None
    assert find_weights(FiveBlockSettings(), Path("/nowhere"), StorageOptions()) is None


def test_named_weights_are_found_in_torchs_folder(tmp_path: Path) -> None:
    url = get_model_weights("resnet18")["DEFAULT"].url
    (tmp_path / url.rpartition("/")[2]).touch()
    assert str(find("DEFAULT", tmp_path)).endswith("already downloaded")


def test_weights_file_is_verified_only_if_a_hash_is_given(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(bytes(2 * 10**6))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert find(str(path)) == find(f"{path}#sha256={digest}") == f"{path}, 2 MB"
    with pytest.raises(BadDataError, match="has the sha256"):
        find(f"{path}#sha256={'0' * 64}")
    with pytest.raises(BadDataError, match="which is not a file"):
        find(f"{tmp_path}/none.pth")


def test_weights_in_a_bucket_are_found_without_a_download(s3_bucket: str) -> None:
    open_store(f"s3://{s3_bucket}").put("w.pth", bytes(10**6))
    assert find(f"s3://{s3_bucket}/w.pth") == f"s3://{s3_bucket}/w.pth, 1 MB, to be downloaded"
    with pytest.raises(BadDataError, match=r"none\.pth does not exist: check --weights"):
        find(f"s3://{s3_bucket}/none.pth")
