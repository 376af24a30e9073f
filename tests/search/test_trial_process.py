"""The process of a trial: what it finds imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

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


def test_trials_import_neither_torch_nor_the_program_again(tmp_path: Path) -> None:
    """From any folder: both are there from the process that trials are forked from."""
    (tmp_path / "script.py").write_text(SCRIPT.format(root=str(ROOT)))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[True] * 3] * 2
