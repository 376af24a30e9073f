"""What the tests of this folder share."""

from typing import Any

import pytest
from sites import site  # noqa: F401  # a fixture

from inat_job.data import decoding


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each picture that is decoded."""
    seen: list[int] = []
    original = decoding.decode

    def counting(data: bytes, side: int) -> Any:
        seen.append(len(data))
        return original(data, side)

    monkeypatch.setattr(decoding, "decode", counting)
    return seen
