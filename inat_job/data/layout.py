"""Finds the images of a data set among the names in an archive, folder or prefix: `.../train/<Class>/*` and
`.../val/<Class>/*` (or `test/`) at any depth."""

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from inat_job import signals
from inat_job.errors import BadDataError
from inat_job.signals import Stop, never

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
    "zbthumbnail.info",
    *(".mov", ".mp4", ".avi", ".m4v", ".aae", ".xmp", ".thm", ".db", ".ini", ".npy", ".mat", ".md5", ".sha256", ".py"),
)


@dataclass(frozen=True, order=True, slots=True)
class ImageFile:
    """One image file: `id` is the same for every kind of source, `name` is its path in this one."""

    id: str
    name: str
    split: str
    label: str


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


def _is_called_image(name: str) -> bool:
    return name.lower().endswith((".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".avif", ".jp2"))


def is_sidecar(name: str) -> bool:
    """Whether a file that is no image is plainly not meant as one, by its name."""
    return name.lower().endswith(_SIDECARS)


def find_images(
    names: Iterable[str], source: str, stop: Stop = never, links: Mapping[str, str] | None = None
) -> list[ImageFile]:
    """The images among `names` (paths with `/`), sorted by id.

    Other capitals, such as Train/, count only if nothing is spelled train/ and val/. Raises BadDataError if there is no
    such tree, more than one, if train and test differ in their classes, or if one of the `links`, each with what it
    is, takes the place of a class folder, and Preempted.
    """
    kept = []
    for name in _interruptible(names, stop):
        check_name(name, source)
        if not is_ignored(name) and not name.endswith("/"):
            kept.append(name)
    roots, complete = _candidates(kept, stop)
    if len(complete) != 1:
        raise BadDataError(_no_tree(source, complete, roots, kept))
    root = complete[0]
    del kept
    _check_folders(roots[root], root)
    _check_links(links or {}, root, _folders(roots[root], root), source)
    images = [_image(name, root) for name in _interruptible(roots.pop(root), stop)]
    images.sort()
    _check_classes(images, source)
    return images


def linked_trees(names: Iterable[str], real_path: Callable[[str], str]) -> tuple[str, ...]:
    """Folders that hold a data set only by links to the class folders of another one, each ending in `/`.

    `real_path` follows the links of a folder; "" is the one that the names are relative to.
    """
    roots, complete = _candidates([name for name in names if not is_ignored(name) and not name.endswith("/")])
    if len(complete) < 2:
        return ()
    classes = {root: {root + "/".join(_parts(name, root)[:2]) for name in roots[root]} for root in complete}
    real = {root: frozenset(map(real_path, folders)) for root, folders in classes.items()}
    top, linked = real_path(""), []
    own = {root: len(real[root] & {f"{top}/{folder}" for folder in classes[root]}) for root in complete}
    kept: set[frozenset[str]] = set()
    for root in sorted(complete, key=lambda root: (-own[root], root)):  # those without links first
        if real[root] in kept:
            linked.append(root)
        kept.add(real[root])
    return tuple(linked)


def _interruptible(names: Iterable[str], stop: Stop) -> Iterator[str]:
    for number, name in enumerate(names):
        if number % 4096 == 0:
            signals.check(stop, "finding the images")
        yield name


def class_names(images: Iterable[ImageFile]) -> tuple[str, ...]:
    """The class names, alphabetical."""
    return tuple(sorted({image.label for image in images}))


def training_counts(images: Iterable[ImageFile]) -> tuple[int, ...]:
    """The number of training images of each class."""
    return tuple(Counter(image.label for image in images if image.split == TRAIN).values())


def _candidates(names: Sequence[str], stop: Stop = never) -> tuple[dict[str, list[str]], list[str]]:
    """Every way to read the names, by root, and the roots of those that are a data set."""
    roots = _roots(_interruptible(names, stop), lambda part: part)
    if complete := _complete(roots):
        return roots, complete
    roots = _roots(_interruptible(names, stop), str.lower)
    return roots, _complete(roots)


def _roots(names: Iterable[str], spelled: Callable[[str], str]) -> dict[str, list[str]]:
    """Every way to read the names, by root, which ends in `/`: a folder above or below the split's may be called train
    too. Keys of a bucket may have empty components.
    """
    roots: dict[str, list[str]] = defaultdict(list)
    for name in names:
        parts, at = name.split("/"), 0
        for number, part in enumerate(parts[:-2]):
            if spelled(part) in _SPLIT_NAMES and len(list(filter(None, parts[number + 1 :]))) > 1:
                roots[name[:at]].append(name)
            at += len(part) + 1
    return roots


def _split(folder: str) -> str:
    return TRAIN if folder.lower() == TRAIN else TEST


def _folders(names: Iterable[str], root: str) -> set[str]:
    """The folders of splits, as spelled under a root."""
    return {name[len(root) : name.index("/", len(root))] for name in names}


def _complete(roots: Mapping[str, list[str]]) -> list[str]:
    """The roots that hold train and test; a root inside another belongs to the outer one's images."""
    complete = {root for root, names in roots.items() if len({*map(_split, _folders(names, root))}) == 2}
    return sorted(root for root in complete if not any(above in complete for above in _parents(root)))


def _parents(root: str) -> list[str]:
    parts = root.split("/")[:-1]
    return ["".join(f"{above}/" for above in parts[:at]) for at in range(len(parts))]


def _check_folders(names: list[str], root: str) -> None:
    found = _folders(names, root)
    for split in (TRAIN, TEST):
        folders = sorted((folder for folder in found if _split(folder) == split), reverse=True)
        if len(folders) > 1:
            both = " and ".join(f"{folder}/" for folder in folders)
            raise BadDataError(f"{root[:-1] or 'The data set'} holds both {both}: keep the one to use as {split} set.")


def _check_links(links: Mapping[str, str], root: str, splits: set[str], source: str) -> None:
    """Raise BadDataError if a link takes the place of a class folder: without a message the class would be missing."""
    for name, reason in sorted(links.items()):
        parts = _parts(name, root) if name.startswith(root) and not is_ignored(name) else []
        if len(parts) == 2 and parts[0] in splits and not (is_sidecar(name) or _is_called_image(name)):
            raise BadDataError(
                f"{source} has {reason.partition(',')[0]} in place of the class folder {name}: "
                "put the folder itself there, or remove the link."
            )


def _parts(name: str, root: str) -> list[str]:
    """The components of a name below a root: the split's folder, the class, and the file."""
    return [part for part in name[len(root) :].split("/") if part]


def _image(name: str, root: str) -> ImageFile:
    folder, label, *below = _parts(name, root)
    file = "/".join(below).encode(errors="backslashreplace").decode()  # an id is written to reports, which are UTF-8
    split = _split(folder)
    return ImageFile(f"{split}/{label}/{file}", name, split, sys.intern(label))


def is_text(name: str) -> bool:
    """Whether a file name is valid UTF-8: Python represents other bytes as lone surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _no_tree(source: str, complete: list[str], roots: Iterable[str], names: Sequence[str]) -> str:
    if complete:
        return f"{source} holds more than one data set ({_some(root[:-1] for root in complete)}): use one of them."
    found = _part_of_tree(sorted(roots), names) or _other_tree(names)
    return f"{source} holds no train/<Class>/ with a val/<Class>/ or test/<Class>/ beside it, but {found}."


def _part_of_tree(roots: Sequence[str], names: Sequence[str]) -> str:
    """What is there of a tree, and what it lacks; empty if there is nothing of it."""
    if not roots:
        return ""
    if len(roots) > 1:
        return f"parts of it in several folders, {_some(root or './' for root in roots)}: move them into one"
    [root] = roots
    below = (name[len(root) :].partition("/") for name in names if name.startswith(root))
    inside = {folder for folder, slash, _ in below if slash}
    there = sorted(folder for folder in inside if folder.lower() in _SPLIT_NAMES)
    others = sorted(f"{folder}/" for folder in inside - {*there})
    lacking = "val/" if TRAIN in map(_split, there) else "train/"
    advice = f", and beside it {_some(others)}: rename one to {lacking}" if others else f" alone: add {lacking}"
    return f"{_some(f'{root}{folder}/' for folder in there)}{advice}"


def _other_tree(names: Sequence[str]) -> str:
    """What is there instead of a tree, and what would do."""
    if not names:
        return "no files at all: check --data"
    if len(names) <= 3 and not any("/" in name for name in names):
        return f"only {_some(sorted(names))}: unpack it, or name what has the images"
    folders = sorted({f"{name.rpartition('/')[0]}/" for name in names if "/" in name})
    if flat := [folder for folder in folders if folder.split("/")[-2].lower() in _SPLIT_NAMES]:
        return f"files directly in {_some(flat)}: put those of each class into a folder of its own"
    depths = sorted({folder.count("/") for folder in folders})
    depth = f" at depth {'-'.join(str(each) for each in {depths[0]: 0, depths[-1]: 0})}" if depths else ""
    listed = f" ({_some(folders)})" if folders else ""
    return (
        f"{len(names)} files in {len(folders)} folders{depth}{listed}: "
        "move those of each class into train/<Class>/ and val/<Class>/"
    )


def _some(names: Iterable[str]) -> str:
    """The first three names, cut, and the number of the others."""
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(name if len(name) <= 40 else f"{name[:37]}..." for name in names[:3]) + more


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
