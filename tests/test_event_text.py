"""What a person reads of each event."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.event_text import HEADING, duration, percent, printable, text_of

INTRODUCTION = {
    "model": "resnet18",
    "parameters": 11_178_564,
    "trainable_parameters": 2052,
    "strategy": "head",
    "images": {"train": 320, "validation": 80, "test": 1000},
    "classes": 4,
    "device": "NVIDIA L4",
    "precision": "bf16",
    "ranks": 2,
    "run": "runs/partb-1",
}
EPOCH = {
    "epoch": 3,
    "epochs": 30,
    "step": 30,
    "train_loss": 1.2345,
    "val_loss": 1.5,
    "val_accuracy": 0.3125,
    "lr": 0.002,
    "images_per_s": 1234.5,
    "best": True,
    "left_s": 61.0,
}
RESULT = {
    "accuracy": 0.75,
    "ci95": [0.5, 0.9],
    "correct": 3,
    "n": 4,
    "val_accuracy": 0.5,
    "recall": {"Ants": (2, 1.0), "Bees": (2, 0.5)},
    "run": "runs/r",
    "next": "python entrypoint.py test --checkpoint runs/r",
}


def test_introduction_in_three_lines() -> None:
    assert text_of("introduction", INTRODUCTION) == (
        "\nModel  resnet18, 11,178,564 parameters, 2,052 trained, strategy head\n"
        "Data   1,400 images of 4 classes: 320 train, 80 validation, 1,000 test\n"
        "Run    NVIDIA L4, bf16, 2 ranks, in runs/partb-1"
    )
    part_a = {**INTRODUCTION, "trainable_parameters": 11_178_564, "strategy": None, "ranks": 1}
    assert "parameters, all trained\n" in str(text_of("introduction", part_a))


def test_texts_of_a_run_without_validation() -> None:
    images = {"train": 400, "validation": 0, "test": 1000}
    assert "1,400 images of 4 classes: 400 train, 1,000 test\n" in str(
        text_of("introduction", {**INTRODUCTION, "images": images})
    )
    lacks = {name: value for name, value in EPOCH.items() if not name.startswith("val_")}
    row = str(text_of("epoch", {**lacks, "best": False})).split()
    assert row == ["3/30", "1.234", "-", "-", "2.00e-03", "1,234", "1:01"]
    retrained = {"seed": 1, "val_accuracy": None, "test_accuracy": 0.5}
    assert text_of("retrained", retrained) == "Seed 1: 50.0 % in the test"


def test_run_with_a_time_limit_says_what_fits() -> None:
    assert text_of("time-limit", {"epochs": 7, "steps": 65, "of": 3000}) == (
        "--max-time leaves time for 65 of 3,000 steps, in 7 epochs: the learning rate falls to zero by then."
    )


def test_resume_names_step_and_epoch() -> None:
    fields = {"step": 180, "epoch": 3, "epochs": 30, "ended": ""}
    assert text_of("resume", fields) == "Resuming from step 180 (epoch 3 of 30)"
    assert text_of("resume", {**fields, "ended": "early stop"}) == "Resuming from step 180: training is complete."


def test_epoch_row() -> None:
    row = str(text_of("epoch", EPOCH))
    assert row.split() == ["3/30", "1.234", "1.500", "31.2", "%", "*", "2.00e-03", "1,234", "1:01"]
    assert len(HEADING) == len(row) <= 80
    worse = {**EPOCH, "best": False, "images_per_s": None, "train_loss": None, "lr": None, "left_s": None}
    assert str(text_of("epoch", worse)).split() == ["3/30", "-", "1.500", "31.2", "%", "-", "-", "-"]


def test_result_summary() -> None:
    assert text_of("result", RESULT) == (
        "\nTest accuracy by class (recall):\n"
        "  Ants  100.0 % of 2\n"
        "  Bees   50.0 % of 2\n"
        "\n"
        "Validation accuracy 50.0 %\n"
        "Report  runs/r/report.html, and report.json beside it\n"
        "Next    python entrypoint.py test --checkpoint runs/r\n"
    )
    tested = str(text_of("result", {**RESULT, "next": None, "val_accuracy": None}))
    assert "Next" not in tested
    assert "Validation" not in tested


def test_result_of_many_classes_lists_the_lowest() -> None:
    recall = {f"class {number:03}": (10, number / 100) for number in range(100)}
    text = str(text_of("result", {**RESULT, "recall": recall}))
    assert "(recall), the 20 lowest of 100:" in text
    assert "class 019" in text
    assert "class 020" not in text


@pytest.mark.parametrize(
    ("event", "fields", "text"),
    [
        ("warning", {"message": "Hot.", "degrees": 90}, "Warning: Hot. (degrees 90)"),
        (
            "stopping",
            {"why": "SIGINT", "phase": "train"},
            "Stopping (SIGINT): storing what is done; a second signal ends at once.",
        ),
        ("done", {"message": "Prepared.", "folder": "x"}, "Prepared."),
        ("tracker", {"mode": "online", "run_id": "r", "url": "https://w/r"}, "Tracked at https://w/r"),
        ("tracker", {"mode": "offline", "run_id": "r", "url": None}, None),
        ("submitted", {"target": "k8s", "job": "j"}, "Submitted to k8s: j"),
        ("state", {"job": "j", "state": "Pending", "why": "no room"}, "j: Pending (no room)"),
        ("phase", {"phase": "train"}, None),
        ("checkpoint", {"step": 1, "seconds": 0.1, "bytes": 10}, None),
        ("something new", {"x": 1.23456}, None),
    ],
)
def test_sentences(event: str, fields: dict[str, object], text: str | None) -> None:
    assert text_of(event, fields) == text


def test_details_are_verbose() -> None:
    assert text_of("something new", {"x": 1.23456, "y": None}, verbose=True) == "something new: x 1.235, y None"
    assert text_of("reuse", {"message": "No features are reused."}, verbose=True) == "No features are reused."
    assert text_of("heartbeat", {"still_s": 1}, verbose=True) is None


def test_numbers_for_people() -> None:
    assert [duration(seconds) for seconds in (0, 5.4, 65, 3725)] == ["0:00", "0:05", "1:05", "1:02:05"]
    assert percent(0.5) == "50.0 %"


@given(st.text())
def test_printable_text_steers_no_terminal(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    shown.encode()
    assert (shown == text) == text.isprintable()
    assert printable(text, "\n").replace("\n", "").isprintable()


def test_printable_keeps_letters_of_every_language() -> None:
    assert printable("Straße 東京 naïve") == "Straße 東京 naïve"
    assert printable("a\x1b[2J\r\nb\u202e\udc80") == r"a\x1b[2J\r\nb\u202e\udc80"
