"""The images that a person names, and how they are shown."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from inat_job.errors import BadDataError
from inat_job.inference.image_source import find_images
from inat_job.signals import never
from inat_job.storage import StorageOptions
from tests.harness.web_sites import Site, site  # noqa: F401  # a fixture


def test_find_images_shows_a_web_address_without_its_query(site: Site, tmp_path: Path) -> None:  # noqa: F811
    site.files["photos/cat.jpg"] = b"cat"
    found = find_images(f"{site.url}/photos/cat.jpg?token=hidden", tmp_path, StorageOptions(), never)
    assert [(name, load()) for name, load in found.load()] == [(f"{site.url}/photos/cat.jpg", b"cat")]


@pytest.mark.parametrize("name", ["cat dog.jpg", "what?.jpg"])
def test_find_images_shows_a_local_image_as_it_is_given(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"cat")
    for path in (f"{tmp_path}/{name}", (tmp_path / name).as_uri()):
        found = find_images(path, tmp_path, StorageOptions(), never)
        assert [(shown, load()) for shown, load in found.load()] == [(path, b"cat")]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
@pytest.mark.parametrize("name", ["pipe.jpg", "pipe.zip", "pipe"])
def test_find_images_says_what_a_pipe_or_device_is(make: Callable[[Path], None], name: str, tmp_path: Path) -> None:
    make(tmp_path / name)
    with pytest.raises(BadDataError, match=f"{name} is neither a file nor a folder: check the path"):
        find_images(f"{tmp_path}/{name}", tmp_path, StorageOptions(), never)
