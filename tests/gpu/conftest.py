"""Tests of a machine with a GPU: those marked `gpu` are skipped without one, and all write their figures to one JSON.

`make gpu` runs them. INAT_TEST_GPU_JSON names the file; it is written after each test, so that a run which is cut off
leaves what it has found.
"""

import gc
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from inat_job.bench import synthetic
from tests.gpu.figures import Figures
from tests.harness.job_runs import Make, settings_in
from tests.harness.made_images import tree, write_zip

FIGURES = Figures()
_JSON = os.environ.get("INAT_TEST_GPU_JSON")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Libraries of other versions warn of other things, and Lightning remarks on a trainer without workers."""
    for item in items:
        if _is_ours(item):
            item.add_marker(pytest.mark.filterwarnings("ignore"))


def _is_ours(item: pytest.Item) -> bool:
    return item.path.parent == Path(__file__).parent


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("this machine has no CUDA device")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    report = yield
    if _is_ours(item) and (call.when == "call" or not report.passed):
        message = "" if report.passed else str(call.excinfo.value if call.excinfo else "")
        FIGURES.add_test(item.name, report.outcome, call.duration, message)
        if _JSON:
            FIGURES.write(Path(_JSON))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in FIGURES.lines() if _JSON else ():
        terminalreporter.write_line(line)


@pytest.fixture
def figures() -> Figures:
    """Where a test records what it has measured."""
    return FIGURES


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up images of three classes: 240 for training and validation, 15 for the test."""
    return write_zip(tmp_path_factory.mktemp("data") / "x.zip", tree(train=80, test=5))


@pytest.fixture(scope="session")
def large_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5,200 made-up images for training and validation, small to decode."""
    return synthetic.synthetic(tmp_path_factory.mktemp("large"), 5200, 32)


@pytest.fixture
def settings(archive: Path, tmp_path: Path) -> Make:
    """Makes the settings of small runs on one device; `dotted__names` stand for section.field."""
    return partial(settings_in, tmp_path, archive, train__devices="1")


@pytest.fixture(autouse=True)
def _free_device_and_switches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave no memory on the card and none of torch's global switches to the next test."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, when the first test starts CUDA
    yield
    torch.use_deterministic_algorithms(False)
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("default")
        gc.collect()
        torch.cuda.empty_cache()
