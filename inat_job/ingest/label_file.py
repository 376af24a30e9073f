"""Reads the file of `--labels`: CSV, TSV or Parquet with a path, a class and maybe a split for each image."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from inat_job.data import layout
from inat_job.data.label_table import LabelRow, LabelTable, checked_rows
from inat_job.errors import BadDataError, UsageError
from inat_job.ingest import parquet_files
from inat_job.ingest.container import composed, plain_name
from inat_job.options import public_uri
from inat_job.signals import Stop
from inat_job.storage import StorageOptions, open_store, split_uri
from inat_job.storage.interruptible import interruptible
from inat_job.storage.local import missing_object

_COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "image_id", "id", "name"),
    "label": ("label", "class", "class_name", "category", "target", "species", "breed", "labels"),
    "split": ("split", "subset", "set", "partition"),
}
"""What the columns may be called, in any case of letters."""

_Placed = tuple[str, Sequence[object]]
"""A row and its place in the file, such as `Line 2`."""

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")


def read(uri: str, options: StorageOptions, stop: Stop) -> LabelTable:
    """The table at a path or address. Raises UsageError for another kind of file, BadDataError, Preempted, and what
    the store raises.
    """
    shown, name = f"--labels {public_uri(uri)}", public_uri(uri).lower()
    if not name.endswith(SUFFIXES):
        raise UsageError(f"{shown} is not called {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}: convert it to one.")
    parent, key = split_uri(uri)
    store = interruptible(open_store(parent, options), stop)
    if store.stat(key) is None:
        raise missing_object(store, key, shown, "--labels")
    data = store.read(key)
    rows = _read_parquet(data, shown) if name.endswith(".parquet") else _read_text(data, shown)
    return checked_rows(_rows(rows, shown), shown)


def _read_parquet(data: bytes, shown: str) -> Iterator[_Placed]:
    rows = parquet_files.read_table(io.BytesIO(data), shown)
    return ((f"Row {number}", row) for number, row in enumerate(rows))  # row 0 has the names of the columns


def _read_text(data: bytes, shown: str) -> Iterator[_Placed]:
    """The rows that are not empty, each with the line that it begins on."""
    try:
        text = data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError:
        raise BadDataError(f"{shown} is not text in UTF-8: save it as that.") from None
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader, line = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True), 1
    try:
        for row in reader:
            if any(row):
                yield f"Line {line}", row
            line = reader.line_num + 1
    except csv.Error as error:
        raise BadDataError(f"{shown} is not a table of values ({error}): check its quotes.") from None


def _rows(rows: Iterable[_Placed], shown: str) -> Iterator[tuple[str, LabelRow]]:
    table = iter(rows)
    _, names = next(table, ("", ()))
    header = [str(cell) for cell in names]
    at = {what: _column(header, names) for what, names in _COLUMNS.items()}
    path_at, label_at, split_at = at["path"], at["label"], at["split"]
    if path_at is None or label_at is None:
        raise BadDataError(
            f"{shown} begins with {', '.join(header)[:80] or 'nothing'}: its first row must name the columns path and "
            "label, and split if it has one."
        )
    for place, row in table:
        if len(row) != len(header):
            raise BadDataError(f"{place} of {shown} has {len(row)} values, and the first {len(header)}: fix it.")
        cells = ["" if parquet_files.is_missing(cell) else str(cell).strip() for cell in row]
        split = "" if split_at is None else _split(cells[split_at], place, shown)
        yield place, LabelRow(plain_name(cells[path_at], Path(shown)), composed(cells[label_at]), split)


def _column(header: Sequence[str], names: Sequence[str]) -> int | None:
    """The column with the first of these names that there is."""
    called = [cell.strip().lower() for cell in header]
    return next((called.index(name) for name in names if name in called), None)


def _split(value: str, place: str, shown: str) -> str:
    split = layout.split_called(value)
    if split is None:
        raise BadDataError(f"{place} of {shown} has the split {value!r}: use train, val or test.")
    return split
