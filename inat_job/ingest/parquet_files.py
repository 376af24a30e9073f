"""Parquet, read with pyarrow, an optional package: tables of labels, and data sets of images as the Hugging Face Hub
has them (columns image and label; https://huggingface.co/docs/datasets/image_dataset).
"""

import io
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, Any

from inat_job.data import layout
from inat_job.data.layout_errors import is_called_image
from inat_job.errors import BadDataError, UsageError
from inat_job.ingest.container import Load, check_size, composed, refuse
from inat_job.ingest.decode import Rejected
from inat_job.storage import Entry, Store
from inat_job.storage.partial_download import SeekableFile

SUFFIX = ".parquet"
_BATCH = 64
"""Rows that are read at a time: their files are in memory until they are decoded."""

_SPLIT = re.compile(r"[A-Za-z]+")


def read_table(file: IO[bytes], shown: str) -> Iterator[list[Any]]:
    """The rows of a table, the names of its columns first. Raises UsageError without pyarrow, BadDataError."""
    with _parquet_errors(shown):
        opened = _pyarrow(shown).ParquetFile(file)
        yield list(opened.schema_arrow.names)
        for batch in opened.iter_batches():
            yield from map(list, zip(*(column.to_pylist() for column in batch.columns), strict=True))


def is_missing(value: object) -> bool:
    """Whether a cell is empty: null, or the NaN that pandas writes."""
    return value is None or value != value


class ParquetImages:
    """The images in Parquet files of a store, by names as in a tree of folders: split/class/file.

    The split is that of the file's name, such as data/train-00000-of-00004.parquet, or of its folder. Raises UsageError
    without pyarrow, and BadDataError for a file that has no images with classes.
    """

    def __init__(self, store: Store, entries: Sequence[Entry]) -> None:
        self._store, self._entries = store, entries
        self._rows: dict[str, tuple[int, int]] = {}
        self._skipped: dict[str, str] = {}
        for number, entry in enumerate(entries):
            with _parquet_errors(self._shown(entry)):
                self._add(number, entry)

    def names(self) -> list[str]:
        return [*self._rows]

    def skipped(self, used: Collection[str] = ()) -> Mapping[str, str]:
        return self._skipped

    def load(self, names: Collection[str]) -> Iterator[tuple[str, Load]]:
        wanted = {self._rows[name]: name for name in names}
        for number, entry in enumerate(self._entries):
            if not any(file == number for file, _ in wanted):
                continue
            with _parquet_errors(self._shown(entry)):
                column = _image_column(self._open(entry).schema_arrow)
                row = 0
                for batch in self._open(entry).iter_batches(_BATCH, columns=[f"{column}.bytes"]):
                    for value in batch.column(0).to_pylist():
                        if (number, row) in wanted:
                            yield wanted[number, row], _load_of((value or {}).get("bytes"))
                        row += 1

    def _add(self, number: int, entry: Entry) -> None:
        """Add the names of a file's images; a file name that comes twice in a class gets the number of its row."""
        opened = self._open(entry)
        schema = opened.schema_arrow
        column, label = _image_column(schema), _label_column(schema)
        if column is None or label is None:
            raise BadDataError(
                f"{self._shown(entry)} has the columns {', '.join(schema.names)[:80]}: it needs image, with bytes, "
                "and label."
            )
        table = opened.read(columns=[f"{column}.path", label])
        classes = _class_names(schema, label)
        labels = _labels(table.column(label).to_pylist(), classes, self._shown(entry))
        if not any(labels):  # as the Hub marks an unlabelled test set
            self._skipped[entry.key] = "no row has a label"
            return
        paths = [(value or {}).get("path") or "" for value in table.column(column).to_pylist()]
        files = [PurePosixPath(path.replace("\\", "/")).name for path in paths]
        often = Counter(zip(labels, files, strict=True))
        folder = _split_folder(entry.key)
        for row, (name, file) in enumerate(zip(labels, files, strict=True)):
            if not name:
                self._skipped[f"{entry.key}, row {row + 1}"] = "no label"
                continue
            path = f"{folder}{name}/{file}"
            if not file or often[name, file] > 1 or path in self._rows:
                path = f"{folder}{name}/{number:05d}-{row:08d}{PurePosixPath(file).suffix or '.jpg'}"
            self._rows[path if is_called_image(path) else f"{path}.jpg"] = (number, row)

    def _open(self, entry: Entry) -> Any:
        shown = self._shown(entry)
        return _pyarrow(shown).ParquetFile(io.BufferedReader(_RangeFile(self._store, entry, shown), 2**20))

    def _shown(self, entry: Entry) -> str:
        return f"{self._store.uri}/{entry.key.partition('?')[0]}"


class _RangeFile(SeekableFile):
    """An object of a store as a file."""

    def __init__(self, store: Store, entry: Entry, shown: str) -> None:
        super().__init__(entry.size)
        self._store, self._entry, self._shown = store, entry, shown

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        data = self._store.read_range(self._entry, self._at, end)
        if data is None:
            raise BadDataError(f"The server of {self._shown} sends no parts of it: download it first.")
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


@contextmanager
def _parquet_errors(shown: str) -> Iterator[None]:
    """Translate pyarrow's errors into BadDataError."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.split(".")[0] != "pyarrow":
            raise
        reason = " ".join(str(error).split())[:120]
        raise BadDataError(f"{shown} is no intact Parquet file ({reason}): make it again.") from None


def _pyarrow(shown: str) -> Any:
    try:
        import pyarrow.parquet  # optional, and slow to import
    except ModuleNotFoundError:
        raise UsageError(
            f"{shown} is Parquet, which needs pyarrow: pip install pyarrow, build the image with --build-arg "
            "EXTRAS=parquet, or use files."
        ) from None
    return pyarrow.parquet


def _image_column(schema: Any) -> str | None:
    """The column that holds images: a struct with bytes and path."""
    kinds = {name: schema.field(name).type for name in schema.names}
    found = [
        name for name, kind in kinds.items() if kind.num_fields and {"bytes", "path"} <= {each.name for each in kind}
    ]
    return "image" if "image" in found else next(iter(found), None)


def _label_column(schema: Any) -> str | None:
    named = [name for name in ("label", "labels", "fine_label", "class") if name in schema.names]
    return next(iter(named), None)


def _class_names(schema: Any, label: str) -> list[str]:
    """The class names that the numbers in the column stand for, from the Hub's metadata; empty if unknown."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[label]["names"]]
    except (LookupError, TypeError, ValueError):
        return []


def _labels(values: Sequence[Any], classes: Sequence[str], shown: str) -> list[str]:
    """The class of each row, empty where there is none: null, NaN, or the Hub's -1.

    Raises BadDataError for a number that stands for none of `classes`, if there are any.
    """
    labels = []
    for row, value in enumerate(values, 1):
        if is_missing(value) or value == -1:
            labels.append("")
        elif not classes or isinstance(value, str):
            labels.append(composed(str(value).strip()).replace("/", "-"))
        elif value in range(len(classes)):
            labels.append(composed(classes[int(value)]).replace("/", "-"))
        else:
            raise BadDataError(
                f"Row {row} of {shown} has the label {value}, and the file names {len(classes)} classes, from 0 to "
                f"{len(classes) - 1}: fix it."
            )
    return labels


def _split_folder(key: str) -> str:
    """The folder of the split that a file holds, empty if its name tells none."""
    path = PurePosixPath(key.partition("?")[0])
    for name in (path.name, path.parent.name):
        first = _SPLIT.match(name)
        if first and (split := layout.split_called(first[0])):
            return f"{split}/"
    return ""


def _load_of(data: bytes | None) -> Load:
    if not data:
        return lambda: refuse(Rejected("no bytes in its row"))

    def load() -> bytes:
        check_size(len(data))
        return data

    return load
