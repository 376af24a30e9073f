"""metrics.jsonl, one object per logged step: it survives a resume, forgetting what the lost steps had written."""

import json
from pathlib import Path
from typing import Any

from inat_job.storage.disk import disk_errors
from inat_job.storage.run_folder import RunFolder
from inat_job.training.manifest import Manifest

NAME = "metrics.jsonl"


class Journal:
    """The rows of a run's metrics, in the file and in memory."""

    def __init__(self, folder: RunFolder, resumed: Manifest | None) -> None:
        self._path = folder.path(NAME)
        # The checkpoint may be one that never reached the store, and then so may its rows.
        here = _rows(self._path, resumed)
        self.rows = max(here, _rows(folder.fetch(NAME), resumed), key=len) if resumed else []
        folder.write(NAME, "".join(json.dumps(row) + "\n" for row in self.rows))

    def add(self, step: int, values: dict[str, Any]) -> None:
        """Append one row."""
        row = {"step": step, **values}
        self.rows.append(row)
        with disk_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _rows(path: Path | None, resumed: Manifest | None) -> list[dict[str, Any]]:
    if path is None or resumed is None or not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [row for row in map(_parse, lines) if row and _is_before(row, resumed)]


def _is_before(row: dict[str, Any], resumed: Manifest) -> bool:
    """Whether a row was written before the checkpoint that a run goes on from; its validation may be still to come."""
    if row["step"] == resumed.step and resumed.validate:
        return "val_loss" not in row
    return bool(row["step"] <= resumed.step)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:  # cut short by a kill
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
