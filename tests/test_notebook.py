"""docs/notebook.ipynb and the interrupt of a cell, in a real Jupyter kernel."""

import json
import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.soak, pytest.mark.filterwarnings("ignore")]

INTERRUPTED = """
import os, signal, threading, time
from pathlib import Path
import inat_job
from inat_job.errors import Preempted

def press():
    while not Path("runs/r/checkpoints/latest.json").exists():
        time.sleep(0.02)
    os.killpg(os.getpgid(0), signal.SIGINT)  # as Jupyter does

threading.Thread(target=press).start()
def train():
    return inat_job.train(data="demo:", image_size=32, filters=4, epochs=60, run_id="r", wandb="off")
try:
    train()
except Preempted as error:
    print(error)
"""


@pytest.fixture
def executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Executes the cells of a notebook in an empty folder, and gives it with their outputs."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))

    def execute(notebook: Any) -> Any:
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
        return notebook

    return execute


def printed(cell: Any) -> str:
    """The text that a cell printed; nothing of it is an error."""
    assert "".join(each["text"] for each in cell["outputs"] if each.get("name") == "stderr") == ""
    return "".join(each.get("text", "") for each in cell["outputs"])


def test_notebook_of_the_docs(executed: Any, tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    nbformat.validate(notebook)
    notebook.cells = [cell for cell in notebook.cells if "hosted" not in cell.metadata.get("tags", ())]
    cells = {cell.id: cell for cell in executed(notebook).cells}
    [path] = tmp_path.glob("runs/*/report.json")
    report = json.loads(path.read_text())
    shown = printed(cells["train"])
    assert "train loss" in shown
    assert "\x1b" not in shown
    assert f"{report['test']['accuracy']:.4f}" in shown.splitlines()[-1]
    assert printed(cells["report"]).startswith(f"{report['test']['correct']} of {report['test']['n']} test images")
    assert printed(cells["predict"]).strip() in report["data"]["classes"]
    widgets = notebook.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"].values()
    bars = [each["state"] for each in widgets if each["model_name"] == "FloatProgressModel"]
    texts = [each["state"]["value"] for each in widgets if each["model_name"] == "HTMLModel"]
    assert [bar["bar_style"] for bar in bars] == ["success", "", "success", "success"]
    assert all(bar["value"] == bar["max"] for bar in bars)
    assert [text.split("\u2007")[0] for text in texts if "100%" in text] == [
        *("prepare", "pictures", "final-validation", "test"),  # pictures in the bar of the epochs before it
    ]


def test_interrupted_cell_stores_and_resumes(executed: Any) -> None:
    cells = [new_code_cell(INTERRUPTED), new_code_cell("report = train()"), new_code_cell("print(report['history'])")]
    first, second, history = executed(new_notebook(cells=cells)).cells
    assert "Stopping (SIGINT)" in printed(first)
    assert "Stopped: step" in printed(first)
    assert "Resuming from step" in printed(second)
    assert "preempted" in printed(history)
