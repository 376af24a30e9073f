"""`compare` of runs in folders and on S3, and what it refuses."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from inat_job.evaluation.prediction_table import PredictionTable
from inat_job.storage import open_store
from tests.evaluation.made_predictions import drawn_table
from tests.harness.in_process import Ended, in_process
from tests.reporting.made_reports import made_report

ROOT = Path(__file__).parents[2]
Compare = Callable[..., Ended]


@pytest.fixture
def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Compare]:
    """The command in a folder with the finished runs a and b under runs/."""
    monkeypatch.chdir(tmp_path)
    for part, skill in (("a", 0.5), ("b", 2.0)):
        write_run(tmp_path / "runs" / part, part, drawn_table(0, 100, 3, skill=skill))
    with in_process(monkeypatch, capsys, "compare") as run:
        yield run


def write_run(folder: Path, part: str, table: PredictionTable) -> None:
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(made_report(table, part, folder.name)))
    table.write_csv(folder / "predictions.csv")


def test_table_and_page(compare: Compare, tmp_path: Path) -> None:
    ended = compare("a", "b", "--log-format", "text")
    assert ended.code == 0
    assert (
        ended.lines[0].split() == "run part model test accuracy (95 %) val macro F1 training device time cost".split()
    )
    assert "b over a" in ended.stdout
    assert f"The page is {tmp_path}/compare.html" == ended.lines[-1]
    assert "Comparison of 2 runs" in (tmp_path / "compare.html").read_text()


def test_every_way_to_name_a_run(compare: Compare, tmp_path: Path, s3_bucket: str) -> None:
    store = open_store(f"s3://{s3_bucket}/runs/b")
    for name in ("report.json", "predictions.csv"):
        store.put(name, tmp_path / "runs" / "b" / name)
    results = []
    for other in ("b", "runs/b", "runs/b/", f"{tmp_path}/runs/b/report.json", f"s3://{s3_bucket}/runs/b"):
        ended = compare("a", other, "--json")
        assert ended.code == 0, ended.last
        result = json.loads(ended.stdout)
        results.append([result["pairs"], result["runs"][1]["accuracy"]])
    assert all(each == results[0] for each in results)
    assert results[0][0][0]["mcnemar"]["p"] < 1


def test_output_names_where_the_run_ids_are(compare: Compare, tmp_path: Path) -> None:
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    assert compare("a", "b", "--output", "elsewhere").code == 0
    assert compare("a", "b").code == 65


def damage(run: Path) -> None:
    (run / "report.json").write_text('{"status": "done", "test": ')


def unfinish(run: Path) -> None:
    (run / "report.json").unlink()
    (run / "config.json").write_text("{}")


def remove(run: Path) -> None:
    (run / "report.json").unlink()


def replace_by_another(run: Path) -> None:
    (run / "report.json").write_text('{"name": "package"}')


def other_predictions(run: Path) -> None:
    drawn_table(5, 90, 3).write_csv(run / "predictions.csv")


def damaged_predictions(run: Path) -> None:
    (run / "predictions.csv").write_text("id,split\n")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (damage, "runs/b/report.json is damaged"),
        (replace_by_another, "is not the report of a finished run"),
        (unfinish, "runs/b is not finished, and has no report.json yet: run its command again."),
        (remove, "runs/b holds no report.json: check the run's name and --output."),
        (other_predictions, "runs/b/predictions.csv is not that of its report.json: test the run again."),
        (damaged_predictions, "cannot be read as predictions"),
    ],
)
def test_what_is_no_finished_run(compare: Compare, tmp_path: Path, change: Callable[[Path], None], words: str) -> None:
    change(tmp_path / "runs" / "b")
    ended = compare("a", "b")
    assert (ended.code, words in ended.last) == (65, True), ended.last
    assert not (tmp_path / "compare.html").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["a"], "RUNS is one run: name two or more."),
        ([], "RUNS is missing: name two runs or more"),
        (["a", "https://x.org/runs/b"], "compare reads folders, s3://, gs:// and az:// only"),
    ],
)
def test_usage(compare: Compare, words: list[str], sentence: str) -> None:
    ended = compare(*words)
    assert (ended.code, sentence in ended.last) == (2, True), ended.last


def test_page_replaces_an_earlier_one_and_nothing_else(compare: Compare, tmp_path: Path) -> None:
    assert compare("a", "b").code == compare("a", "b").code == 0
    foreign = tmp_path / "mine.html"
    foreign.write_text("<html>mine")
    ended = compare("a", "b", "--html", "mine.html")
    assert (ended.code, ended.last) == (
        78,
        "Error: --html is mine.html, which exists and is no comparison: name another file.",
    )
    assert foreign.read_text() == "<html>mine"
    assert compare("a", "b", "--html", "runs").code == 78
    assert (tmp_path / "runs" / "a").is_dir()


def test_runs_of_version_1_have_no_predictions(compare: Compare, tmp_path: Path) -> None:
    (tmp_path / "runs" / "b" / "predictions.csv").unlink()
    result = json.loads(compare("a", "b", "--json").stdout)
    assert (result["pairs"][0]["same_images"], result["warnings"]) == (False, [])


def test_compare_imports_no_torch(compare: Compare, tmp_path: Path) -> None:
    script = (
        "import sys; sys.argv = ['entrypoint.py', 'compare', 'a', 'b']\n"
        "import entrypoint; entrypoint.main()\n"
        "print(sorted({'torch', 'torchvision', 'lightning', 'wandb', 'boto3', 'matplotlib', 'PIL'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("names", [("a", "a"), ("a", "b", "runs/a/report.json")])
def test_run_named_twice_is_refused(compare: Compare, names: list[str]) -> None:
    ended = compare(*names)
    assert (ended.code, ended.last) == (2, "Error: RUNS names a twice: name each run once.")


def test_damaged_predictions_are_named_by_run_and_line(compare: Compare, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "b" / "predictions.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], lines[3].rpartition(",")[0], *lines[4:]]))
    assert (
        f"{path}, line 4, cannot be read as predictions (it has 7 of 8 columns): test the run again."
        in compare("a", "b").last
    )
