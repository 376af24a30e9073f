"""Finds the images of a data set among the names in an archive, folder or prefix: `.../train/<Class>/*` and
`.../val/<Class>/*` (or `test/`, or both) at any depth, one folder a class, or what a table of labels lists."""

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from inat_job import signals
from inat_job.address import as_utf8
from inat_job.data import layout_errors, splits
from inat_job.data.label_table import LabelTable
from inat_job.data.layout_errors import is_called_image
from inat_job.errors import BadDataError, ConflictError
from inat_job.signals import Stop, never

TRAIN, VALIDATION, TEST = "train", "val", "test"
UNSPLIT = ""
"""The split of images that the job itself splits into train and test, once their contents are known."""
MAX_NAME, MAX_DEPTH = 4096, 64
"""Letters of a path, as on Linux, and folders in it; longer ones are made to exhaust the memory."""

_EXACT = {name: name for name in (TRAIN, VALIDATION, TEST)}
_SPLIT_OF = {
    **_EXACT,
    **{"training": TRAIN, "valid": VALIDATION, "validation": VALIDATION, "dev": VALIDATION, "testing": TEST},
}
"""What the folders of splits are called, in lower case."""

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

    def assigned(self, split: str) -> "ImageFile":
        """An image without a split, with the one that the job assigns to it."""
        return replace(self, id=f"{split}/{self.id}", split=split)


@dataclass(frozen=True)
class Arrangement:
    """What decides classes and splits beside the folders: a table of labels, and the share of test images where the
    data set has none (None is the default share, and not asked for).
    """

    labels: LabelTable | None = None
    test_share: float | None = None

    @property
    def key(self) -> str:
        """Changes with whatever may change the classes and splits; empty where the folders alone decide."""
        share = "" if self.test_share is None else f" test_share={self.test_share!r}"
        return f" labels={self.labels.digest}{share}" if self.labels else share


BY_FOLDERS = Arrangement()


def split_called(name: str) -> str | None:
    """The split that a folder or a table means by a name such as Training or valid, or None."""
    return _SPLIT_OF.get(name.strip().lower())


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


def find_images(
    names: Iterable[str],
    source: str,
    stop: Stop = never,
    links: Mapping[str, str] | None = None,
    arrangement: Arrangement = BY_FOLDERS,
) -> list[ImageFile]:
    """The images among `names` (paths with `/`), sorted by id.

    Folders of splits may be called otherwise, such as Train/ or valid/, where nothing is spelled train/ and val/. Of
    val/ and test/ the second holds the test images; val/ alone does too. Images of a data set without splits are
    UNSPLIT. Raises BadDataError if there is no such tree, more than one, if the splits differ in their classes, or if
    one of the `links`, each with what it is, takes the place of a class folder; ConflictError for a share of test
    images where there are some, and Preempted.
    """
    kept = []
    for name in _interruptible(names, stop):
        check_name(name, source)
        if not is_ignored(name) and not name.endswith("/"):
            kept.append(name)
    if arrangement.labels:
        images = _listed(kept, arrangement, source)
    else:
        images = _in_folders(kept, source, stop, links or {}, arrangement)
    images.sort()
    splits_there = {image.split for image in images}
    if arrangement.test_share is not None and TEST in splits_there:
        raise ConflictError(
            f"--test-share is {arrangement.test_share:g}, but {source} has a test set of its own: leave it out, or "
            "if it is that of a run to test, use --test-share none."
        )
    layout_errors.check_classes(_classes_by_split(images), source)
    if UNSPLIT in splits_there:
        layout_errors.check_counts(Counter(image.label for image in images), source)
    return images


def _in_folders(
    kept: list[str], source: str, stop: Stop, links: Mapping[str, str], arrangement: Arrangement
) -> list[ImageFile]:
    roots, complete, called = _candidates(kept, stop)
    if not roots and (flat := _flat_root(kept)):
        root, folders = flat
        return [_image(name, root) for name in kept if name.startswith(root) and _parts(name, root)[0] in folders]
    if len(complete) == 1:
        root = complete[0]
        inside = _in_splits(_interruptible(kept, stop), root)
        split_of = _split_of_folders(inside, root, called)
    elif arrangement.test_share is not None and (only := _only_training(roots)) is not None:
        root = only
        inside = _in_splits(kept, root)
        split_of = dict.fromkeys(inside, UNSPLIT)
    else:
        raise BadDataError(layout_errors.no_tree(source, complete, sorted(roots), kept, split_called))
    _check_links(links, root, set(split_of), source)
    return [_image(name, root, split) for folder, split in split_of.items() for name in inside[folder]]


def _listed(names: Sequence[str], arrangement: Arrangement, source: str) -> list[ImageFile]:
    """The images that a table of labels lists."""
    assert arrangement.labels
    rows = arrangement.labels.located(names, source)
    given = {row.split for row in rows}
    split_of = {row: row for row in given}
    if given == {TRAIN}:
        if arrangement.test_share is None:
            raise BadDataError(
                f"{arrangement.labels.shown} lists only training images: add test images, or split them off with "
                f"--test-share {splits.TEST_SHARE:g}."
            )
        split_of = {TRAIN: UNSPLIT}
    elif VALIDATION in given and TEST not in given:
        split_of[VALIDATION] = TEST
    if not given & {TRAIN, UNSPLIT}:
        raise BadDataError(f"{arrangement.labels.shown} lists no training images: its splits are {sorted(given)}.")
    return [_with_split(split_of[row.split], row.label, row.file, row.name) for row in rows]


def linked_trees(names: Iterable[str], real_path: Callable[[str], str]) -> tuple[str, ...]:
    """Folders that hold a data set only by links to the class folders of another one, each ending in `/`.

    `real_path` follows the links of a folder; "" is the one that the names are relative to.
    """
    roots, complete, _ = _candidates([name for name in names if not is_ignored(name) and not name.endswith("/")])
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


def training_counts(images: Iterable[ImageFile], test_share: float | None = None) -> tuple[int, ...]:
    """The number of training images of each class; of images without splits those that are left for it."""
    counts = Counter((image.split, image.label) for image in images)
    share = splits.TEST_SHARE if test_share is None else test_share
    return tuple(
        splits.left_of(count, share) if split == UNSPLIT else count
        for (split, _), count in counts.items()
        if split in (TRAIN, UNSPLIT)
    )


def validation_count(images: Iterable[ImageFile]) -> int | None:
    """The number of validation images that a data set has of its own, None if it has none."""
    return sum(image.split == VALIDATION for image in images) or None


_Called = Callable[[str], str | None]
"""The split that a folder is called after, or None."""


def _candidates(names: Sequence[str], stop: Stop = never) -> tuple[dict[str, list[str]], list[str], _Called]:
    """Every way to read the names, by root, the roots of those that are a data set, and what names their folders."""
    for called in (_EXACT.get, lambda name: _EXACT.get(name.lower()), split_called):
        roots = _roots(_interruptible(names, stop), called)
        if complete := _complete(roots, called):
            break
    return roots, complete, called


def _roots(names: Iterable[str], called: _Called) -> dict[str, list[str]]:
    """Every way to read the names, by root, which ends in `/`: a folder above or below the split's may be called train
    too. Keys of a bucket may have empty components.
    """
    roots: dict[str, list[str]] = defaultdict(list)
    for name in names:
        parts, at = name.split("/"), 0
        for number, part in enumerate(parts[:-2]):
            if called(part) and len(list(filter(None, parts[number + 1 :]))) > 1:
                roots[name[:at]].append(name)
            at += len(part) + 1
    return roots


def _in_splits(names: Iterable[str], root: str) -> dict[str, list[str]]:
    """The names in class folders under a root, by what is called after a split and holds them."""
    inside: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if name.startswith(root):
            folder, _, below = name[len(root) :].partition("/")
            if split_called(folder) and len([*filter(None, below.split("/"))]) > 1:
                inside[folder].append(name)
    return inside


def _split_of_folders(found: Iterable[str], root: str, called: _Called) -> dict[str, str]:
    """The folders of splits under a root, each with its split: those of the spelling that made it a data set, and
    others where these leave a split open. Raises BadDataError for two folders of one split.
    """
    by_split: dict[str, str] = {}
    for split in (TRAIN, VALIDATION, TEST):
        own = [folder for folder in found if called(folder) == split]
        folders = sorted(own or (folder for folder in found if split_called(folder) == split), reverse=True)
        if len(folders) > 1:
            both = " and ".join(f"{folder}/" for folder in folders)
            raise BadDataError(f"{root[:-1] or 'The data set'} holds both {both}: keep the one to use as {split} set.")
        if folders:
            by_split[split] = folders[0]
    if TEST not in by_split:
        by_split[TEST] = by_split.pop(VALIDATION)
    return {folder: split for split, folder in by_split.items()}


def _only_training(roots: Mapping[str, list[str]]) -> str | None:
    """The root of the only tree, if it has training images and no others."""
    if len(roots) != 1:
        return None
    [(root, names)] = roots.items()
    return root if {*map(split_called, _folders(names, root))} == {TRAIN} else None


def _flat_root(names: Sequence[str]) -> tuple[str, set[str]] | None:
    """The folder whose folders hold the images of a class each, and those; None unless that is where all images are."""
    images = [name for name in names if is_called_image(name)]
    if not images:
        return None
    first, last = min(images), max(images)
    root = os.path.commonprefix((first, last)).rpartition("/")[0]  # noqa: RUF071 (a key may have empty components)
    root += "/" * bool(root)
    parts = [_parts(name, root) for name in images]
    folders = {each[0] for each in parts}
    if len(folders) < 2 or any(len(each) != 2 for each in parts) or any(map(split_called, folders)):
        return None
    return root, folders


def _folders(names: Iterable[str], root: str) -> set[str]:
    """The folders of splits, as spelled under a root."""
    return {name[len(root) : name.index("/", len(root))] for name in names}


def _complete(roots: Mapping[str, list[str]], called: _Called) -> list[str]:
    """The roots that hold train and test; a root inside another belongs to the outer one's images."""
    found = {root: {called(folder) for folder in _folders(names, root)} for root, names in roots.items()}
    complete = {root for root, splits_there in found.items() if TRAIN in splits_there and len(splits_there) > 1}
    return sorted(root for root in complete if not any(above in complete for above in _parents(root)))


def _parents(root: str) -> list[str]:
    parts = root.split("/")[:-1]
    return ["".join(f"{above}/" for above in parts[:at]) for at in range(len(parts))]


def _check_links(links: Mapping[str, str], root: str, folders: set[str], source: str) -> None:
    """Raise BadDataError if a link takes the place of a class folder: without a message the class would be missing."""
    for name, reason in sorted(links.items()):
        parts = _parts(name, root) if name.startswith(root) and not is_ignored(name) else []
        if len(parts) == 2 and parts[0] in folders and not (is_sidecar(name) or is_called_image(name)):
            raise BadDataError(
                f"{source} has {reason.partition(',')[0]} in place of the class folder {name}: "
                "put the folder itself there, or remove the link."
            )


def _parts(name: str, root: str) -> list[str]:
    """The components of a name below a root: the split's folder, the class, and the file."""
    return [part for part in name[len(root) :].split("/") if part]


def _image(name: str, root: str, split: str | None = None) -> ImageFile:
    """The image in a class folder, which is in the folder of a split unless that is None."""
    label, *below = _parts(name, root)[split is not None :]
    return _with_split(split or UNSPLIT, label, "/".join(below), name)


def _with_split(split: str, label: str, file: str, name: str) -> ImageFile:
    file = as_utf8(file)  # an id is written to reports, which are UTF-8
    image = ImageFile(f"{label}/{file}", name, UNSPLIT, sys.intern(label))
    return image.assigned(split) if split else image


def _classes_by_split(images: Iterable[ImageFile]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for image in images:
        found[image.split].add(image.label)
    return found
