"""The pictures of whole runs: which there are, that equal runs have equal bytes, and that none can fail a run."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from inat_job.data.cache_index import Cache, load_trusted
from inat_job.errors import Preempted
from inat_job.evaluation import pictures
from inat_job.evaluation.image_sheets import CELL_IMAGES, CELL_SIDE, EvaluationImages, _excited, _of_cells
from inat_job.evaluation.pictures import INDEX, PictureInputs, draw
from inat_job.evaluation.prediction_table import PredictionTable
from inat_job.models.backbones import build_backbone
from inat_job.models.five_block import FiveBlockSpec, build_five_block
from inat_job.models.preprocess import Preprocess
from tests.evaluation.made_predictions import drawn_table
from tests.evaluation.test_canvas import HOSTILE
from tests.harness.job_runs import Make, report_of, run, settings_in
from tests.harness.made_images import encoded, tree, write_zip

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's remarks on a trainer without workers and loggers

EVERYWHERE = {
    *("curves.png", "confusion.png", "reliability.png", "predictions.jpg", "mistakes.jpg", "cells.jpg", "cells.json"),
    *("filters.png", "grad-cam.jpg", "pictures.json"),
}
PART_A = {"feature-maps.png", "guided-backpropagation.jpg"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = tree(train=20, test=8)
    files["some/where/val/Bees/again.jpg"] = encoded(0, size=(80, 60))  # looks like train/Ants/00.jpg
    return write_zip(tmp_path_factory.mktemp("data") / "x.zip", files)


@pytest.fixture
def settings(archive: Path, tmp_path: Path) -> Make:
    def make(name: str = "x", part: str = "a", **changes: Any) -> Any:
        return settings_in(tmp_path / name, archive, part, **{"run__pictures": "true", **changes})

    return make


def plots_of(settings: Any) -> dict[str, str]:
    """SHA-256 of each file in plots/."""
    folder = Path(settings.run.output, settings.run_id, "plots")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.soak
def test_runs_of_one_seed_have_equal_pictures(settings: Make) -> None:
    first, second = settings("first"), settings("second")
    run(first)
    run(second)
    drawn = plots_of(first)
    assert drawn == plots_of(second)
    assert EVERYWHERE | PART_A | {"near-duplicates.jpg"} == drawn.keys() - {"label-errors.jpg"}
    assert report_of(first)["timing"]["pictures_s"] > 0


def test_list_of_pictures_describes_every_file(settings: Make) -> None:
    made = settings(part="b", model__strategy="head", model__backbone="mobilenet_v3_small", data__image_size="64")
    run(made)
    folder = Path(made.run.output, made.run_id, "plots")
    listed = json.loads((folder / INDEX).read_text())
    assert {each["file"] for each in listed} | {"cells.json", INDEX} == plots_of(made).keys()
    assert EVERYWHERE - {"mistakes.jpg"} <= plots_of(made).keys()
    assert not PART_A & plots_of(made).keys()
    for each in listed:
        assert each.keys() == {"name", "title", "alt", "note", "file"}
        assert len(each["alt"]) > 20
        with Image.open(folder / each["file"]) as image:
            assert image.width <= 1024


@pytest.mark.soak
def test_no_pictures_draws_none_and_changes_neither_run_id_nor_result(settings: Make) -> None:
    with_pictures, without = settings("with"), settings("without", run__pictures="false")
    assert with_pictures.fingerprint() == without.fingerprint()
    run(with_pictures)
    run(without)
    assert not Path(without.run.output, without.run_id, "plots").exists()
    assert report_of(with_pictures)["test"] == report_of(without)["test"]


# Pictures of predictions that no run has made.

Inputs = Callable[..., PictureInputs]


@pytest.fixture(scope="module")
def cache(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    made = settings_in(tmp_path_factory.mktemp("prepared"), archive, train__epochs="1")
    run(made)
    [index] = Path(made.data.cache_dir).rglob("index.json")
    found = load_trusted(index.parent)
    assert found
    return found


@pytest.fixture
def inputs(cache: Cache) -> Inputs:
    def make(classes: tuple[str, ...] = ("a", "b", "c"), seed: int = 0, **changes: Any) -> PictureInputs:
        index = dataclasses.replace(cache.index, classes=classes)
        test, train = cache.index.rows("test"), cache.index.rows("train")
        tables = []
        for split, rows in (("test", test), ("val", train[::4])):
            logits = np.random.default_rng(seed).standard_normal((len(rows), len(classes))).astype(np.float32)
            if split == "val":  # mostly right, or else there is no sheet of label errors
                labels = np.array([index.labels[row] for row in rows])
                labels[0] = (labels[0] + 1) % len(classes)
                logits[np.arange(len(rows)), labels] += 9
            tables.append(PredictionTable.from_logits(index, split, rows, logits))
        torch.manual_seed(seed)
        spec = FiveBlockSpec((4,) * 5, (3,) * 5, "relu", 8, "gap", True, 0.0, 32, len(classes))
        given = {
            "network": build_five_block(spec).network,
            "images": EvaluationImages(dataclasses.replace(cache, index=index), 32, 0.9),
            "splits": {"test": test, "val": train[::4], "train": np.setdiff1d(train, train[::4])},
            "table": PredictionTable.joined(tables),
            "seed": seed,
            "rows": [{"step": 1, "val_loss": 1.0, "val_accuracy": 0.5}],
        }
        return PictureInputs(**{**given, **changes})

    return make


@pytest.mark.soak
def test_hostile_names_are_drawn_as_text(inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes = HOSTILE[:3]
    made = inputs(classes)
    index = dataclasses.replace(
        made.images.cache.index,
        ids=tuple(f"{each}{HOSTILE[at % 7]}" for at, each in enumerate(made.images.cache.index.ids)),
    )
    images = dataclasses.replace(made.images, cache=dataclasses.replace(made.images.cache, index=index))
    table = dataclasses.replace(made.table, ids=tuple(index.ids[row] for row in made.table.rows))
    found = draw(dataclasses.replace(made, images=images, table=table), tmp_path)
    assert "could not be drawn" not in capsys.readouterr().out
    assert {each.name for each in found} >= {"confusion", "predictions", "mistakes", "label-errors", "grad-cam"}
    listed = json.loads((tmp_path / INDEX).read_text())
    assert all(len(each["alt"]) < 1500 and each["alt"].isprintable() for each in listed)


@pytest.mark.soak
def test_picture_that_fails_is_a_warning(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*given: Any) -> None:
        raise ZeroDivisionError("no")

    monkeypatch.setattr(pictures.plots, "confusion_matrix", fail)
    found = draw(inputs(), tmp_path)
    assert "The picture confusion could not be drawn (ZeroDivisionError('no'))" in capsys.readouterr().out
    names = [each.name for each in found]
    assert "confusion" not in names
    assert {"curves", "reliability", "grad-cam"} <= set(names)


def test_stop_ends_the_drawing(inputs: Inputs, tmp_path: Path) -> None:
    asked = []

    def stop() -> bool:
        asked.append(True)
        return len(asked) > 3

    with pytest.raises(Preempted):
        draw(inputs(), tmp_path, stop)
    assert len(list(tmp_path.iterdir())) < 5


@pytest.mark.soak
def test_other_seed_chooses_other_images(inputs: Inputs, tmp_path: Path) -> None:
    made = inputs()
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        draw(dataclasses.replace(made, seed=seed), tmp_path / str(seed))
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / seed).iterdir()} for seed in "01")
    same = {name for name, data in first.items() if second.get(name) == data}
    assert {"confusion.png", "cells.jpg"} <= same
    assert not {"predictions.jpg", "feature-maps.png", "guided-backpropagation.jpg"} & same


def test_cells_show_what_their_index_says(inputs: Inputs, tmp_path: Path) -> None:
    made = inputs()
    draw(made, tmp_path)
    index = json.loads((tmp_path / "cells.json").read_text())
    test = made.table.split("test")
    counts = {(each["true"], each["predicted"]): each["count"] for each in index["cells"]}
    expected = list(zip(test.labels.tolist(), test.predicted.tolist(), strict=True))
    assert counts == {cell: expected.count(cell) for cell in set(expected)}
    label_of, sprite = dict(zip(test.ids, expected, strict=True)), Image.open(tmp_path / "cells.jpg")
    for cell in index["cells"]:
        assert 1 <= len(cell["images"]) <= cell["count"]
        for image in cell["images"]:
            assert label_of[image["id"]] == (cell["true"], cell["predicted"])
            box = (image["x"], image["y"], image["x"] + CELL_SIDE, image["y"] + CELL_SIDE)
            row = made.images.cache.index.ids.index(image["id"])
            (shown,) = made.images.shown([row], CELL_SIDE)
            difference = np.abs(np.asarray(sprite.crop(box), dtype=float) - shown)
            assert difference.mean() < 12, "the thumbnail is this image"


def test_cells_of_many_classes_stay_small() -> None:
    table = drawn_table(0, 5000, 10)
    chosen = _of_cells(table)[:CELL_IMAGES]
    cells = {(int(table.labels[at]), int(table.predicted[at])) for at in chosen}
    assert len(chosen) == CELL_IMAGES
    assert len(cells) == 100, "every cell has its worst image"


@pytest.mark.soak
def test_network_that_grad_cam_cannot_explain_is_a_warning(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = torch.nn.Sequential(Preprocess(), torch.nn.Conv2d(3, 2, 32), torch.nn.Flatten(), torch.nn.Linear(2, 3))
    found = draw(inputs(network=network), tmp_path)
    assert "grad-cam" not in {each.name for each in found}
    assert "no layer's maps have more than one pixel" in capsys.readouterr().out


@pytest.mark.soak
def test_grad_cam_of_a_vision_transformer_is_drawn(inputs: Inputs, tmp_path: Path) -> None:
    network = build_backbone("vit_b_32", 3, 64).network
    made = inputs(network=network)
    images = dataclasses.replace(made.images, image_size=64)
    assert "grad-cam" in {each.name for each in draw(dataclasses.replace(made, images=images), tmp_path)}


@pytest.mark.parametrize("shape", [(5, 512, 2, 2), (5, 1, 2, 2), (5, 3, 1, 1)])
def test_neurons_fire_and_differ(shape: tuple[int, ...]) -> None:
    maps = np.random.default_rng(0).standard_normal(shape).clip(0)
    neurons, at = _excited(maps, seed=1)
    assert len(neurons) == len({tuple(each) for each in neurons.tolist()}) <= 10
    values = maps[at, neurons[:, 0], neurons[:, 1], neurons[:, 2]]
    assert (values > 0).all()
    assert (values == maps[:, neurons[:, 0], neurons[:, 1], neurons[:, 2]].max(axis=0)).all()
    if shape[1] >= 10:
        assert len(neurons) == len(set(neurons[:, 0])) == 10, "each in a channel of its own"
    assert len(_excited(np.zeros(shape), seed=1)[0]) == 0
