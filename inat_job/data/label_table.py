"""A table of labels: the class of each image by its path, and its split where the table has splits."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

from inat_job.data.layout_errors import is_called_image, some
from inat_job.errors import BadDataError


class LabelRow(NamedTuple):
    """One image of the table: its path as the table has it, its class, and its split, empty if the table has none."""

    path: str
    label: str
    split: str


class LabelledImage(NamedTuple):
    """An image that the table lists: its name in the data set, its file in its class, its class and its split."""

    name: str
    file: str
    label: str
    split: str


@dataclass(frozen=True)
class LabelTable:
    """The rows of a file of labels, which messages call `shown`."""

    shown: str
    rows: tuple[LabelRow, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the rows, independent of their order and of the file's format."""
        return hashlib.sha256(json.dumps(sorted(self.rows)).encode()).hexdigest()

    def located(self, names: Sequence[str], source: str) -> list[LabelledImage]:
        """The listed images among the names of a data set. Raises BadDataError if one is not there.

        The paths may leave out the folder that they are all in, and the suffixes of images.
        """
        known, rows = set(names), self.rows
        images = [name for name in names if is_called_image(name)]
        without = {name.rpartition(".")[0]: name for name in images}
        ambiguous = {path for path, count in Counter(name.rpartition(".")[0] for name in images).items() if count > 1}
        root = self._root({*known, *without}, source)
        found = [root + row.path if root + row.path in known else without.get(root + row.path) for row in rows]
        if several := [row.path for row in rows if root + row.path in ambiguous - known]:
            raise BadDataError(
                f"{self.shown} lists {several[0]!r}, and {source} has several images of that name: add the suffix."
            )
        if missing := [row.path for row, name in zip(rows, found, strict=True) if name is None]:
            raise BadDataError(
                f"{len(missing)} of the {len(rows)} images in {self.shown} are not in {source}, first {missing[0]!r}, "
                f"while that holds {some(sorted(names)[:1]) or 'nothing'}: the paths must be those within --data."
            )
        named = [str(name) for name in found]
        for name, count in Counter(named).items():
            if count > 1:
                raise BadDataError(f"{self.shown} lists {name} twice, under different paths: keep one.")
        files = [_below(name[len(root) :], row.label) for name, row in zip(named, rows, strict=True)]
        if len({(row.label, file) for row, file in zip(rows, files, strict=True)}) < len(rows):
            files = [name[len(root) :] for name in named]
        return [
            LabelledImage(name, file, row.label, row.split) for name, file, row in zip(named, files, rows, strict=True)
        ]

    def _root(self, spellings: Set[str], source: str) -> str:
        """The folder in the data set that the paths are relative to, empty or ending in `/`.

        It holds all of them, if one does. Raises BadDataError if several do.
        """
        first = self.rows[0].path
        roots = sorted(name[: -len(first)] for name in spellings if name == first or name.endswith(f"/{first}"))
        whole = [root for root in roots if all(root + row.path in spellings for row in self.rows)]
        if len(whole) > 1:
            raise BadDataError(
                f"The images in {self.shown} are in more than one folder of {source}, "
                f"{some(root or 'the top' for root in whole)}: write the folder in the paths."
            )
        return next(iter(whole or roots), "")


def checked_rows(rows: Iterable[tuple[str, LabelRow]], shown: str) -> LabelTable:
    """The table of these rows, each with its place in the file, such as `Line 2`.

    Raises BadDataError for none, an empty cell, or a path with two classes or splits.
    """
    kept: dict[str, LabelRow] = {}
    has_splits: defaultdict[bool, int] = defaultdict(int)
    for place, row in rows:
        if not row.path or not row.label:
            raise BadDataError(f"{place} of {shown} has an empty {'label' if row.path else 'path'}: fill it in.")
        has_splits[bool(row.split)] += 1
        if kept.setdefault(row.path, row) != row:
            raise BadDataError(f"{shown} lists {row.path} twice, as {kept[row.path][1:]} and {row[1:]}: keep one.")
    if len(has_splits) != 1:
        what = "some rows without a split" if has_splits else "no rows"
        raise BadDataError(f"{shown} has {what}: complete it.")
    return LabelTable(shown, tuple(kept.values()))


def _below(path: str, label: str) -> str:
    """A path from within the folder of its class, if there is one in it, as ids have it in a tree of folders."""
    folders, file = path.split("/")[:-1], path
    if label in folders:
        file = "/".join(path.split("/")[len(folders) - folders[::-1].index(label) :])
    return file
