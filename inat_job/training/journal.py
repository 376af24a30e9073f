"""metrics.jsonl, one object per logged step: it survives a resume, forgetting what the lost steps had written."""

import json
from typing import Any

from inat_job.storage.run_folder import RunFolder

NAME = "metrics.jsonl"


class Journal:
    """The rows of a run's metrics, in the file and in memory."""

    def __init__(self, folder: RunFolder, resumed_step: int) -> None:
        self._path = folder.path(NAME)
        stored = folder.fetch(NAME) if resumed_step else None
        text = stored.read_text(encoding="utf-8") if stored else ""
        self.rows = [row for row in map(_parse, text.splitlines()) if row and row["step"] <= resumed_step]
        folder.write(NAME, "".join(json.dumps(row) + "\n" for row in self.rows))

    def add(self, step: int, values: dict[str, Any]) -> None:
        """Append one row."""
        row = {"step": step, **values}
        self.rows.append(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:  # cut short by a kill
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
