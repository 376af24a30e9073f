"""Which training pictures are held out for validation: a pure function of content and seed, whatever the order."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

VALIDATION_SHARE = 0.2


def validation(hashes: Sequence[str], labels: Sequence[int], seed: int, share: float = VALIDATION_SHARE) -> list[bool]:
    """Whether each picture is held out.

    Stratified: in every class the pictures with the smallest keyed hash of their content are taken until they are
    `share` of it, so neither file names nor order matter, and copies of one picture never stand on both sides.
    A class always keeps at least one distinct picture to train on.
    """
    members: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for at, (content, label) in enumerate(zip(hashes, labels, strict=True)):
        members[label][content].append(at)
    held_out = [False] * len(hashes)
    for copies in members.values():
        wanted = round(share * sum(map(len, copies.values())))
        taken = 0
        for content in sorted(copies, key=lambda content: _key(seed, content))[: len(copies) - 1]:
            if taken >= wanted:
                break
            taken += len(copies[content])
            for at in copies[content]:
                held_out[at] = True
    return held_out


def digest(hashes: Sequence[str], held_out: Sequence[bool]) -> str:
    """SHA-256 over the two sides, whatever their order."""
    lines = sorted(f"{'val' if out else 'train'} {content}" for content, out in zip(hashes, held_out, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _key(seed: int, content: str) -> str:
    return hashlib.sha256(f"{seed}:{content}".encode()).hexdigest()
