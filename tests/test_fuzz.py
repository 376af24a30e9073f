"""Damaged files of every kind that the job reads, hostile names and answers of stores: each ends in a result or in a
JobError, in bounded time and memory, and writes only to the cache.

INAT_TEST_FUZZ is the total number of inputs; `make fuzz` tries 20,000.
"""

import contextlib
import copy
import itertools
import json
import os
import random
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inat_job.checkpoints import manifest, training_state
from inat_job.checkpoints.checkpoint_index import CheckpointIndex
from inat_job.commands import status
from inat_job.commands import test as evaluate
from inat_job.configuration import configure
from inat_job.data.cache_index import INDEX, PIXELS, Cache
from inat_job.errors import JobError, Preempted
from inat_job.evaluation.prediction_table import PredictionTable
from inat_job.event_text import printable
from inat_job.ingest import build_cache, data_source
from inat_job.ingest.decode_all import ROWS
from inat_job.models.build import BuildInputs, build
from inat_job.models.classifier import Classifier
from inat_job.run.progress import status_lines
from inat_job.run.run_state import decide_run_state, read_config, run_config
from inat_job.signals import never
from inat_job.storage import Entry, StorageOptions, open_store, partial_download, retry
from inat_job.storage.attempts import latest_attempt, next_attempt
from inat_job.storage.run_folder import RunFolder
from inat_job.training import context, execution
from inat_job.training.feature_cache import FeaturePlan
from inat_job.training.metrics_log import MetricsFile
from inat_job.training.trained_model import find_trained, temperature_of
from tests.evaluation.made_predictions import table_of
from tests.harness.damaged_answers import DamagedAnswers, mutated
from tests.harness.made_images import encoded, write_tar, write_zip
from tests.harness.run_folders import open_run_folder

pytestmark = pytest.mark.filterwarnings("ignore")

TRIED = int(os.environ.get("INAT_TEST_FUZZ", "300"))
LONGEST_S = 20.0
MOST_MEMORY = 600 * 2**20
"""Bytes by which the process may grow; an image may have 100 million pixels, and two are decoded at once."""


def data_set() -> dict[str, bytes]:
    """A small data set of images in every format."""
    kinds = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP")
    return {
        f"x/{split}/{name}/{number}.jpg": encoded(number, (24, 20), kinds[number % len(kinds)])
        for split in ("train", "val")
        for name in ("A", "B")
        for number in range(6)
    }


def prepared(archive: Path, stop: Callable[[], bool] = never) -> Cache:
    cache_dir = archive.parent / "cache"
    source = data_source.find(str(archive), cache_dir, StorageOptions(), never)
    return build_cache.prepare(source, cache_dir, 32, 0.5, stop)


class DamagedArchive:
    """A damaged archive."""

    def __init__(self, suffix: str) -> None:
        self.suffix = suffix

    def base(self, folder: Path) -> bytes:
        write = write_zip if self.suffix == ".zip" else write_tar
        return write(folder / f"base{self.suffix}", data_set()).read_bytes()

    def attempt(self, folder: Path, data: bytes) -> None:
        path = folder / f"x{self.suffix}"
        path.write_bytes(data)
        prepared(path)


class DamagedImage:
    """One damaged image in an intact archive."""

    def base(self, folder: Path) -> bytes:
        return encoded(3, (40, 30), "JPEG")

    def attempt(self, folder: Path, data: bytes) -> None:
        prepared(write_zip(folder / "x.zip", {**data_set(), "x/train/A/0.jpg": data}))


class DamagedCache:
    """A damaged file of a cache: the index of a finished one, or the journal of an interrupted one."""

    def __init__(self, name: str) -> None:
        self.name = name

    def base(self, folder: Path) -> bytes:
        archive = write_zip(folder / "x.zip", data_set())
        checks = iter(range(15))
        stop = (lambda: next(checks, None) is None) if self.name == ROWS else never
        with contextlib.suppress(Preempted):
            prepared(archive, stop)
        self._intact = folder / "intact"
        shutil.copytree(folder / "cache", self._intact)
        self._clean = prepared(archive)
        self._archive = archive.read_bytes()
        [path] = self._intact.glob(f"prepared/*/{self.name}")
        self._relative = path.relative_to(self._intact)
        return path.read_bytes()

    def attempt(self, folder: Path, data: bytes) -> None:
        shutil.copytree(self._intact, folder / "cache")
        (folder / "x.zip").write_bytes(self._archive)
        (folder / "cache" / self._relative).write_bytes(data)
        cache = prepared(folder / "x.zip")
        for name in ("ids", "labels", "hashes", "sizes"):
            assert getattr(cache.index, name) == getattr(self._clean.index, name)
        assert (cache.folder / PIXELS).read_bytes() == (self._clean.folder / PIXELS).read_bytes()


class DamagedDownloadJournal:
    """The damaged journal of an interrupted download."""

    def base(self, folder: Path) -> bytes:
        self._entry = Entry("x", 20 * 2**20, "v")
        plan = partial_download.plan_chunks(self._entry.size)
        return partial_download.DownloadJournal("v", plan, {0: (2**20, 5), 1: (2**23, 7)}).text().encode()

    def attempt(self, folder: Path, data: bytes) -> None:
        (folder / "x.part.json").write_bytes(data)
        (folder / "x.part").write_bytes(b"x" * 1000)
        assert partial_download.resume(folder / "x.part", self._entry.version, self._entry.size).bytes_done() == 0


class DamagedCheckpoint:
    """A damaged checkpoint whose manifest has its hash, or a damaged manifest."""

    def __init__(self, suffix: str) -> None:
        self.suffix = suffix

    def base(self, folder: Path) -> bytes:
        settings = configure(
            "a", {"model.filters": "2", "model.dense": "4", "data.image_size": "32"}, [], None
        ).settings
        inputs = BuildInputs(3, 32, pretrained=False, cache_dir=folder, options=StorageOptions(), stop=never)
        architecture = build(settings.model, inputs)
        self._classifier = Classifier(architecture, settings.train, 4)
        content = {"state_dict": self._classifier.state_dict(), "loops": {"x": [1, 2.5]}, "epoch": 1}
        self._sha256, self._size = training_state.write(content, folder / "6.ckpt")
        self._state = (folder / "6.ckpt").read_bytes()
        self._manifest = manifest.Manifest(
            6, 1, 0.5, 1.0, [0.5], False, "", "d", "s", 1.0, None, self._sha256, self._size
        )
        return self._state if self.suffix == "ckpt" else manifest.to_json(self._manifest).encode()

    def attempt(self, folder: Path, data: bytes) -> None:
        run = open_run_folder(str(folder / "runs"), "r", StorageOptions(), folder / "spool")
        run.write("checkpoints/6.ckpt", data if self.suffix == "ckpt" else self._state)
        run.write("checkpoints/6.json", data if self.suffix == "json" else manifest.to_json(self._manifest))
        if self.suffix == "ckpt":
            context.load_weights(self._classifier, run.path("checkpoints/6.ckpt"))
            assert all(torch.is_tensor(each) for each in self._classifier.state_dict().values())
        for found in (
            CheckpointIndex(run).discover().load_newest_intact(),
            CheckpointIndex(run).discover().load_newest_intact(),
        ):
            assert found is None or found[1].read_bytes() == self._state


class DamagedMetrics:
    """The metrics of an interrupted run, which its next attempt continues and plots."""

    def base(self, folder: Path) -> bytes:
        rows = [{"step": step, "epoch": 1, "train_loss": 0.5, "val_loss": 1.5} for step in range(5)]
        return "".join(json.dumps(row) + "\n" for row in rows).encode()

    def attempt(self, folder: Path, data: bytes) -> None:
        chance = random.Random(data)
        if chance.random() < 0.7:
            data = b"\n".join(mutated_json(line, chance) for line in self.base(folder).splitlines())
        run = open_run_folder(str(folder / "runs"), "r", StorageOptions(), folder / "spool")
        run.write("metrics.jsonl", data)
        resumed = manifest.Manifest(6, 1, 0.5, 1.0, [0.5], False, "", "d", "s", 1.0, None, "0" * 64, 5)
        rows = MetricsFile(run, resumed).rows
        assert all(isinstance(value, int | float) for row in rows for value in row.values())
        json.dumps(rows)


class HostileNames:
    """An archive with odd names beside a data set's."""

    pieces: tuple[str, ...] = (
        *("train", "val", "A", "B", "Ä", "A\u0308", "..", ".", "", "x.jpg", "\n", "\x1b[31m", "\u202e", "a:", "~"),
        *("x" * 300, "x" * 5000, "y/" * 70, "\\", "\\\\host", "@eaDir", "Thumbs.db", "\x7f", "\U0001f41d", "x\0y"),
    )

    def __init__(self, suffix: str) -> None:
        self.suffix = suffix

    def base(self, folder: Path) -> bytes:
        return json.dumps(self.pieces).encode()

    def attempt(self, folder: Path, data: bytes) -> None:
        chance = random.Random(data)
        names = ["/".join(chance.choices(self.pieces, k=chance.choice((1, 2, 3, 4, 9)))) for _ in range(9)]
        if chance.random() < 0.7:  # or what is refused as a whole hides the rest
            names = [name for name in names if len(name) < 140]
        names = [name for name in names if name and not name.startswith("\0")]  # zipfile can't write others
        files = dict(data_set()) if chance.random() < 0.5 else {}
        files |= {name: encoded(1) if chance.random() < 0.5 else b"" for name in names}
        path = (write_zip if self.suffix == ".zip" else write_tar)(folder / f"x{self.suffix}", files)
        if chance.random() < 0.5:  # other bytes in a name, in both places of a zip
            content, old = path.read_bytes(), chance.choice((b"train", b"x.jpg", b"val", b"A"))
            path.write_bytes(content.replace(old, chance.randbytes(len(old))))
        prepared(path)


class DamagedAttempt:
    """A damaged record of an attempt; the next attempt can follow it."""

    def base(self, folder: Path) -> bytes:
        return next_attempt(next_attempt(None, 60, {"host": "x"}, "n"), 60, {"host": "x"}, "n").to_json()

    def attempt(self, folder: Path, data: bytes) -> None:
        store = open_store(str(folder / "run"))
        store.put("attempts/2.json", data)
        found, _ = latest_attempt(store, 5.0)
        assert next_attempt(found, 60, {}, "n").number == 3
        json.dumps(next_attempt(found, 60, {}, "n").summary())


ODD = [None, True, -1, 2**70, 10**400, 1e308, float("inf"), "", "\ud800", "\x1b[2J\r\n", [], {}, [{}], ["x", 1]]
"""Values that JSON can hold, where others are expected."""


def mutated_json(data: bytes, chance: random.Random) -> bytes:
    """JSON with another value, or other nesting, in one or two places."""
    root = {"": json.loads(data)}
    for _ in range(chance.choice((1, 1, 2))):
        inside, name = root, ""
        while isinstance(inside[name], dict | list) and inside[name] and chance.random() < 0.8:
            inside, found = inside[name], inside[name]
            name = chance.choice(list(found) if isinstance(found, dict) else range(len(found)))
        inside[name] = copy.deepcopy(chance.choice(ODD))
    text = json.dumps(root[""])
    if chance.random() < 0.1:
        text = text.replace("null", "[" * 3000 + "]" * 3000).replace("-1", "9" * 5000)
    return text.encode()


class DamagedRun:
    """A damaged file of a run's folder, which commands read before they work on the run."""

    files: dict[str, bytes]

    def __init__(self, name: str) -> None:
        self.name = name

    def base(self, folder: Path) -> bytes:
        given = {"data.uri": "demo:", "run.output": str(folder.parent / "own" / "runs"), "run.run_id": "r"}
        self.settings = configure("a", given, [], None).settings
        decided = execution.decide(self.settings.train, None).as_dict()
        plan = {"views": 2, "epochs": 3, "at": "layer1"}
        config = run_config(self.settings, decided, "train", ["A", "B"]) | {"id": "x", "reuse": plan}
        checkpoint = manifest.Manifest(6, 1, 0.5, 1.0, [0.5], False, "", "d", "s", 1.0, None, "0" * 64, 5)
        report = {"status": "done", "test": {"accuracy": 0.5}, "history": []}
        description = {
            "format_version": 1,
            "architecture": {"kind": "torchvision", "name": "resnet18", "num_classes": 2, "image_size": 224},
            "classes": ["A", "B"],
            "preprocessing": {"image_size": 224, "eval_crop": 0.9},
            "temperature": 1.5,
        }
        progress = {"step": 3, "images_per_s": 1.5, "phase": "train"}
        beating = replace(next_attempt(None, 60, {"host": "x"}, "n"), progress=progress)
        self.files = {
            "config.json": json.dumps(config).encode(),
            "checkpoints/6.json": manifest.to_json(checkpoint).encode(),
            "attempts/1.json": beating.to_json(),
            "model/model.json": json.dumps(description).encode(),
        }
        if self.name == "report.json":
            self.files["report.json"] = json.dumps(report).encode()
        return self.files[self.name]

    def attempt(self, folder: Path, data: bytes) -> None:
        chance = random.Random(data)
        if chance.random() < 0.7:
            data = mutated_json(self.files[self.name], chance)
        run = open_run_folder(str(folder / "runs"), "r", StorageOptions(), folder / "spool")
        for name, content in self.files.items():
            run.write(name, data if name == self.name else content)
        attempts = (self._state, self._status, self._test, self._resume, self._test_model)
        messages = [error_message(lambda each=each: each(run)) for each in attempts]  # type: ignore[misc]
        if any(messages):
            raise JobError(max(messages))

    def _state(self, run: RunFolder) -> None:
        decide_run_state(run, self.settings)
        decide_run_state(run, replace(self.settings, train=replace(self.settings.train, seed=9)))

    def _status(self, run: RunFolder) -> None:
        [seen] = itertools.islice(status._looks(run, never), 1)
        json.dumps(seen).encode()
        "\n".join(status_lines(seen)).encode()

    def _test(self, run: RunFolder) -> None:
        made = evaluate.settings_of(run.uri, {}, [], None).settings
        config = read_config(run) or {}
        evaluate._execution(made, config["execution"], ()).as_dict()
        context.check_classes(run, config, ["A", "B"])
        context.check_classes(run, {}, ["A", "B"])

    def _test_model(self, run: RunFolder) -> None:
        made = evaluate.settings_of(f"{run.uri}/model", {}, [], None).settings
        model = find_trained(made, f"{run.uri}/model", never)
        assert temperature_of(model, table_of(np.zeros((1, 2)), [0])) > 0
        (Path(run.uri) / "config.json").unlink()
        evaluate.settings_of(f"{run.uri}/model", {}, [], None)

    def _resume(self, run: RunFolder) -> None:
        config = read_config(run) or {}
        execution.decide(self.settings.train, config["execution"]).apply()
        if config.get("reuse"):
            FeaturePlan(**config["reuse"])
        run.write_json("config.json", config)


class DamagedPredictions:
    """A damaged predictions.csv."""

    def base(self, folder: Path) -> bytes:
        table_of(np.eye(3), [0, 1, 2], ["A", "=B", '"C"\r\n']).write_csv(folder / "p.csv")
        return (folder / "p.csv").read_bytes()

    def attempt(self, folder: Path, data: bytes) -> None:
        (folder / "p.csv").write_bytes(data)
        table = PredictionTable.read_csv(folder / "p.csv")
        assert np.isfinite(table.losses).all()
        table.write_csv(folder / "again.csv")


KINDS: dict[str, Any] = {
    "zip": DamagedArchive(".zip"),
    "tar": DamagedArchive(".tar"),
    "tar.gz": DamagedArchive(".tar.gz"),
    "image": DamagedImage(),
    "index": DamagedCache(INDEX),
    "rows": DamagedCache(ROWS),
    "journal": DamagedDownloadJournal(),
    "checkpoint": DamagedCheckpoint("ckpt"),
    "manifest": DamagedCheckpoint("json"),
    "attempt": DamagedAttempt(),
    "predictions": DamagedPredictions(),
    **{name: DamagedRun(name) for name in ("config.json", "report.json", "attempts/1.json", "checkpoints/6.json")},
    "model/model.json": DamagedRun("model/model.json"),
    "metrics.jsonl": DamagedMetrics(),
    "names in zip": HostileNames(".zip"),
    "names in tar": HostileNames(".tar"),
    "https answers": DamagedAnswers("https"),
    "s3 answers": DamagedAnswers("s3"),
}


_ENVIRONMENT = {
    **{"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"},
    **{"AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"},
}


def outside(root: Path, own: Path) -> set[str]:
    return {str(path) for path in root.rglob("*") if own not in path.parents and path != own}


def error_message(attempt: Callable[[], None]) -> str:
    """The message of a JobError, or nothing; any other error fails the test."""
    try:
        attempt()
    except JobError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_input_ends_in_result_or_job_error(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    kinds = KINDS[kind]
    for name in ("FIRST_WAIT_S", "LONGEST_WAIT_S"):
        monkeypatch.setattr(retry, name, 0.001)
    for name, value in _ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    if isinstance(kinds, DamagedAnswers):
        request.addfinalizer(kinds.end)
    (tmp_path / "base").mkdir()
    base = kinds.base(tmp_path / "base")
    chance, others = random.Random(kind), outside(tmp_path, tmp_path / "own")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    slowest = refused = 0.0
    for number in range(TRIED // len(KINDS)):
        own = tmp_path / "own"
        own.mkdir()
        data = mutated(base, chance)
        begun = time.monotonic()
        message = error_message(lambda data=data, own=own: kinds.attempt(own, data))  # type: ignore[misc]
        assert printable(message).isprintable(), (number, message)
        refused += bool(message)
        slowest = max(slowest, time.monotonic() - begun)
        assert outside(tmp_path, own) == others
        shutil.rmtree(own)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    print(f"{kind}: {TRIED // len(KINDS)} inputs, {refused:.0f} refused, slowest {slowest:.2f} s, {grown / 1e6:.0f} MB")
    assert slowest < LONGEST_S
    assert grown < MOST_MEMORY
