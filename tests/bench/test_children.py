"""Child processes of the bench: their command lines, their end, and their memory."""

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import entrypoint
from inat_job.bench import children
from inat_job.configuration import configure
from inat_job.recipes import RECIPES
from tests.harness.made_images import tree, write_zip


@pytest.mark.parametrize("part", RECIPES)
def test_command_line_of_a_job_means_the_same_settings(part: str) -> None:
    per_part = {"a": {"model.filters": "1,2,3,4,5"}, "b": {"model.strategy": "last-k", "model.last_k": "3"}}
    flags = {"train.lr": "0.001", "train.augment": "no", "run.run_id": "x", "train.max_time": "1h", **per_part[part]}
    settings = configure(part, flags, [], None).settings
    _, _, *words = children.job(settings)
    printed = CliRunner().invoke(entrypoint.cli, [*words, "--print-config"])
    assert printed.exit_code == 0, printed.output
    lines = {line.partition("  #")[0] for line in configure(part, flags, [], None).text().splitlines()}
    assert {line.partition("  #")[0] for line in printed.output.splitlines()} == lines
    flags_read = json.loads(json.dumps(settings.by_key()))  # as a child process gets them
    assert configure(part, flags_read, [], None).settings == settings


def test_run_ends_with_the_process_or_at_a_line() -> None:
    script = (
        "import time; print('one', flush=True); x = bytearray(50_000_000); time.sleep(0.3); print('two', flush=True)"
    )
    ended = children.run([sys.executable, "-c", script])
    assert [line for _, line in ended.lines] == ["one", "two"]
    assert 50e6 < ended.peak_bytes < 200e6
    assert ended.second_of("one") < ended.second_of("two") < ended.seconds
    assert [line for _, line in children.run([sys.executable, "-c", script], until="one").lines] == ["one"]


def test_failed_process_raises_child_error() -> None:
    with pytest.raises(children.ChildError, match="code 3"):
        children.run([sys.executable, "-c", "raise SystemExit(3)"], until="never")
    with (
        pytest.raises(children.ChildError, match="code 3"),
        children.line_server([sys.executable, "-c", "raise SystemExit(3)"]) as child,
    ):
        child.receive()


@pytest.mark.soak
def test_module_runs_in_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zip(tmp_path / "x.zip", tree(train=3, test=2))
    monkeypatch.chdir(tmp_path)
    with children.line_server(children.module("bare_decode", "x.zip", "16", "0", "2", "ours")) as child:
        assert child.receive() == "ready"
        child.send()
        assert child.receive() == "8"  # every other one of 15, from the first


def test_ended_process_has_no_memory(tmp_path: Path) -> None:
    assert children.anonymous_bytes(tmp_path / "status") == 0
