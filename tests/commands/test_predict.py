"""`predict`, and the library under it: the digits of `test`, rows for broken images, with and without torch."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from inat_job import events, load_model
from inat_job.command_options import PredictOptions
from inat_job.commands import predict
from inat_job.configuration import configure
from inat_job.data.augment import cut_views
from inat_job.data.cache_index import load
from inat_job.data.module import ImageDataModule
from inat_job.errors import BadDataError, ConflictError, JobError, Preempted, UsageError
from inat_job.models.export import load_exported
from inat_job.settings import Settings
from inat_job.signals import StopFlag, never
from inat_job.storage import StorageOptions, open_store
from tests.harness.job_runs import StopAfter, report_of, run, settings_in
from tests.harness.made_images import CLASSES, encoded, tree, write_folder, write_tar, write_zip
from tests.harness.web_sites import Site, site  # noqa: F401  # a fixture

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's and the exporters' remarks
FILES = {name: data for name, data in tree(train=8, test=4).items() if "/val/" in name}
NO_TORCH = "import sys; sys.modules['torch'] = None\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A finished run with both exports."""
    place = tmp_path_factory.mktemp("trained")
    archive = write_zip(place / "x.zip", tree(train=8, test=4))
    settings = settings_in(
        place,
        archive,
        train__epochs="1",
        train__precision="bf16",
        run__export="onnx,pt2",
        data__eval_crop="0.9",
        data__test_size="48",
    )
    run(settings)
    return settings


@pytest.fixture
def model(trained: Settings) -> str:
    return f"{trained.run.output}/r"


@pytest.fixture
def predicted(
    trained: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[JobError | None, list[dict[str, Any]]]]:
    """Runs the command; returns its error and the rows of --json."""

    def predicting(model: str, paths: Sequence[object], **options: Any) -> tuple[JobError | None, list[dict[str, Any]]]:
        flags = {"data.cache_dir": str(tmp_path / "cache"), "run.output": trained.run.output, "train.batch_size": "5"}
        settings = configure("a", flags, [], None).settings
        error = None
        try:
            predict.run(settings, model, [*map(str, paths)], PredictOptions(**{"json": True} | options), never)
        except JobError as raised:
            error = raised
        lines = map(json.loads, capsys.readouterr().out.splitlines())
        return error, [line for line in lines if "image" in line]

    return predicting


def logits_of_test(settings: Settings) -> dict[str, np.ndarray]:
    """By file name, the logits of the test images as `test` computes them: from the cache, in its batches."""
    [folder] = (Path(settings.data.cache_dir) / "prepared").glob("*[!k]")
    cache = load(folder, never)
    assert cache is not None
    images = ImageDataModule(cache, settings.train, settings.data)
    network, _ = load_exported(Path(settings.run.output) / "r" / "model")
    network.to(memory_format=torch.channels_last)
    found = []
    with torch.inference_mode():
        for batch in images.batches(images.test_rows):
            found += [*network(cut_views(batch.pixels, batch.maps, None, batch.size)).numpy()]
    return dict(zip((cache.index.ids[row] for row in images.test_rows), found, strict=True))


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_predictions_have_the_digits_of_test(
    runtime: str, trained: Settings, model: str, predicted: Any, tmp_path: Path
) -> None:
    error, rows = predicted(model, [write_zip(tmp_path / "x.zip", FILES)], runtime=runtime, top_k=3)
    assert error is None
    classes = report_of(trained)["data"]["classes"]
    expected, temperature, correct = logits_of_test(trained), report_of(trained)["temperature"], 0
    assert len(rows) == len(expected) == 12
    for row in rows:
        name = "test/" + row["image"].partition("/val/")[2]
        by_class = {each["class"]: each["probability"] for each in row["top"]}
        own = [by_class[each] for each in classes]
        assert own == pytest.approx(softmax(expected[name] / temperature), abs=1e-7 if runtime == "torch" else 1e-5)
        correct += row["class"] == name.split("/")[1]
    assert correct == report_of(trained)["test"]["correct"]


def test_report_and_description_have_the_exports(trained: Settings, model: str) -> None:
    report = report_of(trained)
    assert set(report["exports"]) == {"onnx", "pt2"}
    for each in report["exports"].values():
        assert each["accuracy"] == report["test"]["accuracy"]  # though the run trained in bf16
        assert each["max_abs_diff"] <= 1e-4
        assert (Path(model) / "model" / each["file"]).stat().st_size == each["bytes"]
    assert 0 < report["timing"]["export_s"] < report["timing"]["total_s"]
    card = (Path(model) / "model" / "README.md").read_text()
    assert f"**Test accuracy {report['test']['accuracy']:.4f}**" in card


@pytest.mark.parametrize("make", [write_zip, write_tar, write_folder])
def test_archive_and_folder_give_equal_rows(make: Any, model: str, predicted: Any, tmp_path: Path) -> None:
    name = {write_zip: "y.zip", write_tar: "y.tar.gz", write_folder: "y"}[make]
    _, rows = predicted(model, [make(tmp_path / name, FILES)])
    _, single = predicted(model, [*sorted(write_folder(tmp_path / "z", FILES).rglob("*.jpg"))])
    assert sorted((Path(row["image"]).name, row["probability"]) for row in rows) == sorted(
        (Path(row["image"]).name, row["probability"]) for row in single
    )


def test_broken_image_is_a_row_and_the_exit_code_65(model: str, predicted: Any, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "y", {"a.jpg": encoded(1), "b.jpg": b"text", "c.png": b"", "notes.txt": b"x"})
    error, rows = predicted(model, [folder, tmp_path / "no.jpg", folder / "a.jpg"])
    assert isinstance(error, BadDataError)
    assert str(error).startswith("3 of 5 images could not be read, first ")
    reasons = {Path(row["image"]).name: row.get("error") for row in rows}
    assert reasons["b.jpg"] == "not an image in a format that is read (text)"
    assert reasons["c.png"] == "empty file"
    assert "does not exist" in reasons["no.jpg"]
    assert [row["image"] for row in rows if "class" in row] == [f"{folder}/a.jpg"] * 2


def test_csv_has_a_row_for_each_image(model: str, predicted: Any, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "y", {"a,b.jpg": encoded(1), "c.jpg": b"text"})
    _, rows = predicted(model, [folder], csv=str(tmp_path / "new" / "o.csv"), top_k=2)
    with (tmp_path / "new" / "o.csv").open(newline="") as file:
        good, bad = csv.DictReader(file)
    assert (good["image"], good["class_1"]) == (f"{folder}/a,b.jpg", rows[0]["class"])
    assert float(good["probability_2"]) == pytest.approx(rows[0]["top"][1]["probability"], rel=1e-8)
    assert (bad["class_1"], bad["error"]) == ("", "not an image in a format that is read (text)")


def test_names_are_escaped_for_terminals_alone(
    trained: Settings, model: str, predicted: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"a\x1b[2Jb\n.jpg": encoded(1), "\udcff.jpg": encoded(2)}
    folder = write_folder(tmp_path / "y", files)
    _, rows = predicted(model, [folder], csv=str(tmp_path / "p.csv"))
    names = {f"{folder}/{name}" for name in files}
    assert {row["image"] for row in rows} == names
    with (tmp_path / "p.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert {row["image"] for row in csv.DictReader(file)} == names
    events.configure(text=True)
    predict.run(trained, model, [str(folder)], PredictOptions(), never)
    assert "a\\x1b[2Jb\\n.jpg" in capsys.readouterr().out


def test_csv_replaces_its_own_file_and_no_other(model: str, predicted: Any, tmp_path: Path) -> None:
    photo, table = tmp_path / "a.jpg", tmp_path / "p.csv"
    photo.write_bytes(encoded(1))
    for _ in range(2):
        assert predicted(model, [photo], csv=str(table))[0] is None
    for name in (photo, tmp_path):
        error, rows = predicted(model, [photo], csv=str(name))
        assert isinstance(error, ConflictError)
        assert (str(error).startswith(f"--csv is {name}, which "), rows) == (True, [])
    assert photo.read_bytes() == encoded(1)


def test_csv_into_a_pipe_is_refused_at_once(model: str, predicted: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    error, rows = predicted(model, [tmp_path], csv=str(tmp_path / "pipe"))
    assert isinstance(error, ConflictError)
    assert (str(error), rows) == (f"--csv is {tmp_path}/pipe, which is a pipe, not a file: name another file.", [])


def test_csv_is_written_to_an_empty_file_and_through_a_link(model: str, predicted: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(1))
    table, link = tmp_path / "table.csv", tmp_path / "link.csv"
    table.touch()
    link.symlink_to(table)
    assert predicted(model, [tmp_path / "a.jpg"], csv=str(link))[0] is None
    assert (link.is_symlink(), table.read_text().startswith("image,class_1,")) == (True, True)


def test_csv_where_no_folder_can_be_made_is_a_conflict(model: str, predicted: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(1))
    error, _ = predicted(model, [tmp_path / "a.jpg"], csv="/proc/x/y")
    assert isinstance(error, ConflictError)
    assert str(error).startswith("The folder of /proc/x/y cannot be made, or was deleted: check the path")


def test_top_k_beyond_the_classes_shows_all(model: str, predicted: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(1))
    _, [row] = predicted(model, [tmp_path / "a.jpg"], top_k=99, csv=str(tmp_path / "p.csv"))
    assert len(row["top"]) == len(CLASSES)
    with (tmp_path / "p.csv").open(newline="") as file:
        assert len(next(csv.reader(file))) == 2 + 2 * len(CLASSES)


@pytest.mark.parametrize("name", ["r", "{run}", "{run}/model", "{run}/"])
def test_model_is_a_run_its_folder_or_a_run_id(name: str, model: str, predicted: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(1))
    assert predicted(name.format(run=model), [tmp_path / "a.jpg"])[0] is None


def test_model_and_images_come_from_s3(model: str, predicted: Any, s3_bucket: str, tmp_path: Path) -> None:
    store = open_store(f"s3://{s3_bucket}")
    for file in (Path(model) / "model").iterdir():
        store.put(f"runs/r/model/{file.name}", file)
    store.put("photos/a.jpg", encoded(1))
    store.put("photos/b.jpg", encoded(2))
    for runtime in ("torch", "onnx"):
        paths = [f"s3://{s3_bucket}/photos", f"s3://{s3_bucket}/photos/a.jpg"]
        error, rows = predicted(f"s3://{s3_bucket}/runs/r", paths, runtime=runtime)
        assert error is None
        assert [row["image"].removeprefix(f"s3://{s3_bucket}/photos/") for row in rows] == ["a.jpg", "b.jpg", "a.jpg"]
        assert rows[0]["probability"] == rows[2]["probability"]


@pytest.mark.parametrize(
    ("damage", "runtime", "sentence"),
    [
        (lambda folder: (folder / "model.onnx").unlink(), "onnx", "train with --export onnx"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"x"), "onnx", "not the one in model.json"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "torch", "not the one in model.json"),
        (lambda folder: (folder / "model.json").unlink(), "torch", "holds no model.json"),
        (lambda folder: (folder / "model.json").write_text("[]"), "onnx", "format version"),
        (lambda folder: (folder / "model.json").write_text('{"format_version": 1}'), "onnx", "export it again"),
    ],
)
def test_missing_or_damaged_model_is_bad_data(
    damage: Any, runtime: str, sentence: str, model: str, predicted: Any, tmp_path: Path
) -> None:
    shutil.copytree(Path(model) / "model", tmp_path / "copy")
    damage(tmp_path / "copy")
    error, rows = predicted(str(tmp_path / "copy"), [tmp_path], runtime=runtime)
    assert isinstance(error, BadDataError)
    assert sentence in str(error)
    assert rows == []


CHANGES: list[dict[str, Any]] = [
    {"classes": [1, 2, 3]},
    {"classes": None},
    {"classes": [*CLASSES[:2], CLASSES[1]]},
    {"normalisation": None},
    {"normalisation": {"mean": [1, 2, 3], "std": [1, 2, float("nan")]}},
    {"temperature": 1e-320},
    {"preprocessing": {"image_size": 100_000, "eval_crop": 0.9}},
]


def changed(model: str, copy: Path, **changes: Any) -> str:
    """A copy of a run's model whose model.json says something else."""
    shutil.copytree(Path(model) / "model", copy)
    description = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps(description | changes))
    return str(copy)


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
@pytest.mark.parametrize("changes", CHANGES)
def test_damaged_description_is_bad_data(
    changes: dict[str, Any], runtime: str, model: str, predicted: Any, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(1))
    error, rows = predicted(changed(model, tmp_path / "copy", **changes), [tmp_path / "a.jpg"], runtime=runtime)
    assert isinstance(error, BadDataError)
    assert str(error).startswith(f"{tmp_path}/copy/model.json is damaged: {next(iter(changes))}")
    assert rows == []


@pytest.mark.parametrize(
    "changes",
    [
        {"preprocessing": {"image_size": 64, "eval_crop": 0.9}},
        {"classes": ["A", "B"], "architecture": {"pooling": "gap", "image_size": 32, "num_classes": 2}},
    ],
)
def test_graph_of_another_description_is_bad_data(changes: dict[str, Any], model: str, tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match=r"takes images of 48 pixels and has 3 outputs, and its model\.json says"):
        load_model(changed(model, tmp_path / "copy", **changes), runtime="onnx")


def test_logits_that_are_no_numbers_are_bad_data(model: str) -> None:
    loaded = load_model(model)
    loaded._runtime.logits = lambda squares, sizes: np.full((1, 3), np.nan)  # type: ignore[method-assign]
    with pytest.raises(BadDataError, match="NaN or infinite logits: train the model again"):
        loaded.predict(encoded(1))


def test_temperature_flattens_the_probabilities(model: str, tmp_path: Path) -> None:
    shutil.copytree(Path(model) / "model", tmp_path / "copy")
    description = json.loads((tmp_path / "copy" / "model.json").read_text())
    (tmp_path / "copy" / "model.json").write_text(json.dumps({**description, "temperature": 4.0}))
    plain, scaled = (load_model(folder).predict(encoded(1)) for folder in (f"{model}/model", tmp_path / "copy"))
    logits = np.log([each.probability for each in plain.classes]) * description["temperature"] / 4
    assert [each.probability for each in scaled.classes] == pytest.approx(softmax(logits))


def test_library_takes_paths_bytes_images_arrays_and_lists(model: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(1, format="PNG"))
    loaded = load_model(model)
    first = loaded.predict(tmp_path / "a.png")
    assert sum(each.probability for each in first.classes) == pytest.approx(1)
    assert (first.label, first.probability) == (first.classes[0].name, max(each.probability for each in first.classes))
    with Image.open(tmp_path / "a.png") as image:
        others = [str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(), image, np.array(image)]
        for prediction in loaded.predict(others):
            assert [each.name for each in prediction.classes] == [each.name for each in first.classes]
            assert prediction.probability == pytest.approx(first.probability, abs=1e-6)
    assert loaded.predict([]) == []


EMPTY = (np.zeros((0, 0, 3), np.uint8), np.zeros((4, 0, 3), np.uint8), Image.new("RGB", (0, 4)))


@pytest.mark.parametrize("image", [b"text", 3, np.zeros((4, 4), np.uint8), "nowhere.jpg", *EMPTY])
def test_library_refuses_what_is_no_image(image: object, model: str) -> None:
    with pytest.raises(BadDataError):
        load_model(model).predict([image])


def test_library_opens_no_pipe(model: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(BadDataError, match=r"pipe\.jpg cannot be read \(neither a file nor a folder\)"):
        load_model(model).predict([tmp_path / "pipe.jpg"])


def test_library_refuses_an_opened_image_that_is_truncated(model: str) -> None:
    data = encoded(1, format="JPEG")
    with (
        Image.open(io.BytesIO(data[:-40])) as image,
        pytest.raises(BadDataError, match=r"^Image 0 cannot be read \(truncated file\)"),
    ):
        load_model(model).predict([image])


def test_library_refuses_an_unknown_runtime(model: str) -> None:
    with pytest.raises(UsageError, match="torch, onnx"):
        load_model(model, runtime="tensorrt")


def in_process(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_onnx_runtime_imports_no_torch(model: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(1))
    words = ["predict", "--model", model, "--runtime", "onnx", "--json", str(tmp_path / "a.jpg")]
    out = in_process(f"{NO_TORCH}sys.argv[1:] = {words!r}\nimport entrypoint\nentrypoint.main()")
    with_torch = load_model(model).predict(tmp_path / "a.jpg")
    found = json.loads(out.splitlines()[-1])
    assert found["class"] == with_torch.label
    assert found["probability"] == pytest.approx(with_torch.probability, abs=1e-5)


@pytest.mark.soak
def test_library_imports_no_lightning_and_the_package_no_torch(model: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(1))
    script = (
        "import sys, inat_job\nassert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
        f"print(inat_job.load_model({model!r}).predict({str(tmp_path / 'a.jpg')!r}).label)\n"
        "assert not {'lightning', 'pytorch_lightning', 'click', 'boto3'} & set(sys.modules)"
    )
    assert in_process(script).strip() in CLASSES


def test_stop_ends_the_command(trained: Settings, model: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "y", FILES)
    with pytest.raises(Preempted):
        predict.run(trained, model, [str(tmp_path / "y")], PredictOptions(json=True), StopAfter(1))


def test_accelerator_with_onnx_is_refused(trained: Settings, model: str) -> None:
    settings = configure("a", {"train.accelerator": "cuda"}, [], None).settings
    with pytest.raises(UsageError, match="runs on the CPU"):
        predict.run(settings, model, ["x"], PredictOptions(runtime="onnx"), never)


def test_missing_image_is_shown_without_its_query(site: Site, tmp_path: Path) -> None:  # noqa: F811
    [source] = predict._find_all([f"{site.url}/none.jpg?token=hidden"], tmp_path, StorageOptions(), StopFlag())
    [(name, load)] = source.load()
    assert name == f"{site.url}/none.jpg"
    with pytest.raises(BadDataError) as caught:
        load()
    assert "hidden" not in str(caught.value)


def test_rows_have_the_order_of_the_paths(model: str, predicted: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(1))
    paths = [str(tmp_path / name) for name in ("a.jpg", "no.jpg", "a.jpg", "none")]
    error, rows = predicted(model, paths)
    assert [row["image"] for row in rows] == paths
    assert str(error).startswith(f"2 of 4 images could not be read, first {tmp_path}/no.jpg ")
