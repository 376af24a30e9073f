"""What is wrong with the layout of a data set: what was found, and what would do, a sentence each."""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from inat_job.errors import BadDataError

_ADVICE = "put those of each class into a folder of its own, or list their classes in a file for --labels"


def is_text(name: str) -> bool:
    """Whether a file name is valid UTF-8: Python represents other bytes as lone surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def is_called_image(name: str) -> bool:
    """Whether a file has the suffix of an image."""
    return name.lower().endswith((".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".avif", ".jp2"))


def no_tree(
    source: str,
    complete: Sequence[str],
    roots: Sequence[str],
    names: Sequence[str],
    split_called: Callable[[str], str | None],
) -> str:
    """The message for `names` that are no data set, or several: their roots are in `complete`.

    `roots` are those that hold a part of one, and `split_called` tells the split that a folder is called after.
    """
    if complete:
        return f"{source} holds more than one data set ({some(root[:-1] for root in complete)}): use one of them."
    found = _part_of_tree(roots, names, split_called) or _other_tree(names, split_called)
    return (
        f"{source} holds neither train/<Class>/ with val/<Class>/ or test/<Class>/ beside it nor a folder for each "
        f"class alone, but {found}."
    )


def _part_of_tree(roots: Sequence[str], names: Sequence[str], split_called: Callable[[str], str | None]) -> str:
    """What is there of a tree, and what it lacks; empty if there is nothing of it."""
    if not roots:
        return ""
    if len(roots) > 1:
        return f"parts of it in several folders, {some(root or './' for root in roots)}: move them into one"
    [root] = roots
    below = (name[len(root) :].partition("/") for name in names if name.startswith(root))
    inside = {folder for folder, slash, _ in below if slash}
    there = sorted(folder for folder in inside if split_called(folder))
    others = sorted(f"{folder}/" for folder in inside - {*there})
    has_train = "train" in map(split_called, there)
    lacking = "val/" if has_train else "train/"
    advice = f", and beside it {some(others)}: rename one to {lacking}" if others else f" alone: add {lacking}"
    split_off = ", or split a test set off with --test-share 0.2" if has_train else ""
    return f"{some(f'{root}{folder}/' for folder in there)}{advice}{split_off}"


def _other_tree(names: Sequence[str], split_called: Callable[[str], str | None]) -> str:
    """What is there instead of a tree, and what would do."""
    if not names:
        return "no files at all: check --data"
    if len(names) <= 3 and not any("/" in name or is_called_image(name) for name in names):
        return f"only {some(sorted(names))}: unpack it, or name what has the images"
    folders = sorted({f"{name.rpartition('/')[0]}/" for name in names if "/" in name})
    if flat := [folder for folder in folders if split_called(folder.split("/")[-2])]:
        return f"files directly in {some(flat)}: {_ADVICE}"
    images = [name for name in names if is_called_image(name)]
    if not images:
        return f"{len(names)} files that are not called images, such as {some(sorted(names)[:1])}: check --data"
    holding = sorted({f"{name.rpartition('/')[0]}/" for name in images})
    if len(holding) == 1:
        return f"{len(images)} images in the one folder {some(holding) if holding != ['/'] else './'}: {_ADVICE}"
    depths = sorted({name.count("/") for name in images})
    return (
        f"{len(images)} images in {len(holding)} folders at depth {'-'.join(map(str, sorted({depths[0], depths[-1]})))}"
        f" ({some(folder if folder != '/' else './' for folder in holding)}): move the folders of all classes into one "
        "folder"
    )


def some(names: Iterable[str]) -> str:
    """The first three names, cut, and the number of the others."""
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(name if len(name) <= 40 else f"{name[:37]}..." for name in names[:3]) + more


def check_classes(by_split: Mapping[str, Collection[str]], source: str) -> None:
    """Raise BadDataError unless all splits have the same classes, at least two, with names that can be told apart."""
    classes = sorted(set().union(*by_split.values()))
    for name in classes:
        if not is_text(name):
            raise BadDataError(f"{source} has a class folder {name!a}, which is not UTF-8: rename it.")
    for split, there in by_split.items():
        if "train" in by_split and (mine := {*there} - {*by_split["train"]}) ^ ({*by_split["train"]} - {*there}):
            raise BadDataError(_differing(source, split, mine, {*by_split["train"]} - {*there}))
    folded = {name.casefold(): name for name in classes}
    for name in classes:
        if folded[name.casefold()] != name:
            twin = folded[name.casefold()]
            raise BadDataError(f"{source} has classes that differ only in capitals, {name} and {twin}: rename one.")
    if len(classes) < 2:
        raise BadDataError(f"{source} has only one class, {''.join(classes)}: at least two are needed.")


def _differing(source: str, split: str, only_here: Collection[str], only_in_train: Collection[str]) -> str:
    """The message for classes that only one of two splits has, those of nearly the same name side by side."""
    train, here = _by_spelling(only_in_train), _by_spelling(only_here)
    pairs = [f"{train[key][0]!r} in train is {here[key][0]!r} in {split}" for key in sorted(train.keys() & here.keys())]
    if pairs:
        more = f" and {len(pairs) - 3} more" if len(pairs) > 3 else ""
        return (
            f"{source}: train and {split} spell classes differently ({', '.join(pairs[:3])}{more}): give them the "
            "same names."
        )
    missing = [
        f"only {where} has {some(sorted(names))}"
        for where, names in (("train", only_in_train), (split, only_here))
        if names
    ]
    return f"{source}: train and {split} must have the same classes, but {' and '.join(missing)}."


def _by_spelling(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by what is left without capitals, spaces, marks, and numbers in front."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        found[re.sub(r"^\d+[\W_]+|[\W_]+", "", name.casefold())].append(name)
    return found


def check_counts(counts: Mapping[str, int], source: str) -> None:
    """Raise BadDataError for classes of one image, which cannot be both trained and tested."""
    if single := sorted(name for name, count in counts.items() if count < 2):
        raise BadDataError(
            f"{source} has only one image of {some(single)}: a test set can be split off classes of two or more."
        )
