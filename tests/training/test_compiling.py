"""When the network is compiled, and that a compiler which fails costs no run."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from inat_job.settings import TrainSettings
from inat_job.training.compiling import Load, compile_in_place, decide
from inat_job.training.execution import decide as decide_execution
from inat_job.training.execution import with_compile

SMALL = Load(macs=968_000_000, layers=27, batch_size=64, accumulate=1, steps=0)
LARGE = Load(macs=4_087_000_000, layers=127, batch_size=64, accumulate=1, steps=0)


def unasked() -> Load:
    raise AssertionError("the load was asked for")


@pytest.mark.parametrize(
    ("asked", "compiler", "accelerator", "mode"),
    [
        (False, True, "cuda", None),
        (True, False, "cuda", None),
        (None, False, "cuda", None),
        (None, True, "cpu", None),
        (None, True, "mps", None),
        (True, True, "cpu", "default"),
    ],
)
def test_what_needs_no_look_at_the_network(
    asked: bool | None, compiler: bool, accelerator: str, mode: str | None
) -> None:
    assert decide(asked, compiler, accelerator, unasked).mode == mode


@pytest.mark.parametrize(
    ("load", "steps", "mode"),
    [
        (SMALL, 100, None),
        (SMALL, 1_000_000, "reduce-overhead"),
        (LARGE, 100, None),
        (LARGE, 1_000_000, "default"),
    ],
)
def test_a_gpu_compiles_in_long_runs_alone(load: Load, steps: int, mode: str | None) -> None:
    load = dataclasses.replace(load, steps=steps)
    assert decide(None, True, "cuda", lambda: load).mode == mode
    assert decide(True, True, "cuda", lambda: load).mode is not None


def test_a_run_that_is_short_by_the_clock_does_not_compile() -> None:
    load = dataclasses.replace(LARGE, steps=1_000_000, most_s=120.0)
    assert decide(None, True, "cuda", lambda: load).mode is None


def test_each_set_of_open_stages_costs_its_own_compiling() -> None:
    steps = next(n for n in range(0, 10**6, 100) if _compiles(dataclasses.replace(LARGE, steps=n)))
    assert not _compiles(dataclasses.replace(LARGE, steps=steps, ways=5))
    assert _compiles(dataclasses.replace(LARGE, steps=5 * steps + 5, ways=5))


def _compiles(load: Load) -> bool:
    return decide(None, True, "cuda", lambda: load).mode is not None


def test_gradients_that_are_added_up_keep_out_of_cuda_graphs() -> None:
    load = dataclasses.replace(SMALL, steps=10**6, accumulate=2)
    assert decide(None, True, "cuda", lambda: load).mode == "default"


def test_the_decision_is_logged_with_its_reason_and_stored(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = TrainSettings(accelerator="cpu", compile=True)
    execution = decide_execution(train, None)
    assert with_compile(execution, train, unasked).as_dict()["compile"]
    assert "is compiled (mode default): --compile" in capsys.readouterr().out
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not with_compile(execution, train, unasked).compile
    assert "not compiled: it needs a C compiler" in capsys.readouterr().out


def test_a_compiler_that_fails_leaves_the_network_as_it_is(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("the compiler is broken")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx_inner", fail)
    network = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    names, images = set(network.state_dict()), torch.ones(4, 3)
    expected = network(images)
    compile_in_place(network, "default")
    assert torch.equal(network(images), expected)
    network(images).sum().backward()
    assert set(network.state_dict()) == names
