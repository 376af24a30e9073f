"""What the tests of this folder share."""

from typing import Any

import pytest

from inat_job.ingest import decode_all
from tests.harness.web_sites import site  # noqa: F401  # a fixture


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each image that is decoded."""
    seen: list[int] = []
    original = decode_all.decode

    def counting(data: bytes, side: int) -> Any:
        seen.append(len(data))
        return original(data, side)

    monkeypatch.setattr(decode_all, "decode", counting)
    return seen
