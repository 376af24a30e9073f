"""File names that are no UTF-8, as disks and tars may hold them."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from inat_job.data import layout
from inat_job.errors import BadDataError
from inat_job.ingest import build_cache, data_source
from inat_job.signals import never
from inat_job.storage import StorageOptions
from tests.harness.made_images import encoded, tree, write_folder, write_tar

Write = Callable[[Path, Mapping[str, bytes]], Path]
ODD = os.fsdecode(b"caf\xe9")


def prepared(path: Path, cache_dir: Path) -> build_cache.Cache:
    source = data_source.find(str(path), cache_dir, StorageOptions(), never)
    return build_cache.prepare(source, cache_dir, 32, 0.1, never)


@pytest.mark.parametrize("write", [write_folder, write_tar])
def test_a_image_is_rejected_by_name(write: Write, tmp_path: Path) -> None:
    files = tree(root="") | {f"train/Ants/{ODD}.jpg": encoded(9)}
    cache = prepared(write(tmp_path / "x.tar", files), tmp_path / "cache")
    assert cache.index.rejected == ({"id": r"train/Ants/caf\udce9.jpg", "reason": "a name that is not UTF-8"},)
    assert len(cache.index.ids) == 42
    json.dumps(cache.index.ids + cache.index.classes, ensure_ascii=False).encode()


@pytest.mark.parametrize("write", [write_folder, write_tar])
def test_a_class_is_bad_data(write: Write, tmp_path: Path) -> None:
    files = tree(root="") | {f"{split}/{ODD}/1.jpg": encoded(9) for split in ("train", "val")}
    with pytest.raises(BadDataError, match=r"class folder 'caf\\udce9'.* rename it"):
        prepared(write(tmp_path / "x.tar", files), tmp_path / "cache")


@pytest.mark.parametrize("write", [write_folder, write_tar])
def test_the_place_itself_may_be_odd(write: Write, tmp_path: Path) -> None:
    cache = prepared(write(tmp_path / f"{ODD}.tar", tree()), tmp_path / "cache")
    assert len(cache.index.ids) == 42


def test_what_is_text() -> None:
    assert layout.is_text("Straße/图.jpg")
    assert layout.is_text("odd\x01but\ntext")
    assert not layout.is_text(ODD)
