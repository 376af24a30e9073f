"""Data as people have it: the same images as folders, tables and Parquet give the same index; wrong ones a sentence."""

import csv
import dataclasses
import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inat_job.data.cache_index import Cache, CacheIndex
from inat_job.data.layout import Arrangement
from inat_job.data.module import ImageDataModule
from inat_job.errors import BadDataError, ConflictError, UsageError
from inat_job.ingest import build_cache, data_source, inspect, label_file
from inat_job.settings import DataSettings, TrainSettings
from inat_job.signals import never
from inat_job.storage import StorageOptions
from tests.harness.made_images import encoded, write_folder, write_zip
from tests.harness.web_sites import Site

CLASSES = ("cat", "dog")
FLAT = {f"{label}/{at:02d}.jpg": encoded(100 * number + at) for number, label in enumerate(CLASSES) for at in range(8)}


def prepared(uri: object, cache_dir: Path, labels: object = None, test_share: float | None = None) -> Cache:
    options = StorageOptions(retries=0)
    table = label_file.read(str(labels), options, never) if labels else None
    arrangement = Arrangement(table, test_share)
    source = data_source.find(str(uri), cache_dir, options, never, arrangement)
    cache = build_cache.prepare(source, cache_dir, 32, 0.3, never)
    summary = inspect.summarise(str(uri), cache_dir / "elsewhere", 32, options, never, arrangement)
    assert sum(summary.training) == len(cache.index.rows("train")), "told before anything is decoded"
    return cache


def plain(index: CacheIndex) -> dict[str, Any]:
    """What does not say where the images came from, or who split them."""
    fields = dataclasses.asdict(index)
    return {name: value for name, value in fields.items() if name not in ("source", "digest", "skipped", "test_share")}


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = tmp_path_factory.mktemp("flat")
    return prepared(write_folder(folder / "images", FLAT), folder / "cache")


def split_of(flat: Cache) -> dict[str, str]:
    """The split of each file of FLAT that the job has chosen."""
    return {name.partition("/")[2]: name.partition("/")[0] for name in flat.index.ids}


def test_flat_folder_is_split_by_content(flat: Cache, tmp_path: Path) -> None:
    index = flat.index
    assert index.test_share == 0.2
    assert index.ids == tuple(sorted(index.ids))
    test = [index.labels[row] for row in index.rows("test")]
    assert (test, len(index.rows("train"))) == ([0, 0, 1, 1], 12)
    renamed = {name.replace(".jpg", "-again.jpg"): data for name, data in FLAT.items()}
    again = prepared(write_folder(tmp_path / "again", renamed), tmp_path / "cache").index
    content = dict(zip(index.hashes, index.splits, strict=True))
    assert dict(zip(again.hashes, again.splits, strict=True)) == content
    for seed in (0, 1):
        images = ImageDataModule(flat, TrainSettings(batch_size=2, seed=seed), DataSettings(image_size=32))
        assert images.test_rows.tolist() == index.rows("test").tolist()


def test_pixels_belong_to_their_images(flat: Cache, tmp_path: Path) -> None:
    """Rows change places when the splits are known."""
    tree = {f"{split}/{name}": FLAT[name] for name, split in split_of(flat).items()}
    other = prepared(write_folder(tmp_path / "tree", tree), tmp_path / "cache")
    assert other.index.test_share is None
    assert plain(other.index) == plain(flat.index)
    assert np.array_equal(other.pixels, flat.pixels)
    assert other.index.digest == flat.index.digest


def table(folder: Path, rows: list[list[str]], name: str, delimiter: str = ",") -> Path:
    path = folder / name
    if name.endswith(".parquet"):
        pq.write_table(pa.table(dict(zip(rows[0], zip(*rows[1:], strict=True), strict=True))), path)
        return path
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


@pytest.mark.parametrize(
    ("name", "delimiter", "header"),
    [
        ("labels.csv", ",", ["path", "label", "split"]),
        ("labels.tsv", "\t", ["Filename", "Class", "subset"]),
        ("labels.txt", ";", ["image", "category", "Split"]),
        ("labels.parquet", "", ["file_name", "label", "split"]),
    ],
)
def test_tables_give_the_same_index(flat: Cache, tmp_path: Path, name: str, delimiter: str, header: list[str]) -> None:
    """Of images that lie in one folder, and of an archive of class folders."""
    rows = [[file, file.partition("/")[0], split.title()] for file, split in split_of(flat).items()]
    path = table(tmp_path, [header, *rows], name, delimiter)
    archive = write_zip(tmp_path / "x.zip", {f"top/{file}": data for file, data in FLAT.items()} | {"top/no.jpg": b"x"})
    made = prepared(archive, tmp_path / "cache", path)
    assert plain(made.index) == plain(flat.index)
    assert made.index.skipped == ({"name": "top/no.jpg", "reason": "not in --labels"},)
    assert made.index.digest == flat.index.digest


def test_table_without_splits_or_suffixes(flat: Cache, tmp_path: Path) -> None:
    rows = [[file.replace("/", "-").removesuffix(".jpg"), file.partition("/")[0]] for file in FLAT]
    folder = write_folder(tmp_path / "images", {f"all/{file.replace('/', '-')}": data for file, data in FLAT.items()})
    made = prepared(folder, tmp_path / "cache", table(tmp_path, [["id", "breed"], *rows], "labels.csv")).index
    by_content = dict(zip(flat.index.hashes, zip(flat.index.splits, flat.index.labels, strict=True), strict=True))
    assert dict(zip(made.hashes, zip(made.splits, made.labels, strict=True), strict=True)) == by_content
    assert made.ids[0].startswith("test/cat/cat-")


def test_label_spelled_in_two_normal_forms_is_one_class(tmp_path: Path) -> None:
    folder, forms = write_folder(tmp_path / "images", FLAT), ("\u00e9l\u00e8ve", "e\u0301le\u0300ve")
    labels = ["cat" if at < len(FLAT) // 2 else forms[at % 2] for at in range(len(FLAT))]
    rows = zip(FLAT, labels, strict=True)
    made = prepared(folder, tmp_path / "cache", table(tmp_path, [["path", "label"], *rows], "labels.csv"))
    assert made.index.classes == ("cat", forms[0])
    assert prepared(repo_with_labels(tmp_path / "repo", labels), tmp_path / "cache").index.classes == ("cat", forms[0])


def test_other_table_is_another_cache(flat: Cache, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", FLAT)
    rows = [[file, file.partition("/")[0]] for file in FLAT]
    one = prepared(folder, tmp_path / "cache", table(tmp_path, [["path", "label"], *rows], "labels.csv"))
    rows[0][1] = "dog"
    two = prepared(folder, tmp_path / "cache", table(tmp_path, [["path", "label"], *rows], "labels.csv"))
    three = prepared(folder, tmp_path / "cache", test_share=0.5)
    assert len({one.folder, two.folder, three.folder}) == 3
    assert len({one.index.digest, two.index.digest, three.index.digest}) == 3
    assert len(three.index.rows("test")) == 8


def test_own_validation_images(flat: Cache, tmp_path: Path) -> None:
    splits = ("train", "validation", "test")
    tree = {f"{splits[(at % 5) % 3]}/{name}": data for at, (name, data) in enumerate(FLAT.items())}
    cache = prepared(write_folder(tmp_path / "tree", tree), tmp_path / "cache")
    train, data = TrainSettings(batch_size=2), DataSettings(image_size=32)
    images = ImageDataModule(cache, train, data)
    own = [row for row, name in enumerate(cache.index.ids) if name.startswith("val/")]
    assert images.val_rows.tolist() == images.held_out_rows.tolist() == own
    assert images.val_share is None
    assert ImageDataModule(cache, dataclasses.replace(train, seed=1), data).split_digest == images.split_digest
    final = ImageDataModule(cache, dataclasses.replace(train, final=True), data)
    assert len(final.train_rows) == len(images.train_rows) + len(own)
    with pytest.raises(ConflictError, match="--val-share is 0.3, but .* has 6 validation images of its own: leave it"):
        ImageDataModule(cache, train, dataclasses.replace(data, val_share=0.3))


def test_val_share(flat: Cache) -> None:
    images = ImageDataModule(flat, TrainSettings(batch_size=2), DataSettings(image_size=32, val_share=0.5))
    assert (len(images.val_rows), len(images.train_rows), images.val_share) == (6, 6, 0.5)


def hub_repo(splits: dict[str, str]) -> dict[str, bytes]:
    """The files of FLAT as a repository of the Hugging Face Hub has them, in two shards for training."""
    features = {"image": {"_type": "Image"}, "label": {"names": [*CLASSES], "_type": "ClassLabel"}}
    files = {"README.md": b"---", "data/.gitattributes": b""}
    for split in sorted(set(splits.values())):
        names = sorted(name for name, its in splits.items() if its == split)
        for shard in range(2 if split == "train" else 1):
            part = names[shard::2] if split == "train" else names
            made = pa.table(
                {
                    "image": [{"bytes": FLAT[name], "path": Path(name).name} for name in part],
                    "label": [CLASSES.index(name.partition("/")[0]) for name in part],
                }
            ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
            buffer = io.BytesIO()
            pq.write_table(made, buffer, row_group_size=3)
            files[f"data/{split}-{shard:05d}-of-00002.parquet"] = buffer.getvalue()
    return files


def test_hub_repo_gives_the_same_index(flat: Cache, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "repo", hub_repo(split_of(flat)))
    made = prepared(folder, tmp_path / "cache")
    assert plain(made.index) == plain(flat.index)
    assert np.array_equal(made.pixels, flat.pixels)


def test_hub_repo_over_http(flat: Cache, tmp_path: Path, site: Site) -> None:
    repo = hub_repo(split_of(flat))
    files = {name: data for name, data in repo.items() if name.endswith(".parquet")}
    site.files |= {f"files/{name}": data for name, data in files.items()}
    site.files["pets.parquet"] = next(data for name, data in files.items() if "test-" in name)
    site.etags = {name: f'"{len(data)}"' for name, data in site.files.items()}
    urls = {name: [f"{site.url}/files/{each}" for each in files if name in each] for name in ("train", "test")}
    site.files["api/datasets/some/pets/parquet"] = json.dumps({"default": urls}).encode()
    assert plain(prepared(f"{site.url}/datasets/some/pets", tmp_path / "cache").index) == plain(flat.index)
    one = f"{site.url}/pets.parquet?signature=x"
    assert len(prepared(one, tmp_path / "cache").index.ids) == 4
    site.etags = {}
    with pytest.raises(BadDataError, match="as its server reports no version of it: download it first"):
        prepared(one, tmp_path / "cache")


def test_parquet_file_alone_is_split(tmp_path: Path) -> None:
    [(_, data)] = [each for each in hub_repo(dict.fromkeys(FLAT, "test")).items() if "test-" in each[0]]
    (tmp_path / "pets.parquet").write_bytes(data)
    index = prepared(tmp_path / "pets.parquet", tmp_path / "cache").index
    assert (index.test_share, index.splits.count("train"), index.splits.count("test")) == (0.2, 12, 4)


WRONG_TABLES = [
    ("a,b\ncat/00.jpg,cat\n", "begins with a, b: its first row must name the columns path and label"),
    ("path,label\n", "has no rows: complete it"),
    ("path,label\ncat/00.jpg\n", "Line 2 of --labels .* has 1 values, and the first 2"),
    ("path,label\ncat/00.jpg,\n", "Line 2 of --labels .* has an empty label"),
    ('path,label\n\n"cat/\n00.jpg",cat\n\n,dog\n', "Line 6 of --labels .* has an empty path"),
    ("path,label,split\ncat/00.jpg,cat,holdout\n", "Line 2 of --labels .* has the split 'holdout': use train, val or"),
    ("path,label\ncat/00.jpg,cat\ncat/00.jpg,dog\n", "lists cat/00.jpg twice"),
    ("path,label,split\ncat/00.jpg,cat,train\ncat/00,cat,test\n", "lists cat/00.jpg twice, under different paths"),
    ("path,label\ncat/00.jpg,cat\nnone.jpg,dog\n", "1 of the 2 images in --labels .* are not in .*, first 'none.jpg'"),
    ("path,label\ncat/00.jpg,cat\ncat/01.jpg,cat\n", "has only one class, cat: at least two"),
    ("path,label,split\ncat/00.jpg,cat,val\ncat/01.jpg,dog,test\n", "lists no training images"),
    ("path,label,split\ncat/00.jpg,cat,train\ndog/01.jpg,dog,train\n", "lists only training images: add test images"),
    ('path,label\n"cat/00.jpg,cat\n', "is not a table of values"),
    ("path,label\ncat/00.jpg,cat\ndog/00.jpg,dog\n", "only one image of cat, dog"),
]


def test_paths_that_fit_two_folders_or_two_files_are_refused(tmp_path: Path) -> None:
    image = FLAT[next(iter(FLAT))]
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\n1,a\n2,a\n3,b\n4,b\n")
    files = {f"{folder}/{number}.png": image for folder in ("train", "test") for number in range(1, 5)}
    with pytest.raises(BadDataError, match=r"in more than one folder of .*, test/, train/: write the folder"):
        prepared(write_folder(tmp_path / "both", files), tmp_path / "cache", labels)
    files = {f"train/{number}.png": image for number in range(1, 5)} | {"train/1.jpg": image}
    with pytest.raises(BadDataError, match="lists '1', and .* has several images of that name: add the suffix"):
        prepared(write_folder(tmp_path / "twins", files), tmp_path / "cache", labels)


@pytest.mark.parametrize(("text", "said"), WRONG_TABLES)
def test_wrong_table_says_what_is_wrong(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(BadDataError, match=said):
        prepared(write_folder(tmp_path / "images", FLAT), tmp_path / "cache", tmp_path / "labels.csv")


def test_labels_of_another_kind_and_missing_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"labels.xlsx is not called .csv, .tsv, .txt or .parquet: convert it"):
        label_file.read(str(tmp_path / "labels.xlsx"), StorageOptions(), never)
    with pytest.raises(BadDataError, match=r"labels.csv does not exist: check --labels"):
        label_file.read(str(tmp_path / "labels.csv"), StorageOptions(), never)
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(BadDataError, match=r"pipe.csv is neither a file nor a folder: check --labels"):
        label_file.read(str(tmp_path / "pipe.csv"), StorageOptions(), never)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(BadDataError, match=r"folder.csv is a folder, not a file: check --labels"):
        label_file.read(str(tmp_path / "folder.csv"), StorageOptions(), never)


@pytest.mark.parametrize("empty", [None, float("nan")])
def test_empty_cell_of_a_parquet_table_is_no_class(empty: float | None, tmp_path: Path) -> None:
    table = pa.table({"path": ["cat/00.jpg", "dog/01.jpg"], "label": pa.array([1.0, empty], from_pandas=False)})
    pq.write_table(table, tmp_path / "labels.parquet")
    with pytest.raises(BadDataError, match=r"Row 2 of --labels .* has an empty label: fill it in"):
        label_file.read(str(tmp_path / "labels.parquet"), StorageOptions(), never)


def repo_with_labels(folder: Path, labels: list[Any], classes: tuple[str, ...] = ()) -> Path:
    """A folder of one Parquet file, with an image for each label."""
    images = [{"bytes": data, "path": Path(name).name} for name, data in [*FLAT.items()][: len(labels)]]
    table = pa.table({"image": images, "label": pa.array(labels, from_pandas=False)})
    if classes:
        features = {"label": {"names": classes, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    folder.mkdir()
    pq.write_table(table, folder / "pets.parquet")
    return folder


@pytest.mark.parametrize("empty", [None, float("nan"), -1.0])
def test_rows_of_a_parquet_file_without_a_label_are_left_out(empty: float | None, tmp_path: Path) -> None:
    folder = repo_with_labels(tmp_path / "repo", [*[0.0] * 6, *[1.0] * 6, empty], CLASSES)
    index = prepared(folder, tmp_path / "cache").index
    assert (index.classes, len(index.ids)) == (CLASSES, 12)
    assert index.skipped == ({"name": "pets.parquet, row 13", "reason": "no label"},)


def test_label_that_stands_for_no_class_is_bad_data(tmp_path: Path) -> None:
    folder = repo_with_labels(tmp_path / "repo", [0, 0, 1, 1, 2], CLASSES)
    with pytest.raises(BadDataError, match=r"Row 5 of .*pets.parquet has the label 2, and .* 2 classes, from 0 to 1"):
        prepared(folder, tmp_path / "cache")


def test_wrong_parquet_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "repo"
    folder.mkdir()
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), folder / "x.parquet")
    with pytest.raises(BadDataError, match="x.parquet has the columns text, label: it needs image, with bytes, and"):
        prepared(folder, tmp_path / "cache")
    (folder / "x.parquet").write_bytes(b"PAR1" + b"x" * 100)
    with pytest.raises(BadDataError, match="x.parquet is no intact Parquet file"):
        prepared(folder, tmp_path / "cache")
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match="needs pyarrow: pip install pyarrow, .*=parquet, or use files"):
        prepared(folder, tmp_path / "cache")


def test_interrupted_split_is_made_again(flat: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill after the rows have changed places leaves rows that do not match the journal."""
    folder = write_folder(tmp_path / "images", FLAT)
    monkeypatch.setattr(CacheIndex, "save", lambda self, folder: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(ConflictError):
        prepared(folder, tmp_path / "cache")
    monkeypatch.undo()
    again = prepared(folder, tmp_path / "cache")
    assert plain(again.index) == plain(flat.index)
    assert np.array_equal(again.pixels, flat.pixels)


def test_flat_archive_keeps_its_digest(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "x.zip", FLAT)
    shutil.copy(archive, tmp_path / "y.zip")
    one, two = (prepared(tmp_path / name, tmp_path / "cache") for name in ("x.zip", "y.zip"))
    assert one.folder == two.folder
