"""A trial of a sweep as a run in this process: it has no test images, and an attempt to read them fails it."""

import ast
import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch

import inat_job
from inat_job.commands import sweep_runs, train
from inat_job.data import layout
from inat_job.data.module import ImageDataModule
from inat_job.distributed import world
from inat_job.errors import BadDataError, BadImagesError
from inat_job.platforms.platform import NO_PLATFORM
from inat_job.run.job import Job
from inat_job.run.run_state import open_run
from inat_job.run.timing import Clock
from inat_job.run.trial_link import TrialLink
from inat_job.settings import Settings
from inat_job.training import results
from inat_job.training import run as story
from inat_job.training.context import RunContext
from tests.harness.job_runs import SCHEMA, SMALLER_B, Make, StopAfter, report_of

pytestmark = pytest.mark.filterwarnings("ignore")

PACKAGE = Path(inat_job.__file__).parent


def run_trial(settings: Settings) -> None:
    """Do a trial whose worker never answers."""
    ours, theirs = multiprocessing.Pipe()
    stop = StopAfter(10**9)
    folder, rank = open_run(settings, settings.run_id, stop), world.local_ranks(settings, NO_PLATFORM)[0]
    link = TrialLink(theirs, stop, 0.0)
    try:
        train.run_rank(Job(settings, folder, rank, Clock(time.perf_counter()), stop, link))
    finally:
        ours.close()
        theirs.close()


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[RunContext]:
    """The contexts of the runs in the test."""
    made: list[RunContext] = []
    whole_run = story.train_and_test

    def recorded(context: RunContext, *rest: object) -> None:
        made.append(context)
        whole_run(context, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(story, "train_and_test", recorded)
    return made


def test_trial_has_no_test_images(settings: Make, contexts: list[RunContext]) -> None:
    small = settings()
    run_trial(small)
    images, index = contexts[0].images, contexts[0].images.cache.index
    assert len(images.test_rows) == 0
    hidden = index.hidden_rows()
    assert len(hidden) == 15
    for row in hidden:
        assert (index.ids[row], index.labels[row], index.hashes[row]) == ("", -1, "")
    assert not [name for name in (*index.ids, *index.blank) if layout.TEST in name]
    assert index.in_both_splits() == ()
    assert {-1} == set(images.pixel_rows._labels[hidden].tolist())


def test_report_of_a_trial_has_no_test(settings: Make) -> None:
    small = settings()
    run_trial(small)
    report = report_of(small)
    jsonschema.validate(report, SCHEMA)
    folder = open_run(small, small.run_id, StopAfter(10**9))
    rows = [json.loads(line) for line in folder.store.read("metrics.jsonl").splitlines()]
    accuracies = sweep_runs._accuracies(folder)
    assert accuracies == tuple(row["val_accuracy"] for row in rows if "val_accuracy" in row)
    assert len(accuracies) == small.train.epochs
    assert (report["test"], report["baseline"], report["data"]["n_test"]) == (None, None, 0)
    assert 0 <= report["val"]["accuracy"] <= 1
    folder = Path(small.run.output, small.run_id)
    assert not [name for name in ("model", "plots", "report.html", "predictions.csv") if (folder / name).exists()]


def test_missing_images_are_told_from_other_bad_files(settings: Make) -> None:
    with pytest.raises(BadImagesError, match="gone.zip does not exist: check --data"):
        run_trial(settings(data__uri="gone.zip"))
    with pytest.raises(BadDataError, match="--weights is gone.pth, which is not a file") as raised:
        run_trial(settings("b", **{**SMALLER_B, "model__weights": "gone.pth"}))
    assert not isinstance(raised.value, BadImagesError)


def predict_hidden(context: RunContext) -> None:
    rows = context.images.cache.index.hidden_rows()
    _, classifier = context.build_network(pretrained=False)
    results.predict_split(context, classifier, layout.TEST, rows, "test")


def train_on_hidden(context: RunContext) -> None:
    context.images.view_batches(0, context.images.cache.index.hidden_rows())


def read_hidden_pixels(context: RunContext) -> None:
    context.images.pixel_rows.in_order(torch.from_numpy(context.images.cache.index.hidden_rows()))


def read_hidden_file(context: RunContext) -> None:
    assert len(context.images.cache.pixels)


@pytest.mark.parametrize("attempt", [predict_hidden, train_on_hidden, read_hidden_pixels, read_hidden_file])
def test_attempt_to_read_test_images_fails_the_trial(
    settings: Make, monkeypatch: pytest.MonkeyPatch, attempt: Callable[[RunContext], None]
) -> None:
    """Planted where training introduces itself, in the middle of the story."""
    monkeypatch.setattr(story, "introduce", lambda context, *rest: attempt(context))
    with pytest.raises(LookupError, match="A trial of a sweep may not read test images"):
        run_trial(settings())


def test_attempt_to_test_a_trial_fails_it(settings: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    both = results.predict_splits
    monkeypatch.setattr(story, "predict_splits", lambda context, classifier, test: both(context, classifier, test=True))
    small = settings()
    with pytest.raises(LookupError, match="A trial of a sweep may not read test images"):
        run_trial(small)
    assert not Path(small.run.output, small.run_id, "report.json").exists()


@pytest.mark.soak
def test_features_are_computed_for_no_test_image(
    settings: Make, monkeypatch: pytest.MonkeyPatch, contexts: list[RunContext]
) -> None:
    computed: list[np.ndarray] = []
    batches = ImageDataModule.unsharded_batches

    def recorded(self: ImageDataModule, rows: np.ndarray, view: int | None) -> object:
        computed.append(rows)
        return batches(self, rows, view)

    monkeypatch.setattr(ImageDataModule, "unsharded_batches", recorded)
    changes = {**SMALLER_B, "model__strategy": "head", "train__epochs": "3", "model__feature_views": "1"}
    run_trial(settings("b", **changes))
    images = contexts[0].images
    assert sorted(np.concatenate(computed)) == sorted([*images.train_rows, *images.val_rows])


def test_training_reads_images_through_its_context_alone() -> None:
    """Only `RunContext` makes the data module, of a cache without test images, and no module opens a cache itself."""
    opening = {"load", "load_trusted", "PIXELS", "INDEX", "ImageDataModule", "PixelRows"}
    found = {
        (path.name, alias.name)
        for folder in ("training", "evaluation", "reporting", "search")
        for path in (PACKAGE / folder).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("inat_job.data.")
        for alias in node.names
        if alias.name in opening and _is_called(path, alias.name)
    }
    assert found == {("context.py", "ImageDataModule"), ("start.py", "load_trusted")}


def _is_called(path: Path, name: str) -> bool:
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return any(isinstance(call.func, ast.Name) and call.func.id == name for call in calls)
