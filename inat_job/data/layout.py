"""Finds the images of a data set among the names in an archive, folder or prefix: `.../train/<Class>/*` and
`.../val/<Class>/*` (or `test/`) at any depth."""

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from inat_job.errors import BadDataError

TRAIN, TEST = "train", "test"
MAX_NAME, MAX_DEPTH = 4096, 64
"""Letters of a path, as on Linux, and folders in it; longer ones are made to exhaust the memory."""

_SPLIT_NAMES = {TRAIN, "val", "test"}
_IGNORED_NAMES = {
    *("__MACOSX", "Thumbs.db", "ehthumbs.db", "desktop.ini", "Icon\r", "lost+found", "System Volume Information"),
    *("@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN"),  # of a NAS; @eaDir holds thumbnails
}
_SIDECARS = (
    *(".xml", ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".txt", ".md", ".html", ".htm", ".pdf", ".log"),
    *(".mov", ".mp4", ".avi", ".m4v", ".aae", ".xmp", ".thm", ".db", ".ini", ".npy", ".mat", ".md5", ".sha256", ".py"),
)


@dataclass(frozen=True, order=True, slots=True)
class ImageFile:
    """One image file: `id` is the same for every kind of source, `name` is its path in this one."""

    id: str
    name: str
    split: str
    label: str


@dataclass(frozen=True, slots=True)
class _Member:
    """A name as read under one root; `folder` is the split's folder as spelled there."""

    name: str
    folder: str
    label: str
    file: str

    @property
    def split(self) -> str:
        return TRAIN if self.folder.lower() == TRAIN else TEST


def check_name(name: str, source: object) -> None:
    """Raise BadDataError for a path that is too long or too deep to be split."""
    if len(name) > MAX_NAME or name.count("/") + name.count("\\") > MAX_DEPTH:
        raise BadDataError(
            f"{source} has a path of {len(name)} letters and {name.count('/')} folders, {name[:40]!r}...: "
            f"use at most {MAX_NAME} and {MAX_DEPTH}."
        )


def is_ignored(name: str) -> bool:
    """Whether a path is hidden or a leftover of an operating system."""
    return any((part.startswith(".") and part != ".") or part in _IGNORED_NAMES for part in name.split("/"))


def is_sidecar(name: str) -> bool:
    """Whether a file that is no image is plainly not meant as one, by its name."""
    return name.lower().endswith(_SIDECARS)


def find_images(names: Iterable[str], source: str) -> list[ImageFile]:
    """The images among `names` (paths with `/`), sorted by id.

    Other capitals, such as Train/, count only if nothing is spelled train/ and val/. Raises BadDataError if there is no
    such tree, more than one, or if train and test differ in their classes.
    """
    names = list(names)
    for name in names:
        check_name(name, source)
    roots, complete = _candidates(names)
    if len(complete) != 1:
        raise BadDataError(_no_tree(source, complete, roots))
    members = roots[complete[0]]
    _check_folders(members, complete[0])
    images = sorted(_image(member) for member in members)
    _check_classes(images, source)
    return images


def linked_trees(names: Iterable[str], real_path: Callable[[str], str]) -> tuple[str, ...]:
    """Folders that hold a data set only by links to the class folders of another one, each ending in `/`.

    `real_path` follows the links of a folder; "" is the one that the names are relative to.
    """
    roots, complete = _candidates(names)
    if len(complete) < 2:
        return ()
    classes = {root: {f"{root}/{each.folder}/{each.label}" for each in roots[root]} for root in complete}
    real = {root: frozenset(map(real_path, folders)) for root, folders in classes.items()}
    top, linked = real_path(""), []
    own = {root: len(real[root] & {f"{top}/{folder}" for folder in classes[root]}) for root in complete}
    kept: set[frozenset[str]] = set()
    for root in sorted(complete, key=lambda root: (-own[root], root)):  # those without links first
        if real[root] in kept:
            linked.append(f"{root}/")
        kept.add(real[root])
    return tuple(linked)


def class_names(images: Iterable[ImageFile]) -> tuple[str, ...]:
    """The class names, alphabetical."""
    return tuple(sorted({image.label for image in images}))


def training_counts(images: Iterable[ImageFile]) -> tuple[int, ...]:
    """The number of training images of each class."""
    return tuple(Counter(image.label for image in images if image.split == TRAIN).values())


def _candidates(names: Iterable[str]) -> tuple[dict[str, list[_Member]], list[str]]:
    """Every way to read the names, by root, and the roots of those that are a data set."""
    names = [name for name in names if not is_ignored(name) and not name.endswith("/")]
    roots = _roots(names, lambda part: part)
    if complete := _complete(roots):
        return roots, complete
    roots = _roots(names, str.lower)
    return roots, _complete(roots)


def _roots(names: Iterable[str], spelled: Callable[[str], str]) -> dict[str, list[_Member]]:
    """Every way to read the names, by root: a folder above or below the split's may be called train too."""
    roots: dict[str, list[_Member]] = defaultdict(list)
    for name in names:
        parts = [part for part in name.split("/") if part]  # keys of a bucket may have empty components
        for at, part in enumerate(parts[:-2]):
            if spelled(part) in _SPLIT_NAMES:
                roots["/".join(parts[:at])].append(
                    _Member(name, part, sys.intern(parts[at + 1]), "/".join(parts[at + 2 :]))
                )
    return roots


def _complete(roots: Mapping[str, list[_Member]]) -> list[str]:
    """The roots that hold train and test; a root inside another belongs to the outer one's images."""
    complete = {root for root, members in roots.items() if {member.split for member in members} == {TRAIN, TEST}}
    return sorted(root for root in complete if not complete & set(_parents(root)))


def _parents(root: str) -> list[str]:
    parts = root.split("/") if root else []
    return ["/".join(parts[:at]) for at in range(len(parts))]


def _check_folders(members: list[_Member], root: str) -> None:
    for split in (TRAIN, TEST):
        folders = sorted({member.folder for member in members if member.split == split}, reverse=True)
        if len(folders) > 1:
            both = " and ".join(f"{folder}/" for folder in folders)
            raise BadDataError(f"{root or 'The data set'} holds both {both}: keep the one to use as {split} set.")


def _image(member: _Member) -> ImageFile:
    file = member.file.encode(errors="backslashreplace").decode()  # an id is written to reports, which are UTF-8
    return ImageFile(f"{member.split}/{member.label}/{file}", member.name, member.split, member.label)


def is_text(name: str) -> bool:
    """Whether a file name is valid UTF-8: Python represents other bytes as lone surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _no_tree(source: str, complete: list[str], roots: Iterable[str]) -> str:
    if complete:
        return f"{source} holds more than one data set ({', '.join(sorted(complete)[:3])}): use one of them."
    found = (
        f"only part of it under {', '.join(repr(root) for root in sorted(roots)[:3])}" if roots else "nothing like it"
    )
    return f"{source} holds no train/<Class>/ with a val/<Class>/ or test/<Class>/ beside it ({found})."


def _check_classes(images: list[ImageFile], source: str) -> None:
    for name in class_names(images):
        if not is_text(name):
            raise BadDataError(f"{source} has a class folder {name!a}, which is not UTF-8: rename it.")
    train, test = (class_names(p for p in images if p.split == split) for split in (TRAIN, TEST))
    if train != test:
        odd = ", ".join(sorted(set(train) ^ set(test))[:5])
        raise BadDataError(f"{source}: train and test must have the same classes, but only one of them has {odd}.")
    folded = {name.casefold(): name for name in train}
    for name in train:
        if folded[name.casefold()] != name:
            twin = folded[name.casefold()]
            raise BadDataError(f"{source} has classes that differ only in capitals, {name} and {twin}: rename one.")
    if len(train) < 2:
        raise BadDataError(f"{source} has only one class, {train[0]}: at least two are needed.")
