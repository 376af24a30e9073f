"""Which training images are held out for validation: a pure function of content and seed, whatever the order."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

VALIDATION_SHARE = 0.2


def validation(hashes: Sequence[str], labels: Sequence[int], seed: int, share: float = VALIDATION_SHARE) -> list[bool]:
    """Whether each image is held out.

    Stratified: the images are gone through by a keyed hash of their content, and one is taken as long as its class
    has fewer than `share` of its images held out, and at least one. So neither file names nor order matter. A class
    always keeps a distinct image to train on. Copies never stand on both sides, also not those in several classes:
    they are held out when one of the classes wants more and each keeps another image.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for at, content in enumerate(hashes):
        places[content].append(at)
    wanted = {label: max(1, round(share * count)) for label, count in Counter(labels).items()}
    left = Counter(label for _, label in set(zip(hashes, labels, strict=True)))
    held_out = [False] * len(hashes)
    for content in sorted(places, key=lambda content: _key(seed, content)):
        copies = Counter(labels[at] for at in places[content])
        if any(wanted[label] > 0 for label in copies) and all(left[label] > 1 for label in copies):
            for at in places[content]:
                held_out[at] = True
            for label, count in copies.items():
                wanted[label] -= count
                left[label] -= 1
    return held_out


def digest(hashes: Sequence[str], held_out: Sequence[bool]) -> str:
    """SHA-256 over the two sides, whatever their order."""
    lines = sorted(f"{'val' if out else 'train'} {content}" for content, out in zip(hashes, held_out, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _key(seed: int, content: str) -> str:
    return hashlib.sha256(f"{seed}:{content}".encode()).hexdigest()
