"""What archives of users contain besides good images: bad data with one message, or one image less."""

import gzip
import io
import json
import lzma
import os
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from PIL import Image

from inat_job.data.cache_index import Cache
from inat_job.errors import BadDataError
from inat_job.ingest import build_cache, container, data_source, zip_directory
from inat_job.ingest.inspect import DataSetSummary, summarise
from inat_job.signals import never
from inat_job.storage import StorageOptions
from tests.harness.made_images import encoded, tree, write_folder, write_tar, write_zip

FIRST = "some/where/train/Ants/00.jpg"
NOT_UTF8 = os.fsdecode(b"caf\xe9")
Write = Callable[[Path, Mapping[str, bytes]], Path]


def prepared(path: Path, max_broken: float = 0.05) -> Cache:
    cache_dir = path.parent / "cache"
    source = data_source.find(str(path), cache_dir, StorageOptions(), never)
    return build_cache.prepare(source, cache_dir, 32, max_broken, never)


def animated(format: str) -> bytes:
    """An animation whose first frame is red."""
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "green", "blue")] * 200
    buffer = io.BytesIO()
    frames[0].save(buffer, format, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"this is text", "not an image"),
        (encoded(1)[:200], "truncated file"),
        (b"%PDF-1.4 and so on", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 60, 0, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0), "pixels"),
    ],
)
def test_broken_image_is_rejected_with_reason(data: bytes, reason: str, tmp_path: Path) -> None:
    index = prepared(write_zip(tmp_path / "x.zip", {**tree(), FIRST: data})).index
    [rejected] = index.rejected
    assert rejected["id"] == "train/Ants/00.jpg"
    assert reason in rejected["reason"]
    assert len(index.ids) == 41


def test_format_is_detected_by_content(tmp_path: Path) -> None:
    files = {**tree(), FIRST: encoded(5, format="PNG")}
    assert prepared(write_zip(tmp_path / "x.zip", files)).index.rejected == ()


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_animation_is_used(format: str, tmp_path: Path) -> None:
    cache = prepared(write_zip(tmp_path / "x.zip", {**tree(), FIRST: animated(format)}))
    row = cache.index.ids.index("train/Ants/00.jpg")
    red, green, blue = cache.pixels[row].reshape(-1, 3).mean(axis=0)
    assert (red > 240, green < 15, blue < 15) == (True, True, True)


def with_flag(data: bytes, flag: int, method: int | None = None) -> bytes:
    """A zip with a flag, and optionally another compression method, set in all of its headers."""
    changed = bytearray(data)
    for mark, at_flag in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = changed.find(mark)
        while at >= 0:
            changed[at + at_flag] |= flag
            if method is not None:
                changed[at + at_flag + 2 : at + at_flag + 4] = struct.pack("<H", method)
            at = changed.find(mark, at + 4)
    return bytes(changed)


@pytest.mark.parametrize("method", [None, 99])
def test_encrypted_zip_is_bad_data(method: int | None, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", tree())
    path.write_bytes(with_flag(path.read_bytes(), 1, method))
    with pytest.raises(BadDataError, match=r"x.zip is encrypted: use an archive without a password"):
        prepared(path)


def test_unknown_compression_is_rejected(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", tree())
    path.write_bytes(with_flag(path.read_bytes(), 0, 97))
    with pytest.raises(BadDataError, match="42 of 42 images .*compression method 97 is not supported"):
        prepared(path)


@pytest.mark.parametrize("write", [write_zip, write_tar])
@pytest.mark.parametrize("prefix", ["../../../", "some/../../where/", "/etc/../"])
def test_path_traversal_writes_nothing(write: Callable[..., Path], prefix: str, tmp_path: Path) -> None:
    suffix = ".zip" if write is write_zip else ".tar"
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in" / f"x{suffix}", {**tree(), f"{prefix}train/Ants/evil.jpg": encoded(9)})
    before = {each for each in tmp_path.rglob("*") if "cache" not in each.parts}
    index = prepared(path).index
    assert len(index.ids) == 42
    assert {each for each in tmp_path.rglob("*") if "cache" not in each.parts} == before


def test_absolute_member_names(tmp_path: Path) -> None:
    files = {f"/{name}": data for name, data in tree().items()}
    assert len(prepared(write_zip(tmp_path / "x.zip", files)).index.ids) == 42


def test_devices_and_pipes_are_ignored(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", tree())
    with tarfile.open(path, "a") as archive:
        for number, kind in enumerate((tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE)):
            member = tarfile.TarInfo(f"some/where/train/Ants/odd{number}.jpg")
            member.type = kind
            archive.addfile(member)
    assert len(prepared(path).index.ids) == 42


def test_names_differing_in_case_are_two_images(tmp_path: Path) -> None:
    files = {**tree(), "some/where/train/Ants/A.jpg": encoded(7), "some/where/train/Ants/a.jpg": encoded(8)}
    assert len(prepared(write_zip(tmp_path / "x.zip", files)).index.ids) == 44


def test_classes_differing_in_case_are_bad_data(tmp_path: Path) -> None:
    more = {name.replace("Ants", "ants"): data for name, data in tree().items()}
    with pytest.raises(BadDataError, match="classes that differ only in capitals, Ants and ants: rename one"):
        prepared(write_zip(tmp_path / "x.zip", {**tree(), **more}))


def winrar_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    """A zip as WinRAR and 7-Zip write it: `?` for letters that the code page lacks, the name in an extra field."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            member = zipfile.ZipInfo(name.encode("ascii", "replace").decode())
            field = struct.pack("<BL", 1, zlib.crc32(member.filename.encode())) + name.encode()
            member.extra = struct.pack("<HH", 0x9999, 1) + b"?" + struct.pack("<HH", 0x7075, len(field)) + field
            archive.writestr(member, data)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_with_names_in_an_extra_field_keeps_its_classes(tmp_path: Path) -> None:
    files = {name.replace("Ants", "猫").replace("Bees", "狗"): data for name, data in tree(root="").items()}
    index = prepared(winrar_zip(tmp_path / "x.zip", files)).index
    assert index.classes == ("Cats", "狗", "猫")
    assert (len(index.ids), index.rejected, index.skipped) == (42, (), ())


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_extra_field_of_another_name_is_not_believed(tmp_path: Path) -> None:
    path = winrar_zip(tmp_path / "x.zip", {name.replace("Ants", "Änts"): data for name, data in tree(root="").items()})
    path.write_bytes(path.read_bytes().replace(b"?nts", b"!nts"))  # renamed by a program that ignores the field
    assert prepared(path).index.classes == ("!nts", "Bees", "Cats")


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_members_of_one_name_are_named(suffix: str, tmp_path: Path) -> None:
    write = write_zip if suffix == ".zip" else write_tar
    path = write(tmp_path / f"x{suffix}", tree())
    if suffix == ".zip":
        with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr(FIRST, encoded(7))
    else:
        with tarfile.open(path, "a") as more:
            member = tarfile.TarInfo(FIRST)
            member.size = len(encoded(7))
            more.addfile(member, io.BytesIO(encoded(7)))
    index = prepared(path).index
    assert len(index.ids) == 42
    assert index.skipped == ({"name": FIRST, "reason": "another file of the same name follows"},)


def test_thumbnails_of_a_nas_are_no_images(tmp_path: Path) -> None:
    files = tree(root="") | {"train/Ants/@eaDir/00.jpg/SYNOPHOTO_THUMB_XL.jpg": encoded(9)}
    index = prepared(write_zip(tmp_path / "x.zip", files)).index
    assert (len(index.ids), index.skipped) == (42, ())


def test_sidecars_and_files_elsewhere_are_skipped_and_counted_apart(tmp_path: Path) -> None:
    more = {
        "train/Ants/0.xml": b"<?xml version='1.0'?>",
        "train/Bees/0.MOV": b"\0\0\0\x14ftypqt  ",
        "val/0.jpg": encoded(9),
    }
    index = prepared(write_zip(tmp_path / "x.zip", tree(root="") | more), max_broken=0).index
    assert (len(index.ids), index.rejected) == (42, ())
    assert index.skipped == (
        {"name": "train/Ants/0.xml", "reason": "a sidecar, not an image in a format that is read (XML)"},
        {"name": "train/Bees/0.MOV", "reason": "a sidecar, not an image in a format that is read (a video)"},
        {"name": "val/0.jpg", "reason": "not in a class folder"},
    )


def test_image_with_the_name_of_a_sidecar_is_an_image(tmp_path: Path) -> None:
    index = prepared(write_zip(tmp_path / "x.zip", tree(root="") | {"train/Ants/x.txt": encoded(9)})).index
    assert (len(index.ids), index.skipped) == (43, ())


@pytest.mark.parametrize("levels", [1, 15])
def test_images_of_nearly_one_colour_are_named(levels: int, tmp_path: Path) -> None:
    """As colours of 12 bits in 16, of which Pillow keeps the upper eight."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").point(lambda level: level * levels // 255).convert("RGB").save(buffer, "PNG")
    index = prepared(write_zip(tmp_path / "x.zip", tree() | {FIRST: buffer.getvalue()})).index
    assert index.blank == ("train/Ants/00.jpg",)


def test_images_of_one_colour_are_named(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "grey").save(buffer, "PNG")
    index = prepared(write_zip(tmp_path / "x.zip", tree() | {FIRST: buffer.getvalue()})).index
    assert index.blank == ("train/Ants/00.jpg",)
    assert len(index.ids) == 42


def test_dead_link_is_a_rejected_image(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "x", tree(root=""))
    (folder / "train/Ants/gone.jpg").symlink_to("nowhere.jpg")
    (folder / "train/Ants/self.jpg").symlink_to("self.jpg")
    (folder / "train/dog.jpg").symlink_to(tmp_path / "unmounted")
    (folder / "x").symlink_to(folder / "x")
    (folder / "train/Ants/up").symlink_to("..")
    os.mkfifo(folder / "train/Ants/pipe.jpg")
    index = prepared(folder, max_broken=0.1).index
    assert len(index.ids) == 42
    assert index.rejected == (
        {"id": "train/Ants/gone.jpg", "reason": "a dead link"},
        {"id": "train/Ants/pipe.jpg", "reason": "neither a file nor a folder"},
        {"id": "train/Ants/self.jpg", "reason": "a dead link"},
    )
    assert index.skipped == (
        {"name": "train/Ants/up", "reason": "a link to a folder that it is in"},
        {"name": "train/dog.jpg", "reason": "a dead link"},
        {"name": "x", "reason": "a dead link"},
    )


def test_link_in_place_of_a_class_folder_is_refused(tmp_path: Path) -> None:
    """Also in both splits, where the classes would still be the same."""
    folder = write_folder(tmp_path / "x", tree())
    links = [f"some/where/{split}/Dogs" for split in ("train", "val")]
    with tarfile.open(write_tar(tmp_path / "x.tar", tree()), "a") as archive:
        for name in links:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, "../pool"
            archive.addfile(link)
    with zipfile.ZipFile(write_zip(tmp_path / "x.zip", tree()), "a") as archive:
        for name in links:
            member = zipfile.ZipInfo(name)
            member.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(member, "../pool")
    for name in links:
        (folder / name).symlink_to("unmounted")
    for path, found in ((folder, "a dead link"), (tmp_path / "x.zip", "a link"), (tmp_path / "x.tar", "a link")):
        message = f"{path} has {found} in place of the class folder {links[0]}: put the folder itself there"
        for read in (prepared, summarised) if path.suffix != ".tar" else (prepared,):
            with pytest.raises(BadDataError, match=message):
                read(path)


def test_link_beside_the_class_folders_of_a_tar_keeps_its_reason(tmp_path: Path) -> None:
    with tarfile.open(write_tar(tmp_path / "x.tar", tree(root="")), "a") as archive:
        link = tarfile.TarInfo("latest")
        link.type, link.linkname = tarfile.SYMTYPE, "train"
        archive.addfile(link)
    assert prepared(tmp_path / "x.tar").index.skipped == ({"name": "latest", "reason": "a link, not an image"},)


def test_damaged_name_in_a_zip_counts_as_a_broken_image(tmp_path: Path) -> None:
    """A flip in the directory, which has no checksum: out of its folder, hidden, and onto another's name."""
    path = write_zip(tmp_path / "x.zip", tree(root="") | {"README": b"x"})
    data = bytearray(path.read_bytes())
    start = zipfile.ZipFile(path).start_dir
    for name, at, bit in (("train/Ants/03.jpg", 0, 1), ("train/Bees/03.jpg", 11, 0x1E), ("train/Cats/03.jpg", 12, 1)):
        data[data.index(name.encode(), start) + at] ^= bit
    path.write_bytes(data)
    with pytest.raises(BadDataError, match=r"3 of 42 images of .*x.zip cannot be read"):
        prepared(path)
    index = prepared(path, max_broken=0.1).index
    reason = "damaged in the archive: its name differs from the one in the directory"
    assert {each["id"]: each["reason"] for each in index.rejected} == dict.fromkeys(
        ("train/Bees/.3.jpg", "train/Cats/02.jpg", "urain/Ants/03.jpg"), reason
    )
    assert index.skipped == ({"name": "README", "reason": "not in a class folder"},)


@pytest.mark.parametrize("names", [("Ants", "Bees"), ("zAnts", "zBees")])
def test_class_folders_that_are_links_into_a_pool(names: tuple[str, str], tmp_path: Path) -> None:
    """Also of several classes into one folder, and from both splits, whatever the order in the directory."""
    folder = write_folder(tmp_path / "x", {f"pool/{number}.jpg": encoded(number) for number in range(5)})
    for split in ("train", "val"):
        (folder / split).mkdir()
        for name in names:
            (folder / split / name).symlink_to("../pool")
        (folder / split / "up").symlink_to("..")  # an ancestor, which is not followed
    index = prepared(folder).index
    assert (index.classes, len(index.ids)) == (names, 20)


@pytest.mark.parametrize("write", [write_zip, write_tar])
@pytest.mark.parametrize("name", ["a/" * 30_000 + "x", "train/" * 100 + "x.jpg", "x" * 5000, "a\\" * 100 + "x"])
def test_long_or_deep_name_is_refused_before_it_is_split(write: Write, name: str, tmp_path: Path) -> None:
    path = write(tmp_path / ("x.zip" if write is write_zip else "x.tar.gz"), {name: b"", **tree()})
    with pytest.raises(BadDataError, match=r"has a path of \d+ letters and \d+ folders, .*: use at most 4096 and 64"):
        prepared(path)


@pytest.mark.parametrize("is_zip64", [False, True])
def test_too_many_members_are_refused_by_the_stated_number(
    is_zip64: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "MAX_MEMBERS", 40 if not is_zip64 else 1_500_000)
    path = write_zip(tmp_path / "x.zip", tree())
    if is_zip64:  # which states two million
        data = path.read_bytes()
        end = data.index(b"PK\5\6")
        many = struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 2_000_000, 2_000_000, 100, 0)
        locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
        last = struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
        path.write_bytes(data[:end] + many + locator + last)
    monkeypatch.setattr(zip_directory, "ZipDirectory", lambda *fields: pytest.fail("the directory was read"))
    number = "2,000,000" if is_zip64 else "45"
    with pytest.raises(BadDataError, match=f"x.zip has {number} members or more, and at most"):
        prepared(path)


def test_nested_archive_is_bad_data(tmp_path: Path) -> None:
    inner = write_zip(tmp_path / "inner.zip", tree()).read_bytes()
    with pytest.raises(BadDataError, match="holds neither train"):
        prepared(write_zip(tmp_path / "x.zip", {"inner.zip": inner}))


def test_large_member_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "MAX_FILE_BYTES", 2**20)
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**tree(), FIRST: bytes(2**20 + 1)}.items():
            archive.writestr(name, data)
    [rejected] = prepared(path).index.rejected
    assert "are more than" in rejected["reason"]


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (
            lambda data: data[: len(data) // 2],
            r"x.zip is cut off: it has [0-9,]+ bytes, without the directory",
        ),
        (lambda data: data[:500] + data[2500:], r"x.zip lacks 2,000 of the [0-9,]+ bytes that it had"),
        (lambda data: data[2000:], r"x.zip lacks 2,000 of the [0-9,]+ bytes that it had"),
        (lambda data: data[:-18] + b"\1" + data[-17:], r"x.zip is a part of a split zip: join all parts"),
    ],
)
def test_zip_without_some_of_its_bytes_is_no_bomb(cut: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", tree())
    path.write_bytes(cut(path.read_bytes()))
    for read in (prepared, summarised):
        with pytest.raises(BadDataError, match=message):
            read(path)


def summarised(path: Path) -> DataSetSummary:
    return summarise(str(path), path.parent / "unused", 32, StorageOptions())


def test_bytes_before_a_zip_do_no_harm(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", tree())
    path.write_bytes(b"MZ" * 50 + path.read_bytes())
    assert len(prepared(path).index.ids) == 42


GZIP = gzip.compress(b"x" * 99, mtime=0)
"""Without the time, which would make another name of the test in each process."""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.zip", b"7z\xbc\xaf\x27\x1c" + bytes(90), "is a 7z archive, not a zip: pack its files as .zip or .tar.gz"),
        ("x.zip", b"Rar!\x1a\x07\x01\x00" + bytes(90), "is a RAR archive, not a zip: pack its files as"),
        ("x.zip", lzma.compress(b"x" * 99), r"is an xz-compressed file, .*: call it .tar.xz if it holds a tar"),
        ("x.zip", GZIP, r"is a gzip-compressed file, .*: call it .tar.gz if it holds a tar"),
        ("x.zip", "tar", "is a tar archive, whatever its name says: call it .tar"),
        ("x.zip", b"<!DOCTYPE html><html>", "is an HTML page, not an archive: open the address"),
        ("x.tar.gz", "zip", "is a zip archive, whatever its name says: call it .zip"),
        ("x.tar", b"7z\xbc\xaf\x27\x1c" + bytes(90), "is a 7z archive, not a tar: pack its files as"),
        *((f"x.{name}", encoded(1, format=kind), f"is a {kind} image, not a {name[:3]}: check its address")
          for name in ("zip", "tar", "tar.gz") for kind in ("JPEG", "PNG", "GIF", "WebP", "BMP")),
        ("x.zip", bytes(range(128, 256)), "is no zip archive, by its beginning and its end: check its address"),
        ("x.tar", b"version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer, not a tar: run git lfs pull"),
    ],
)  # fmt: skip
def test_archive_of_another_kind_is_named(name: str, content: bytes | str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if isinstance(content, str):
        other = (write_zip if content == "zip" else write_tar)(tmp_path / f"other.{content}", tree())
        content = other.read_bytes()
    path.write_bytes(content)
    for read in (prepared, summarised):
        with pytest.raises(BadDataError, match=f"{name} {message}"):
            read(path)


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz", "x"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: upload it again"),
        (b"<!-- saved --><html>", "is an HTML page, not an archive"),
        (b"\xef\xbb\xbf<!DOCTYPE html>", "is an HTML page, not an archive"),
        (b"\x28\xb5\x2f\xfd" + bytes(90), "is a zstd-compressed file"),
        (b"\x04\x22\x4d\x18" + bytes(90), "is an lz4-compressed file"),
        (b"Rar!\x1a\x07\x01\x00" + bytes(90), "is a RAR archive"),
    ],
)
def test_preflight_and_prepare_say_the_same(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    said = []
    for read in (prepared, summarised):
        with pytest.raises(BadDataError, match=f"{name} {message}") as caught:
            read(tmp_path / name)
        said.append(str(caught.value))
    assert said[0] == said[1]


@pytest.mark.parametrize(("suffix", "pack"), [("xz", "xz"), ("bz2", "bz2"), ("txz", "xz"), ("tbz2", "bz2")])
def test_other_compressions_of_a_tar_are_read(suffix: str, pack: str, tmp_path: Path) -> None:
    path = tmp_path / (f"x.tar.{suffix}" if suffix == pack else f"x.{suffix}")
    with tarfile.open(path, f"w:{pack}") as archive:  # type: ignore[call-overload]
        archive.add(write_folder(tmp_path / "files", tree(root="")), ".")
    assert len(prepared(path).index.ids) == 42
    assert summarised(path).doubt


NFC, NFD = (unicodedata.normalize(form, "Vögel") for form in ("NFC", "NFD"))


@pytest.mark.parametrize("write", [write_zip, write_tar, write_folder])
def test_composed_and_decomposed_names_are_one(write: Write, tmp_path: Path) -> None:
    """A Mac takes letters apart: train may come from one and val from Linux."""
    names = {"train": NFD, "val": NFC}
    files = {
        f"{split}/{label}/ä{number}.jpg": encoded(number)
        for split, kind in names.items()
        for label in (kind, "A")
        for number in range(3)
    }
    twice = f"train/{NFD}/{unicodedata.normalize('NFD', 'ä0.jpg')}"
    path = write(
        tmp_path / {write_zip: "x.zip", write_tar: "x.tar", write_folder: "x"}[write], {**files, twice: encoded(9)}
    )
    assert "12 images of 2 classes" in summarised(path).text or path.suffix == ".tar"
    index = prepared(path).index
    assert index.classes == ("A", NFC)
    assert len(index.ids) == 12
    assert index.ids == tuple(unicodedata.normalize("NFC", each) for each in index.ids)
    assert [each["reason"] for each in index.skipped] == ["another file of the same name follows"]


def test_zip_of_a_mac_has_the_names_of_a_folder(tmp_path: Path) -> None:
    """macOS packs UTF-8, taken apart, without the flag for it."""
    files = {
        f"{split}/{label}/{n}.jpg": encoded(n) for split in ("train", "val") for label in (NFC, "A") for n in (1, 2)
    }
    path = write_zip(tmp_path / "x.zip", {unicodedata.normalize("NFD", name): data for name, data in files.items()})
    data = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = data.find(mark)
        while at >= 0:
            data[at + flags + 1] &= 0xF7
            at = data.find(mark, at + 4)
    path.write_bytes(data)
    folder = prepared(write_folder(tmp_path / "folder", files)).index
    assert (prepared(path).index.ids, prepared(path).index.classes) == (folder.ids, folder.classes)


def test_zip_bomb_is_bad_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "ALWAYS_ALLOWED_BYTES", 2**20)
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(5):
            archive.writestr(f"train/Ants/{number}.jpg", bytes(2**20))
    with pytest.raises(BadDataError, match="is a zip bomb"):
        prepared(path)


def test_overlapping_members_are_a_zip_bomb(tmp_path: Path) -> None:
    """As in Fifield's bomb, many directory entries share one member."""
    path = write_zip(tmp_path / "x.zip", {"train/Ants/0.jpg": bytes(100_000)})
    data = path.read_bytes()
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    entry = data[start:end]
    entries = b"".join(entry.replace(b"Ants/0", b"Ants/%d" % number) for number in range(10))
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 10, 10, len(entries), start, 0)
    path.write_bytes(data[:start] + entries + tail)
    assert len(zipfile.ZipFile(path).infolist()) == 10
    with pytest.raises(BadDataError, match="is a zip bomb"):
        prepared(path)


def test_tar_bomb_is_bad_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "ALWAYS_ALLOWED_BYTES", 2**20)
    path = tmp_path / "x.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=9) as archive:
        for number in range(13):
            member = tarfile.TarInfo(f"train/Ants/{number}.jpg")
            member.size = 2**20
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    with pytest.raises(BadDataError, match="is a zip bomb"):
        prepared(path)


@pytest.mark.parametrize("write", [write_folder, write_tar])
def test_image_name_not_utf8_is_rejected(write: Write, tmp_path: Path) -> None:
    files = tree(root="") | {f"train/Ants/{NOT_UTF8}.jpg": encoded(9)}
    cache = prepared(write(tmp_path / "x.tar", files))
    assert cache.index.rejected == ({"id": r"train/Ants/caf\udce9.jpg", "reason": "its name is not UTF-8"},)
    assert len(cache.index.ids) == 42
    json.dumps(cache.index.ids + cache.index.classes, ensure_ascii=False).encode()


@pytest.mark.parametrize("write", [write_folder, write_tar])
def test_class_name_not_utf8_is_bad_data(write: Write, tmp_path: Path) -> None:
    files = tree(root="") | {f"{split}/{NOT_UTF8}/1.jpg": encoded(9) for split in ("train", "val")}
    with pytest.raises(BadDataError, match=r"class folder 'caf\\udce9'.* rename it"):
        prepared(write(tmp_path / "x.tar", files))


@pytest.mark.parametrize("write", [write_folder, write_tar])
def test_data_path_not_utf8(write: Write, tmp_path: Path) -> None:
    cache = prepared(write(tmp_path / f"{NOT_UTF8}.tar", tree()))
    assert len(cache.index.ids) == 42
