"""The validation split: which training images are held out, as a pure function of their contents and the seed."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from inat_job.errors import ConflictError

VALIDATION_SHARE = 0.2


def validation(hashes: Sequence[str], labels: Sequence[int], seed: int, share: float = VALIDATION_SHARE) -> list[bool]:
    """Whether each image is held out; `hashes` are the SHA-256 of the files.

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
    for content in sorted(positions, key=lambda content: _key(seed, content)):
        copies = Counter(labels[at] for at in positions[content])
        if any(wanted[label] > 0 for label in copies) and all(left[label] > 1 for label in copies):
            for at in positions[content]:
                held_out[at] = True
            for label, count in copies.items():
                wanted[label] -= count
                left[label] -= 1
    return held_out


def training_count(class_counts: Iterable[int], final: bool = False) -> int:
    """The images left to train on, given those of each class in train/, if all are readable and different.

    With `final`, nothing is held out.
    """
    return sum(count if final else count - min(_wanted(count, VALIDATION_SHARE), count - 1) for count in class_counts)


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


def _key(seed: int, content: str) -> str:
    return hashlib.sha256(f"{seed}:{content}".encode()).hexdigest()
