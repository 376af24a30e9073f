"""A data set and settings for small runs."""

from functools import partial
from pathlib import Path

import pytest

from tests.harness.job_runs import Make, settings_in
from tests.harness.made_images import tree, write_zip


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_zip(tmp_path_factory.mktemp("data") / "x.zip", tree(train=20, test=5))


@pytest.fixture
def settings(archive: Path, tmp_path: Path) -> Make:
    """Makes small settings; `dotted__names` stand for section.field."""
    return partial(settings_in, tmp_path, archive)
