"""Which images are held out for validation, and for the test where a data set has none: pure functions of contents."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from inat_job.errors import ConflictError

TEST_SHARE = VALIDATION_SHARE = 0.2


def validation(hashes: Sequence[str], labels: Sequence[int], seed: int, share: float = VALIDATION_SHARE) -> list[bool]:
    """Whether each image is held out for validation, see `_held_out`."""
    return _held_out(hashes, labels, str(seed), share)


def test(hashes: Sequence[str], labels: Sequence[int], share: float) -> list[bool]:
    """Whether each image is a test image, see `_held_out`.

    No seed changes that: runs with other seeds would train on each other's test images.
    """
    return _held_out(hashes, labels, "test", share)


def _held_out(hashes: Sequence[str], labels: Sequence[int], draw: str, share: float) -> list[bool]:
    """Whether each image is held out; `hashes` are the SHA-256 of the files, `draw` keys the order of the images.

    Stratified: images are visited in the order of a keyed hash of their contents, and held out until their class has
    `share` of its images held out, and at least one. File names and order don't matter. Every class keeps a distinct
    image to train on. Copies of an image are never on both sides, even in different classes: they are held out if one
    of their classes needs more and each keeps another image.
    """
    positions: dict[str, list[int]] = defaultdict(list)
    for at, content in enumerate(hashes):
        positions[content].append(at)
    wanted = {label: _wanted(count, share) for label, count in Counter(labels).items()}
    left = Counter(label for _, label in set(zip(hashes, labels, strict=True)))
    held_out = [False] * len(hashes)
    for content in sorted(positions, key=lambda content: _key(draw, content)):
        copies = Counter(labels[at] for at in positions[content])
        if any(wanted[label] > 0 for label in copies) and all(left[label] > 1 for label in copies):
            for at in positions[content]:
                held_out[at] = True
            for label, count in copies.items():
                wanted[label] -= count
                left[label] -= 1
    return held_out


def training_count(
    class_counts: Iterable[int], final: bool = False, share: float | None = None, validation: int | None = None
) -> int:
    """The images left to train on, given those of each class in train/, if all are readable and different.

    With `final`, nothing is held out; where the data set has `validation` images of its own, nothing of train/ is.
    """
    if validation is not None:
        return sum(class_counts) + (validation if final else 0)
    share = VALIDATION_SHARE if share is None else share
    return sum(count if final else left_of(count, share) for count in class_counts)


def left_of(count: int, share: float) -> int:
    """The images of a class that are left when `share` of its `count` is held out, if all are different."""
    return count - min(_wanted(count, share), count - 1)


def check_batch_size(batch_size: int, training_images: int) -> None:
    """Raise ConflictError unless there is a full batch."""
    if batch_size > training_images:
        raise ConflictError(
            f"--batch-size is {batch_size}, but there are only {training_images} training images: lower it, because "
            "partial batches are dropped."
        )


def _wanted(count: int, share: float) -> int:
    return max(1, round(share * count))


def digest(hashes: Sequence[str], held_out: Sequence[bool]) -> str:
    """SHA-256 of the split, independent of the order of the images."""
    lines = sorted(f"{'val' if out else 'train'} {content}" for content, out in zip(hashes, held_out, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _key(draw: str, content: str) -> str:
    return hashlib.sha256(f"{draw}:{content}".encode()).hexdigest()
