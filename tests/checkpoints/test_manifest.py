"""Policies on manifests: retention, the best checkpoint, epochs without improvement, and what is a sound manifest."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.checkpoints.manifest import (
    Manifest,
    best_of,
    epochs_since_best,
    parse,
    steps_in,
    steps_to_keep,
    to_json,
)
from tests.checkpoints.unreliable_store import SCORES, manifest, manifests_of

SOUND = manifest(12, 0.25, sha256="0" * 64, size=7)


@given(SCORES)
def test_retention_keeps_the_best_and_the_last_two(scores: list[float | None]) -> None:
    manifests = manifests_of(scores)
    kept = steps_to_keep(manifests)
    assert set(range(len(scores))[-2:]) <= kept
    scored = [score for score in scores if score is not None]
    if scored:
        best = best_of(manifests)
        assert best is not None
        assert best.val_accuracy == max(scored)
        assert best.step == scores.index(max(scored))
        assert best.step in kept
    assert len(kept) <= 3


@given(SCORES)
def test_retention_after_each_checkpoint_never_loses_the_best(scores: list[float | None]) -> None:
    held: list[Manifest] = []
    for each in manifests_of(scores):
        held.append(each)
        keep = steps_to_keep(held)
        held = [one for one in held if one.step in keep]
    assert best_of(held) == best_of(manifests_of(scores))


def test_best_of_equal_accuracies_is_the_lower_loss() -> None:
    losses = {1: 0.9, 2: 0.7, 3: 0.8}
    manifests = [dataclasses.replace(manifest(step, 0.5), val_loss=loss) for step, loss in losses.items()]
    assert best_of(manifests) == manifests[1]


def test_manifest_survives_json() -> None:
    for each in (manifest(3, sha256="0" * 64), SOUND):
        assert parse(to_json(each)) == each


def test_cuts_of_a_manifest() -> None:
    cut = dataclasses.replace(SOUND, cuts=[[6, 60], [12, 41], [24, 50]])
    assert parse(to_json(cut)) == cut
    earlier = json.loads(to_json(SOUND))
    del earlier["cuts"]  # of a version that shortened no run
    assert parse(json.dumps(earlier)) == SOUND
    disordered = [[[7, 6]], [[6, 60], [12, 60]], [[6, 60], [5, 41]], [[6, 60], [61, 70]]]
    for damaged in ([[6]], [6, 7], [[6, "7"]], [[True, 7]], None, *disordered):
        with pytest.raises(ValueError, match="impossible value"):
            parse(json.dumps(earlier | {"cuts": damaged}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from([field.name for field in dataclasses.fields(Manifest)]), JSON)
def test_manifest_with_a_changed_field_is_refused_or_usable(field: str, value: Any) -> None:
    changed = json.loads(to_json(SOUND)) | {field: value}
    try:
        parsed = parse(json.dumps(changed))
    except ValueError:
        return
    assert parse(to_json(parsed)) == parsed
    assert best_of([parsed]) in (parsed, None)
    assert steps_to_keep([parsed]) == {parsed.step}
    assert epochs_since_best(parsed.accuracies) >= 0


@pytest.mark.parametrize("train_s", ["1" + "0" * 400, "1e400", "NaN", "-1", "true"])
def test_manifest_with_an_impossible_number_is_refused(train_s: str) -> None:
    with pytest.raises(ValueError, match="impossible|more than 64 bits"):
        parse(to_json(SOUND).replace('"train_s": 1.0', f'"train_s": {train_s}'))


@given(st.binary(max_size=60))
def test_manifest_of_random_bytes_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (no person reads its text)
        parse(data)


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        ("checkpoints/0.json", True),
        ("checkpoints/12.json", True),
        ("checkpoints/012.json", False),
        ("checkpoints/latest.json", False),
        ("checkpoints/12.json.tmp", False),
        ("checkpoints/mine/12.json", False),
        ("checkpoints/١٢.json", False),
    ],
)
def test_steps_in_ignores_foreign_names(key: str, ours: bool) -> None:
    assert bool(steps_in([key], "json")) is ours


@pytest.mark.parametrize(
    ("accuracies", "epochs"), [([], 0), ([0.5], 0), ([0.5, 0.5], 1), ([0.1, 0.9, 0.2, 0.9, 0.3], 3), ([0.1, 0.2], 0)]
)
def test_epochs_since_best(accuracies: list[float], epochs: int) -> None:
    assert epochs_since_best(accuracies) == epochs
