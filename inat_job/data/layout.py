"""Finds the pictures of a data set among the names in an archive, folder or prefix: `.../train/<Class>/*` and
`.../val/<Class>/*` (or `test/`) at any depth."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from inat_job.errors import BadDataError

TRAIN, TEST = "train", "test"
_TEST_NAMES = ("val", "test")
_LITTER = {"__MACOSX", "Thumbs.db", "desktop.ini"}


@dataclass(frozen=True, order=True)
class Picture:
    """One picture file: `id` names it whatever it came in, `name` is where its bytes are."""

    id: str
    name: str
    split: str
    label: str


def is_litter(name: str) -> bool:
    """Whether a path is hidden or something that an operating system leaves behind."""
    return any(part.startswith(".") or part in _LITTER for part in name.split("/"))


def find(names: Iterable[str], where: str) -> list[Picture]:
    """The pictures among `names` (paths with `/`), sorted by id.

    Raises BadDataError when there is no such tree, more than one, or train and test differ in their classes.
    """
    roots: dict[str, list[tuple[str, str, str, str]]] = defaultdict(list)
    for name in names:
        parsed = _parse(name)
        if parsed:
            roots[parsed[0]].append((name, *parsed[1:]))
    complete = [root for root, members in roots.items() if {TRAIN, *_test_name(root, members)} <= _splits(members)]
    if len(complete) != 1:
        raise BadDataError(_no_tree(where, complete, roots))
    pictures = sorted(_picture(*member) for member in roots[complete[0]])
    _check_classes(pictures, where)
    return pictures


def classes(pictures: Iterable[Picture]) -> tuple[str, ...]:
    """The class names, alphabetical."""
    return tuple(sorted({picture.label for picture in pictures}))


def _parse(name: str) -> tuple[str, str, str, str] | None:
    """Root, split folder, class and file of a name, or None if it is no picture of the tree."""
    if is_litter(name) or name.endswith("/"):
        return None
    parts = name.split("/")
    for at, part in enumerate(parts[:-2]):
        if part == TRAIN or part in _TEST_NAMES:
            return "/".join(parts[:at]), part, parts[at + 1], "/".join(parts[at + 2 :])
    return None


def _splits(members: list[tuple[str, str, str, str]]) -> set[str]:
    return {member[1] for member in members}


def _test_name(root: str, members: list[tuple[str, str, str, str]]) -> set[str]:
    present = _splits(members) & set(_TEST_NAMES)
    if len(present) > 1:
        raise BadDataError(f"{root or 'The data set'} holds both val/ and test/: keep the one to test on.")
    return present or {TEST}


def _picture(name: str, folder: str, label: str, file: str) -> Picture:
    split = TRAIN if folder == TRAIN else TEST
    return Picture(f"{split}/{label}/{file}", name, split, label)


def _no_tree(where: str, complete: list[str], roots: Iterable[str]) -> str:
    if complete:
        return f"{where} holds more than one data set ({', '.join(sorted(complete)[:3])}): give one of them."
    found = (
        f"only part of it under {', '.join(repr(root) for root in sorted(roots)[:3])}" if roots else "nothing like it"
    )
    return f"{where} holds no train/<Class>/ with a val/<Class>/ or test/<Class>/ beside it ({found})."


def _check_classes(pictures: list[Picture], where: str) -> None:
    train, test = (classes(p for p in pictures if p.split == split) for split in (TRAIN, TEST))
    if train != test:
        odd = ", ".join(sorted(set(train) ^ set(test))[:5])
        raise BadDataError(f"{where}: train and test must have the same classes, but only one of them has {odd}.")
    if len(train) < 2:
        raise BadDataError(f"{where} has one class, {train[0]}: there is nothing to tell apart.")
