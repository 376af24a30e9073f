"""What is read of torchvision's source is what torchvision says, for every classification network it has."""

import pytest
import torch
import torchvision
from torchvision.models import get_model_weights, list_models

from inat_job.errors import UsageError
from inat_job.host import environment
from inat_job.models.find_weights import weights_url


def test_every_name_of_every_network_leads_where_torchvision_leads() -> None:
    wrong = {
        (backbone, name): (weights_url(backbone, name), weights.url)
        for backbone in list_models(module=torchvision.models)
        for name, weights in get_model_weights(backbone).__members__.items()
        if weights_url(backbone, name) != weights.url
    }
    assert not wrong


def test_the_whole_name_is_taken_too_and_a_wrong_one_is_told() -> None:
    assert weights_url("resnet50", "ResNet50_Weights.DEFAULT") == get_model_weights("resnet50")["DEFAULT"].url
    with pytest.raises(UsageError, match="IMAGENET1K_V2"):
        weights_url("resnet50", "IMAGENET22K")
    assert weights_url("no_such_network", "DEFAULT") is None


@pytest.mark.parametrize("name", ["TORCH_HOME", "XDG_CACHE_HOME", "HOME"])
def test_torch_keeps_its_files_where_we_look(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, "/somewhere")
    assert str(environment.torch_hub_folder()) == f"{torch.hub.get_dir()}/checkpoints"
