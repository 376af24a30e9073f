"""What a model.json must say before a network is made of it."""

from typing import Any

import pytest

from inat_job.errors import BadDataError
from inat_job.models.model_files import check_description, temperature_in

CNN = {"kind": "five_block", "pooling": "gap", "image_size": 32, "num_classes": 3}
VIT = {"kind": "torchvision", "name": "vit_b_16", "image_size": 32, "num_classes": 3}
INTACT: dict[str, Any] = {
    "format_version": 1,
    "architecture": CNN,
    "classes": ["Ants", "Bees", "Cats"],
    "preprocessing": {"image_size": 32, "eval_crop": 0.9},
    "temperature": 1.5,
    "normalisation": {"mean": [123.7, 116.3, 0.0], "std": [58.4, 57.1, 57]},
}


def sizes(image_size: Any, eval_crop: Any = 0.9) -> dict[str, Any]:
    return {"preprocessing": {"image_size": image_size, "eval_crop": eval_crop}}


def normalised(**values: Any) -> dict[str, Any]:
    return {"normalisation": {**INTACT["normalisation"], **values}}


@pytest.mark.parametrize("change", [{}, sizes(64), sizes(32, 1), {"temperature": 3}, {"architecture": VIT}])
def test_intact_description_passes(change: dict[str, Any]) -> None:
    check_description(INTACT | change, "model.json")


@pytest.mark.parametrize("lacking", ["temperature", "normalisation"])
def test_description_of_an_earlier_version_passes(lacking: str) -> None:
    check_description({name: value for name, value in INTACT.items() if name != lacking}, "model.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *(({"classes": each}, r"classes .* 3 different names") for each in (
            [1, 2, 3], ["Ants", None, "Cats"], None, "Ant", {"Ants": 0, "Bees": 1, "Cats": 2}, ["Ants"],
            ["Ants", "Ants", "Cats"], ["Ants", "", "Cats"], ["Ants", "Bees", "Cats", "Dogs"], [],
        )),
        *(({"architecture": CNN | {"num_classes": each}}, "num_classes") for each in (None, 3.0, "3", True)),
        ({"architecture": [1]}, "architecture"),
        ({"architecture": CNN | {"pooling": "max"}}, "pooling"),
        ({"architecture": CNN | {"image_size": "32"}}, "architecture.image_size"),
        *((sizes(each), "preprocessing.image_size") for each in (1, 31, 32.7, 64.0, "32", None, True, 1025, 100_000)),
        ({"architecture": CNN | {"image_size": 64}}, "preprocessing.image_size is 32.* from 64 to 1024"),
        ({"architecture": CNN | {"pooling": "flatten"}} | sizes(64), "preprocessing.image_size is 64.*pooling flatten"),
        ({"architecture": VIT} | sizes(64), "preprocessing.image_size is 64.*vit_b_16"),
        *((sizes(32, each), "eval_crop") for each in (0, 1.1, float("nan"), "0.9", None)),
        ({"preprocessing": [32, 0.9]}, "preprocessing"),
        *(({"normalisation": each}, "normalisation") for each in (None, [], {}, "mean")),
        *((normalised(mean=each), "normalisation.mean") for each in (
            None, 3, [1, 2], [1, 2, 3, 4], [1, 2, float("nan")], [1, 2, 256], [1, 2, "3"],
        )),
        *((normalised(std=each), "normalisation.std") for each in ([0, 1, 2], [1e-320, 1, 1], [1, float("inf"), 1])),
        *(({"temperature": each}, "temperature") for each in (
            float("nan"), float("inf"), 1e-320, 0, -1, 1e9, "1", True, [1.0],
        )),
    ],
)  # fmt: skip
def test_damaged_description_is_bad_data(change: dict[str, Any], words: str) -> None:
    with pytest.raises(BadDataError, match=rf"^a/model\.json is damaged: .*{words}.*: export it again\.$"):
        check_description(INTACT | change, "a/model.json")


@pytest.mark.parametrize("value", [None, [1], "x", {}, {"format_version": 2}])
def test_what_is_no_description_is_bad_data(value: object) -> None:
    with pytest.raises(BadDataError, match="format version 1"):
        check_description(value, "model.json")


def test_temperature_is_one_unless_stated() -> None:
    assert (temperature_in({}, "x"), temperature_in({"temperature": None}, "x")) == (1.0, 1.0)
    assert temperature_in(INTACT, "x") == 1.5
