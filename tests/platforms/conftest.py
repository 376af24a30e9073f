"""`submit` in the test's own process, a kubectl whose cluster is a folder, and keys for a mocked AWS."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from inat_job.commands import submit as submit_command
from tests.harness.in_process import Ended, in_process

FAKE_KUBECTL = Path(__file__).parents[1] / "harness/fake_kubectl.py"


@pytest.fixture
def submit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Ended]]:
    """Runs `submit` with the given arguments."""
    with in_process(monkeypatch, capsys, "submit") as run:
        yield run


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that stands for a cluster, with its kubectl on PATH."""
    folder, programs = tmp_path / "cluster", tmp_path / "programs"
    folder.mkdir()
    programs.mkdir()
    kubectl = programs / "kubectl"
    kubectl.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE_KUBECTL} "$@"\n')
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("KUBECTL_FAKE", str(folder))
    monkeypatch.setattr(submit_command, "EVERY_S", 0.01)
    return folder


@pytest.fixture
def aws_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that moto accepts, and AWS's own endpoints."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
