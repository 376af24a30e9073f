"""SHA-256 of files, the only proof of bytes that this project accepts."""

import hashlib
from collections.abc import Callable
from pathlib import Path

_BLOCK = 2**22


def sha256_of(path: Path, between: Callable[[], None] = lambda: None) -> str:
    """Hexadecimal digest of a file; `between` is called from block to block and may raise. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            between()
    return digest.hexdigest()
