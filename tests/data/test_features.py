"""Features are read back as they were written, or are not there."""

from pathlib import Path

import numpy as np
import pytest
import torch

from inat_job.data.features import FeatureFile, Features

ROWS = np.array([5, 2, 9])


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def written(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[FeatureFile, torch.Tensor]:
    values = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)).to(request.param)
    part = FeatureFile(tmp_path, "train-0", ROWS)
    with part.writer() as writer:
        writer.add(values[:2])
        writer.add(values[2:])
    return FeatureFile(tmp_path, "train-0", ROWS), values


def test_a_part_is_what_was_written(written: tuple[FeatureFile, torch.Tensor]) -> None:
    part, values = written
    assert part.load()
    batch = part.take(torch.tensor([2, 0]), torch.tensor([1, 0]))
    assert torch.equal(batch.features, values[[2, 0]])
    assert batch.features.dtype == values.dtype
    assert part.nbytes == values.nbytes


@pytest.mark.parametrize("damage", ["flip", "short", "no note", "bad note", "more rows"])
def test_a_part_that_is_not_whole_is_not_there(
    written: tuple[FeatureFile, torch.Tensor], tmp_path: Path, damage: str
) -> None:
    file, note, rows = tmp_path / "train-0.bin", tmp_path / "train-0.json", ROWS
    if damage == "flip":
        file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    elif damage == "short":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "no note":
        note.unlink()
    elif damage == "bad note":
        note.write_text('{"shape": [3, "x"], "dtype": "save", "sha256": ""}')
    else:
        rows = np.array([5, 2, 9, 1])
    assert not FeatureFile(tmp_path, "train-0", rows).load()


def test_who_is_broken_off_leaves_no_part(tmp_path: Path) -> None:
    part = FeatureFile(tmp_path, "val", ROWS)

    def broken_off() -> None:
        with part.writer() as writer:
            writer.add(torch.zeros(3, 1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert not part.load()
    assert not list(tmp_path.iterdir())


def test_rows_find_their_features_and_labels(tmp_path: Path) -> None:
    labels = np.arange(10) % 3
    features = Features(tmp_path, labels, train=ROWS, val=np.array([0, 1]), views=2)
    for number, part in enumerate([*features.views.values(), features.val]):
        with part.writer() as writer:
            writer.add(100.0 * number + torch.from_numpy(part.rows.astype(np.float32))[:, None])
        assert part.load()
    for epoch in range(4):
        batch = features.take_train(np.array([9, 5]), epoch)
        assert batch.features[:, 0].tolist() == [100 * (epoch % 2) + 9, 100 * (epoch % 2) + 5]
        assert batch.labels.tolist() == [0, 2]
    assert features.take_val(np.array([1])).features.tolist() == [[201.0]]
