"""SHA-256 of files, the only proof of bytes that this project accepts."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

_BLOCK = 2**22


def sha256_of(path: Path, between: Callable[[], None] = lambda: None) -> str:
    """Hexadecimal digest of a file; `between` is called from block to block and may raise. Raises OSError."""
    return sha256_of_blocks(blocks_of(path), between)


def sha256_of_blocks(blocks: Iterable[bytes], between: Callable[[], None] = lambda: None) -> str:
    """Hexadecimal digest of what the blocks are together."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
        between()
    return digest.hexdigest()


def blocks_of(path: Path) -> Iterator[bytes]:
    """The bytes of a file, a few MiB at a time. Raises OSError."""
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block
