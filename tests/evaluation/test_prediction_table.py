"""The table of predictions: what it derives from logits, and its file, which reads back exactly."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.errors import BadDataError
from inat_job.evaluation.prediction_table import PredictionTable
from tests.evaluation.made_predictions import index_of

CLASSES = ("Ants", "=Bees()", '<b>, "Cats"\r\n')
HOSTILE = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


def named_table(ids: list[str], logits: np.ndarray, labels: list[int]) -> PredictionTable:
    return PredictionTable.from_logits(index_of(ids, labels, CLASSES), "test", np.arange(len(ids)), logits)


def assert_same(one: PredictionTable, other: PredictionTable) -> None:
    assert (one.classes, one.ids) == (other.classes, other.ids)
    for name in ("splits", "labels", "probabilities", "predicted", "losses"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


def test_probabilities_predictions_and_losses_of_known_logits() -> None:
    logits = np.log(np.array([[1, 2, 1], [8, 1, 1]], dtype=np.float32))
    table = named_table(["x", "y"], logits, [1, 2])
    assert table.probabilities == pytest.approx(np.array([[0.25, 0.5, 0.25], [0.8, 0.1, 0.1]]), abs=1e-7)
    assert table.predicted.tolist() == [1, 0]
    assert table.losses == pytest.approx([np.log(2), np.log(10)], abs=1e-6)
    assert table.confidences == pytest.approx([0.5, 0.8], abs=1e-7)


def test_losses_are_finite_and_not_negative_for_extreme_logits() -> None:
    table = named_table(["x", "y"], np.array([[3e38, -3e38, 0], [90, 0, 0]], dtype=np.float32), [1, 0])
    assert table.losses[0] == pytest.approx(744.4, abs=0.1)
    assert not np.signbit(table.losses).any()


def test_joined_splits_are_in_the_order_of_the_rows_and_split_again() -> None:
    logits = np.arange(12, dtype=np.float32).reshape(4, 3)
    index = index_of(["a", "b", "c", "d"], [0, 1, 2, 0], CLASSES)
    val = PredictionTable.from_logits(index, "val", index.rows("train"), logits[:2])
    test = PredictionTable.from_logits(index, "test", index.rows("test"), logits[2:])
    whole = PredictionTable.joined([val, test])
    assert whole.ids == index.ids
    assert whole.splits.tolist() == ["val", "test"] * 2
    assert whole.labels.tolist() == [0, 1, 2, 0]
    assert_same(whole.split("val"), val)
    assert_same(whole.split("test"), test)
    assert len(whole.split("train")) == 0


@given(st.lists(HOSTILE, min_size=1, max_size=5), st.integers(0, 2**32))
def test_file_reads_back_exactly(tmp_path_factory: pytest.TempPathFactory, ids: list[str], seed: int) -> None:
    path = tmp_path_factory.mktemp("table") / "predictions.csv"
    draws = np.random.default_rng(seed)
    logits = (draws.standard_normal((len(ids), 3)) * 100).astype(np.float32)
    table = named_table(ids, logits, draws.integers(0, 3, len(ids)).tolist())
    table.write_csv(path)
    read = PredictionTable.read_csv(path)
    assert_same(read, table)
    assert (read.rows == -1).all()
    first = path.read_bytes()
    read.write_csv(path)
    assert path.read_bytes() == first


def test_file_of_no_images_reads_back(tmp_path: Path) -> None:
    table = named_table(["x"], np.zeros((1, 3), dtype=np.float32), [0]).split("val")
    table.write_csv(tmp_path / "p.csv")
    assert_same(PredictionTable.read_csv(tmp_path / "p.csv"), table)


def test_header_and_cells_of_the_file(tmp_path: Path) -> None:
    table = replace(named_table(["=cmd()"], np.zeros((1, 2), dtype=np.float32), [1]), classes=("a", "b"))
    table.write_csv(tmp_path / "p.csv")
    text = (tmp_path / "p.csv").read_bytes().decode()
    assert text == f"id,split,label,predicted,loss,p:a,p:b\r\n=cmd(),test,b,a,{np.log(2)!s},0.5,0.5\r\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"id,label\r\n",
        b"id,split,label,predicted,loss,p:a,p:b\r\nx,test,c,a,1,0.5,0.5\r\n",
        b"id,split,label,predicted,loss,p:a,p:b\r\nx,test,a,a,1,0.5\r\n",
        b"id,split,label,predicted,loss,p:a,p:b\r\nx,test,a,a,1,0.5,half\r\n",
        b"id,split,label,predicted,loss,p:a,p:b\r\nx,test\r\n",
        b"id,split,label,predicted,loss,p:a,p:b\r\nx,test,a,a,1,1e999,0\r\n",
        b"id,split,label,predicted,loss,p:a,p:b\r\nx,test,a,a,1,nan,0.5\r\n",
        b"\xff\xfe",
    ],
)
def test_damaged_file_is_bad_data(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.csv").write_bytes(content)
    with pytest.raises(BadDataError, match=r"p\.csv, line \d+, cannot be read as predictions \([a-z\'x]"):
        PredictionTable.read_csv(tmp_path / "p.csv")


def test_metrics_and_table_need_no_torch() -> None:
    script = "import sys, inat_job.evaluation.metrics; print({'torch', 'matplotlib'} & sys.modules.keys() or 'none')"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "none\n"
