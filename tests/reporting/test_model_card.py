"""The model card: the hub's metadata, the numbers of the report, and hostile names as text."""

import copy
import re
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from inat_job.recipes import RECIPES
from inat_job.reporting.model_card import render_card
from tests.reporting.made_reports import REPORT


@pytest.fixture
def made() -> dict[str, Any]:
    content: dict[str, Any] = copy.deepcopy(REPORT)
    content["part"], content["test"]["loss"], content["checkpoint"] = "a", 0.5, {"epoch": 2, "step": 20}
    content["data"] |= {"digest": 64 * "0", "classes": ["A & B"]}
    content["settings"] = RECIPES[content["part"]]().as_dict()
    content["settings"]["train"] |= {"epochs": 3, "min_images_seen": 0}
    content["settings"]["data"]["uri"] = "s3://secret-bucket/x/photos8.zip"
    content["data"]["uri"] = "s3://secret-bucket/x/photos8.tar.gz"
    return content


def test_metadata_is_the_hubs(made: dict[str, Any]) -> None:
    card = ModelCard(render_card(made, timm=True))
    assert card.data.library_name == "timm"
    assert card.data.datasets == ["photos8"]
    [result] = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", made["test"]["accuracy"])


def test_card_names_the_settings_that_differ_and_no_place(made: dict[str, Any]) -> None:
    card = render_card(made, timm=False)
    assert "`--epochs 3`, and otherwise the defaults" in card
    assert "secret-bucket" not in card
    made["settings"]["train"] = RECIPES[made["part"]]().as_dict()["train"]
    assert "Settings: the defaults." in render_card(made, timm=False)


def test_card_has_the_numbers_of_the_report(made: dict[str, Any]) -> None:
    card = render_card(made, timm=False)
    assert f"**Test accuracy {made['test']['accuracy']:.4f}**" in card
    assert "timm does not load it" in card
    assert 'load_model("FOLDER")' in card


def test_hostile_class_name_stays_text(made: dict[str, Any]) -> None:
    name = "<script>x</script>|**b**\n---\n# `h`"
    made["data"]["classes"][0] = name
    made["test"]["per_class"] = {name: next(iter(made["test"]["per_class"].values()))}
    made["run_id"] = "a: b\n- c"
    card = render_card(made, timm=False)
    assert "<script>" not in card
    assert sum(line.startswith("| &#60;script") for line in card.splitlines()) == 1
    assert yaml.safe_load(card.split("---\n")[1])["model-index"][0]["name"] == made["run_id"]


def test_card_of_random_weights_says_so(made: dict[str, Any]) -> None:
    made["part"], made["settings"] = "b", RECIPES["b"]().as_dict()
    made["settings"]["model"] |= {"weights": "none", "strategy": "head"}
    card = render_card(made, timm=False)
    assert "of random weights, frozen but for its head" in card
    assert "--weights none" in card
    assert "fine-tuned" not in card
    made["settings"]["model"]["weights"] = "s3://secret-bucket/w.pth"
    assert "secret-bucket" not in render_card(made, timm=False)


def test_card_writes_switches_as_flags(made: dict[str, Any]) -> None:
    made["settings"]["model"]["batch_norm"] = not made["settings"]["model"]["batch_norm"]
    assert re.search(r"--(no-)?batch-norm[` ](?!True|False)", render_card(made, timm=False))
