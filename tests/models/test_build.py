"""From settings to a network, and where pretrained weights come from."""

import dataclasses
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from inat_job.errors import BadDataError, ConflictError, TransientError, UsageError
from inat_job.models import build as building
from inat_job.models.backbones import build_backbone
from inat_job.models.build import BuildInputs, build
from inat_job.settings import BackboneSettings, FiveBlockSettings
from inat_job.signals import never
from inat_job.storage import StorageOptions, open_store


@pytest.fixture
def needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BuildInputs:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return BuildInputs(3, 32, True, tmp_path / "cache", StorageOptions(retries=0), never)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    path = tmp_path / "given.pth"
    torch.save(build_backbone("resnet18", 1000, 32).network.backbone.state_dict(), path)
    return path


def loaded(weights: str, needs: BuildInputs, **changes: object) -> torch.Tensor:
    settings = BackboneSettings(backbone="resnet18", weights=weights, **changes)
    return build(settings, needs).network.state_dict()["backbone.conv1.weight"]


def test_five_blocks_take_one_number_or_five(needs: BuildInputs) -> None:
    def filters(**changes: object) -> tuple[int, ...]:
        return build(FiveBlockSettings(**changes), needs).blueprint["filters"]

    assert filters(filters=(4,)) == (4, 8, 16, 32, 64)
    assert filters(filters=(64,), filter_organisation="half") == (64, 32, 16, 8, 4)
    assert filters(filters=(1, 2, 3, 4, 5)) == (1, 2, 3, 4, 5)


def test_weights_come_from_a_path_or_a_bucket(needs: BuildInputs, saved: Path, s3_bucket: str) -> None:
    expected = torch.load(saved, weights_only=True)["conv1.weight"]
    open_store(f"s3://{s3_bucket}").put("w/given.pth", saved)
    digest = hashlib.sha256(saved.read_bytes()).hexdigest()
    for weights in (str(saved), f"s3://{s3_bucket}/w/given.pth", f"s3://{s3_bucket}/w/given.pth#sha256={digest}"):
        assert torch.equal(loaded(weights, needs), expected)
    assert not torch.equal(loaded("none", needs), expected)
    with pytest.raises(BadDataError, match="sha256"):
        loaded(f"s3://{s3_bucket}/w/given.pth#sha256={'0' * 64}", needs)
    with pytest.raises(BadDataError, match="does not exist"):
        loaded(f"s3://{s3_bucket}/w/none.pth", needs)
    with pytest.raises(UsageError, match="64 hexadecimal"):
        loaded(f"{saved}#md5=1", needs)


def test_a_checkpoint_needs_no_pretrained_weights(needs: BuildInputs) -> None:
    fresh = loaded("/nowhere.pth", dataclasses.replace(needs, pretrained=False))
    assert fresh.shape == (64, 3, 7, 7)


def test_a_named_file_that_torch_keeps_is_used(
    needs: BuildInputs, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(saved.read_bytes()).hexdigest()
    name = f"resnet18-{digest[:8]}.pth"
    kept = Path(torch.hub.get_dir()) / "checkpoints" / name
    kept.parent.mkdir(parents=True)
    saved.rename(kept)
    monkeypatch.setattr(building, "named_weights", lambda *_: type("Entry", (), {"url": f"http://127.0.0.1:9/{name}"}))
    assert torch.equal(loaded("DEFAULT", needs), torch.load(kept, weights_only=True)["conv1.weight"])


def test_a_named_file_that_cannot_be_fetched_is_transient(needs: BuildInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "named_weights", lambda *_: type("Entry", (), {"url": "http://127.0.0.1:9/x.pth"}))
    with pytest.raises(TransientError, match=r"127.0.0.1.*--weights"):
        loaded("DEFAULT", needs)


def test_partial_weights_need_a_word(needs: BuildInputs, saved: Path) -> None:
    state = torch.load(saved, weights_only=True)
    torch.save({key: each for key, each in state.items() if not key.startswith("layer4")}, saved)
    with pytest.raises(ConflictError, match=r"layer4.* and \d+ more .*--allow-partial-weights"):
        loaded(str(saved), needs)
    assert torch.equal(loaded(str(saved), needs, allow_partial_weights=True), state["conv1.weight"])


def test_jobs_that_fetch_the_same_weights_take_turns(needs: BuildInputs, saved: Path, s3_bucket: str) -> None:
    open_store(f"s3://{s3_bucket}").put("given.pth", saved)
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: building._fetched(f"s3://{s3_bucket}/given.pth", needs), range(4)))
    assert {path.read_bytes() for path in paths} == {saved.read_bytes()}


def test_a_cache_folder_that_takes_nothing_is_a_conflict(needs: BuildInputs, saved: Path, s3_bucket: str) -> None:
    open_store(f"s3://{s3_bucket}").put("given.pth", saved)
    with pytest.raises(ConflictError, match="--cache-dir .*given.pth cannot be written"):
        loaded(f"s3://{s3_bucket}/given.pth", dataclasses.replace(needs, cache_dir=saved))
