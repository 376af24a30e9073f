"""Confident learning against its definition, and look-alike images found by their hashes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from inat_job.data.cache_index import PIXELS, Cache
from inat_job.evaluation.dataset_issues import NearDuplicate, hashes, label_issues, near_duplicates, too_weak_for_labels
from tests.evaluation.made_predictions import drawn_table, index_of, table_of


def by_definition(table: Any) -> set[int]:
    """The off-diagonal of the confident joint, image by image (Northcutt et al., 2021, equations 1 and 2)."""
    p, labels, classes = table.probabilities, table.labels, range(len(table.classes))
    thresholds = {j: np.mean([p[at, j] for at in range(len(p)) if labels[at] == j]) for j in classes if j in labels}
    found = set()
    for at in range(len(p)):
        above = [j for j in thresholds if p[at, j] >= thresholds[j]]
        if above and max(above, key=lambda j: p[at, j]) != labels[at] and p[at].argmax() != labels[at]:
            found.add(at)
    return found


@given(st.integers(0, 1000), st.integers(1, 60), st.integers(2, 6))
def test_label_issues_are_the_off_diagonal_of_the_confident_joint(seed: int, n: int, classes: int) -> None:
    table = drawn_table(seed, n, classes)
    issues = label_issues(table)
    assert {issue.at for issue in issues} == by_definition(table)
    assert [issue.margin for issue in issues] == sorted(issue.margin for issue in issues)
    assert all(issue.likely != table.labels[issue.at] and -1 <= issue.margin < 0 for issue in issues)


def half_and_half(right: int, n: int, share: float = 0.5) -> Any:
    """Predictions of n images of two classes, the first of which has this share; the first `right` ones are right."""
    labels = np.array([int(at >= share * n) for at in range(n)])
    order = np.random.default_rng(0).permutation(n)
    predicted = np.where(order < right, labels, 1 - labels)
    return table_of(np.eye(2)[predicted] * 4, labels.tolist())


@pytest.mark.parametrize(
    ("right", "n", "share", "weak"),
    [
        (60, 80, 0.5, False),
        (55, 80, 0.5, True),
        (6, 8, 0.5, True),
        (91, 100, 0.9, True),
        (990, 1000, 0.9, False),
        (40, 80, 0.5, True),
    ],
)
def test_labels_are_doubted_only_by_a_model_that_is_mostly_right(right: int, n: int, share: float, weak: bool) -> None:
    reason = too_weak_for_labels(half_and_half(right, n, share))
    assert bool(reason) == weak
    assert not weak or f"{right} of {n} validation images" in reason


def test_wrong_labels_are_found_first() -> None:
    draws = np.random.default_rng(0)
    true = draws.integers(0, 3, 200)
    logits = draws.standard_normal((200, 3)) * 0.5
    logits[np.arange(200), true] += 4
    given_labels = true.copy()
    given_labels[:10] = (true[:10] + 1) % 3
    issues = label_issues(table_of(logits, given_labels.tolist()))
    assert {issue.at for issue in issues[:10]} == set(range(10))
    assert all(issue.likely == true[issue.at] for issue in issues[:10])


def test_no_images_have_no_label_issues() -> None:
    assert label_issues(drawn_table(0, 5, 3).split("val")) == []


def photo(seed: int, side: int = 64) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """Twelve different images, the copies of two of them with other brightness and noise, and two blank ones."""
    images = [photo(seed) for seed in range(12)]
    noise = np.random.default_rng(1).integers(-4, 5, images[0].shape)
    images += [np.clip(images[2] * 0.8 + noise, 0, 255).astype(np.uint8), images[5]]
    images += [np.full_like(images[0], 200)] * 2
    np.stack(images).tofile(tmp_path / PIXELS)
    index = index_of([str(number) for number in range(len(images))], [0] * len(images), ["a", "b"])
    return Cache(tmp_path, index.__class__(**{**index.__dict__, "side": 64}))


def test_near_duplicates_are_the_copies(cache: Cache) -> None:
    splits = {"test": np.array([12, 13, 14, 0]), "val": np.array([1, 15]), "train": np.arange(2, 12)}
    found = near_duplicates(cache, splits)
    assert [(pair.row, pair.other) for pair in found] == [(13, 5), (12, 2)]
    assert found[0] == NearDuplicate(13, 5, 0)
    assert 0 < found[1].bits <= 20
    assert near_duplicates(cache, {"train": np.arange(16)}) == [], "one split has no pair"


def test_hashes_of_different_images_differ_in_about_half_their_bits(cache: Cache) -> None:
    bits, contrast = hashes(cache)
    assert bits.shape == (16, 4)
    distances = [int(np.bitwise_count(bits[a] ^ bits[b]).sum()) for a in range(12) for b in range(a)]
    assert min(distances) > 60
    assert contrast[14] == 0
    assert contrast[:12].min() > 4


def test_many_images_are_compared_in_parts(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {"test": np.array([12, 13, 0]), "train": np.arange(1, 12)}
    whole, of = near_duplicates(cache, splits), hashes(cache)
    monkeypatch.setattr("inat_job.evaluation.dataset_issues._AT_A_TIME", 2)
    assert near_duplicates(cache, splits) == whole
    assert all(np.array_equal(a, b) for a, b in zip(hashes(cache), of, strict=True))
