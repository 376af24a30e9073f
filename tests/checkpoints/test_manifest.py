"""The pure policies of training: retention, the rate, and what a resume keeps of its arithmetic."""

import dataclasses
import json
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from inat_job.checkpoints import manifest as manifests_module
from inat_job.checkpoints.manifest import Manifest, best_of, stale, steps, to_keep
from inat_job.checkpoints.uploader import next_step, superfluous
from inat_job.errors import ConflictError
from inat_job.host import nvidia
from inat_job.host.nvidia import Driver
from inat_job.models.classifier import rate
from inat_job.settings import TrainSettings
from inat_job.training.execution import decide

SCORES = st.lists(st.one_of(st.none(), st.integers(0, 5).map(lambda tenth: tenth / 10)), max_size=12)


def manifest(step: int, accuracy: float | None = None, loss: float | None = None) -> Manifest:
    return Manifest(step, 1, accuracy, loss, [], False, "", "d", "s", 1.5, None, sha256="0" * 64, size=7)


def manifests(scores: list[float | None]) -> list[Manifest]:
    return [manifest(step, score, None if score is None else 1.0) for step, score in enumerate(scores)]


@given(SCORES)
def test_the_best_and_the_last_two_are_kept(scores: list[float | None]) -> None:
    made = manifests(scores)
    kept = to_keep(made)
    assert set(range(len(scores))[-2:]) <= kept
    scored = [score for score in scores if score is not None]
    if scored:
        best = best_of(made)
        assert best is not None
        assert best.val_accuracy == max(scored)
        assert best.step == scores.index(max(scored))
        assert best.step in kept
    assert len(kept) <= 3


@given(SCORES)
def test_keeping_after_each_checkpoint_never_loses_the_best(scores: list[float | None]) -> None:
    held: list[Manifest] = []
    for manifest in manifests(scores):
        held.append(manifest)
        keep = to_keep(held)
        held = [each for each in held if each.step in keep]
    assert best_of(held) == best_of(manifests(scores))


def test_of_equal_accuracies_the_lower_loss_is_better() -> None:
    made = [manifest(step, 0.5, loss) for step, loss in ((1, 0.9), (2, 0.7), (3, 0.8))]
    assert best_of(made) == made[1]


def test_a_manifest_is_read_as_it_was_written() -> None:
    for made in (manifest(3), manifest(12, 0.25, 1.5)):
        assert manifests_module.parse(manifests_module.text(made)) == made


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from([field.name for field in dataclasses.fields(Manifest)]), JSON)
def test_a_manifest_with_a_foreign_value_is_refused_or_true(field: str, value: Any) -> None:
    changed = json.loads(manifests_module.text(manifest(12, 0.25, 1.5))) | {field: value}
    try:
        parsed = manifests_module.parse(json.dumps(changed))
    except ValueError:
        return
    assert manifests_module.parse(manifests_module.text(parsed)) == parsed
    assert best_of([parsed]) in (parsed, None)
    assert to_keep([parsed]) == {parsed.step}
    assert stale(parsed.accuracies) >= 0


@given(st.binary(max_size=60))
def test_a_manifest_of_any_bytes_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (its text is for nobody)
        manifests_module.parse(data)


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
def test_only_our_own_names_are_manifests(key: str, ours: bool) -> None:
    assert bool(steps([key], "json")) is ours


@pytest.mark.parametrize(
    ("accuracies", "epochs"), [([], 0), ([0.5], 0), ([0.5, 0.5], 1), ([0.1, 0.9, 0.2, 0.9, 0.3], 3), ([0.1, 0.2], 0)]
)
def test_epochs_without_a_better_accuracy(accuracies: list[float], epochs: int) -> None:
    assert stale(accuracies) == epochs


@given(st.integers(1, 500), st.floats(0, 0.9))
@example(2, 0.75)
def test_the_rate_rises_to_one_and_falls_to_nothing(total: int, warmup: float) -> None:
    rates = [rate(step, total, warmup) for step in range(total + 1)]
    peak = rates.index(max(rates))
    assert max(rates) <= 1
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-9) or total <= 1


def test_a_resume_keeps_the_first_decisions(capsys: pytest.CaptureFixture[str]) -> None:
    first = decide(TrainSettings(precision="fp32", accelerator="cpu"), None)
    stored: dict[str, Any] = dataclasses.asdict(first) | {"threads": 7}
    kept = decide(TrainSettings(precision="auto", accelerator="cpu"), stored)
    assert (kept.precision, kept.threads) == ("fp32", 7)
    assert "not bit-equal" not in capsys.readouterr().out
    decide(TrainSettings(accelerator="cpu"), stored | {"torch": "1.0"})
    assert "not bit-equal" in capsys.readouterr().out


def test_an_accelerator_that_is_not_here_is_a_conflict() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConflictError, match="--accelerator is cuda"):
        decide(TrainSettings(accelerator="cuda"), None)


@pytest.mark.parametrize("accelerator", ["auto", "cuda"])
def test_a_gpu_that_torch_cannot_use_is_no_reason_to_train_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, accelerator: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(nvidia, "here", lambda: Driver("550.54.15", "12.4", given=True))
    with pytest.raises(ConflictError, match=rf"550\.54\.15.*CUDA {torch.version.cuda}.*driver \d+ or newer"):
        decide(TrainSettings(accelerator=accelerator), None)
    assert decide(TrainSettings(accelerator="cpu"), None).accelerator == "cpu"


def test_how_fp32_is_multiplied_and_convolved_is_explicit() -> None:
    for deterministic in (True, False):
        execution = decide(TrainSettings(accelerator="cpu", deterministic=deterministic), None)
        execution.apply()
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "tf32"
        assert torch.backends.cudnn.benchmark is execution.cudnn_benchmark is not deterministic
        assert torch.get_num_threads() == execution.threads


@given(SCORES, st.sets(st.integers(0, 11), min_size=1))
def test_the_best_is_stored_before_all_newer_ones(scores: list[float | None], waiting: set[int]) -> None:
    known = manifests(scores)
    best = best_of(known)
    step = next_step(waiting, known)
    assert step in waiting
    assert step == max(waiting) if best is None or best.step not in waiting else step == best.step
    assert not superfluous(waiting, known) & to_keep(known)
