"""Features on disk: read back as written, or not at all."""

from pathlib import Path

import numpy as np
import pytest
import torch

from inat_job.data.features import FeatureFile, Features

ROWS = np.array([5, 2, 9])


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def written(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[FeatureFile, torch.Tensor]:
    values = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)).to(request.param)
    file = FeatureFile(tmp_path, "train-0", ROWS)
    with file.writer() as writer:
        writer.add(values[:2])
        writer.add(values[2:])
    return FeatureFile(tmp_path, "train-0", ROWS), values


def test_features_round_trip(written: tuple[FeatureFile, torch.Tensor]) -> None:
    file, values = written
    assert file.load()
    batch = file.batches(torch.tensor([1, 2, 0]), torch.tensor([7, 1, 0]))(slice(1, 3))
    assert batch.labels.tolist() == [1, 0]
    assert torch.equal(batch.features, values[[2, 0]])
    assert batch.features.dtype == values.dtype
    assert file.nbytes == values.nbytes


@pytest.mark.parametrize("damage", ["flip", "short", "no note", "bad note", "more rows"])
def test_damaged_features_are_not_loaded(
    written: tuple[FeatureFile, torch.Tensor], tmp_path: Path, damage: str
) -> None:
    path, note, rows = tmp_path / "train-0.bin", tmp_path / "train-0.json", ROWS
    if damage == "flip":
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    elif damage == "short":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "no note":
        note.unlink()
    elif damage == "bad note":
        note.write_text('{"shape": [3, "x"], "dtype": "save", "sha256": ""}')
    else:
        rows = np.array([5, 2, 9, 1])
    assert not FeatureFile(tmp_path, "train-0", rows).load()


def test_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    file = FeatureFile(tmp_path, "val", ROWS)

    def interrupted() -> None:
        with file.writer() as writer:
            writer.add(torch.zeros(3, 1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not file.load()
    assert not list(tmp_path.iterdir())


def test_rows_take_their_features_and_labels(tmp_path: Path) -> None:
    labels = np.arange(10) % 3
    features = Features(tmp_path, labels, train=ROWS, val=np.array([0, 1]), views=2)
    for number, file in enumerate([*features.views.values(), features.val]):
        with file.writer() as writer:
            writer.add(100.0 * number + torch.from_numpy(file.rows.astype(np.float32))[:, None])
        assert file.load()
    for epoch in range(4):
        batch = features.train_batches(epoch, np.array([9, 5]))(slice(2))
        assert batch.features[:, 0].tolist() == [100 * (epoch % 2) + 9, 100 * (epoch % 2) + 5]
        assert batch.labels.tolist() == [0, 2]
    assert features.val_batches(np.array([1]))(slice(1)).features.tolist() == [[201.0]]
    assert features.nbytes == sum(file.nbytes for file in (*features.views.values(), features.val)) == 4 * 8
