"""The process of a trial: what it finds imported, and signals for its whole process group."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPT = """
import json, sys
sys.path.insert(0, {root!r})
from inat_job.run.trial_link import Ended
from inat_job.search.trial_process import TrialProcess

def run(task, connection):
    return Ended(0, json.dumps([name in sys.modules for name in ("torch", "inat_job.training.run", "click")]))

if __name__ == "__main__":
    print(json.dumps([json.loads(TrialProcess(run, None, {{}}).receive().sentence) for _ in range(2)]))
"""


@pytest.mark.soak
def test_trials_import_neither_torch_nor_the_program_again(tmp_path: Path) -> None:
    """From any folder: both are there from the process that trials are forked from."""
    (tmp_path / "script.py").write_text(SCRIPT.format(root=str(ROOT)))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[True] * 3] * 2


GROUP = """
import json, os, signal, sys, time
sys.path.insert(0, {root!r})
from inat_job.run.trial_link import Ended
from inat_job.search import trial_process
from inat_job.signals import StopFlag

def run(task, connection):
    stop = StopFlag()
    stop.install()
    connection.send("ready")
    while not stop():
        time.sleep(0.01)
    os._exit(7)  # without a word

if __name__ == "__main__":
    trial_process.PRELOADED = ()
    StopFlag().install()
    trial = trial_process.TrialProcess(run, None, {{}})
    trial.receive()
    os.killpg(0, signal.SIGTERM)
    print(json.dumps(trial.receive()))
"""


def test_exit_code_of_a_trial_is_known_after_a_signal_for_the_process_group(tmp_path: Path) -> None:
    """The process that trials are forked from reports it."""
    (tmp_path / "script.py").write_text(GROUP.format(root=str(ROOT)))
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, start_new_session=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0] == 7
