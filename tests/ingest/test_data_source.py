"""How `--data` is resolved and named."""

import hashlib
import threading
from pathlib import Path

import boto3
import pytest

from inat_job.errors import BadDataError, Preempted, UsageError
from inat_job.ingest import build_cache, data_source, inspect
from inat_job.signals import never
from inat_job.storage import StorageOptions, open_store
from inat_job.storage.s3.s3_store import S3Store
from tests.harness.made_images import tree, write_folder, write_tar, write_zip
from tests.harness.raw_answers import encode_answer, raw_server
from tests.harness.small_caches import prepared
from tests.harness.web_sites import PAGE, Site


def test_index_source_is_the_named_uri(tmp_path: Path) -> None:
    one, two = (write_zip(tmp_path / name, tree()) for name in ("one.zip", "two.zip"))
    caches = [prepared(path, tmp_path / "cache") for path in (one, two)]
    assert caches[0].folder == caches[1].folder
    assert [cache.index.source for cache in caches] == [str(one), str(two)]
    assert prepared("demo:", tmp_path / "cache").index.source == "demo:"


def test_message_names_this_runs_source(tmp_path: Path) -> None:
    files = tree() | {"some/where/train/Ants/03.jpg": b"broken"}
    one, two = (write_zip(tmp_path / name, files) for name in ("one.zip", "two.zip"))
    source = data_source.find(str(one), tmp_path / "cache", StorageOptions(), never)
    build_cache.prepare(source, tmp_path / "cache", 32, 0.1, never)
    with pytest.raises(BadDataError, match="two.zip cannot be read"):
        prepared(two, tmp_path / "cache")


def test_file_uri(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x y.zip", tree())
    folder = write_folder(tmp_path / "loose", tree())
    for uri, shown in (("x%20y.zip", path), ("loose", folder)):
        assert prepared(f"file://{tmp_path}/{uri}", tmp_path / "cache").index.source == str(shown)


@pytest.mark.parametrize("given", ["~/loose", "~/x.zip", "~/one"])
def test_home_at_the_start_of_a_path(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "one").mkdir()
    write_folder(tmp_path / "loose", tree())
    for archive in ("x.zip", "one/x.zip"):
        write_zip(tmp_path / archive, tree())
    assert prepared(given, tmp_path / "cache").index.source.startswith(str(tmp_path))
    summary = inspect.summarise(given, tmp_path / "cache", 32, StorageOptions())
    assert summary.text.startswith(str(tmp_path))


def test_scheme_in_capitals(s3_bucket: str, tmp_path: Path) -> None:
    open_store(f"s3://{s3_bucket}").put("x.zip", write_zip(tmp_path / "x.zip", tree()))
    assert prepared(f"S3://{s3_bucket}/x.zip", tmp_path / "cache").index.source == f"s3://{s3_bucket}/x.zip"
    assert data_source.parse_uri("HTTPS://Host/X.zip") == ("https://Host/X.zip", None)


def test_missing_archive_is_bad_data(tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match=r"nowhere.zip does not exist"):
        prepared(tmp_path / "nowhere.zip", tmp_path)
    with pytest.raises(UsageError, match="use s3://"):
        prepared("ftp://host/x.zip", tmp_path)


def test_folder_with_one_archive(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / ".DS_Store").touch()
    path = write_zip(tmp_path / "in" / "x.zip", tree())
    assert prepared(tmp_path / "in", tmp_path / "cache").index.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_sha256_in_uri_is_verified(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", tree())
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    assert prepared(f"{path}#sha256={right}", tmp_path / "cache").index.digest == right
    with pytest.raises(BadDataError, match="#sha256="):
        prepared(f"{path}#sha256={'0' * 64}", tmp_path / "cache")
    with pytest.raises(UsageError, match="64 hexadecimal"):
        prepared(f"{path}#sha256=12", tmp_path / "cache")
    folder = write_folder(tmp_path / "loose", tree())
    with pytest.raises(BadDataError, match="#sha256="):
        prepared(f"{folder}#sha256={'0' * 64}", tmp_path / "cache")


@pytest.mark.parametrize("key", ["a#b.zip", "#.zip", "a#sha.zip", "50%25 off?.zip"])
def test_archive_under_an_odd_key(key: str, s3_bucket: str, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", tree())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    open_store(f"s3://{s3_bucket}").put(key, path)
    for mark in ("", f"#sha256={digest}"):
        assert prepared(f"s3://{s3_bucket}/{key}{mark}", tmp_path / "cache").index.digest == digest


def test_loose_files_under_odd_keys(s3_bucket: str, tmp_path: Path) -> None:
    store = open_store(f"s3://{s3_bucket}/set")
    for name, data in tree(root="").items():
        store.put(name.replace("Ants/", "Ants/#1/"), data)
    assert len(prepared(f"s3://{s3_bucket}/set", tmp_path / "cache").index.classes) == 3


def test_stop_while_a_loose_file_does_not_come(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store(f"s3://{s3_bucket}/some").put("train/Ants/1.jpg", b"x")
    asked, released = threading.Event(), threading.Event()

    def silent(store: S3Store, key: str) -> bytes:
        asked.set()
        assert released.wait(20)
        return b"late"

    monkeypatch.setattr(S3Store, "read", silent)
    found = data_source.find(f"s3://{s3_bucket}/some", tmp_path, StorageOptions(), asked.is_set)
    ((_, load),) = found.open().load(["train/Ants/1.jpg"])
    with pytest.raises(Preempted):
        load()
    released.set()


def test_local_archive_with_a_number_sign(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set #2.zip", tree())
    assert prepared(path, tmp_path / "cache").index.source == str(path)


OTHERS = ["x.tar.lzma", "x.tzst", "x.tar.lz", "x.tar.br", "x.zipx", "x.zip.001", "x.iso", "x.cab", "x.Z", "x.tar.lz4"]


@pytest.mark.parametrize("name", ["x.xz", "x.7z", "x.RAR", "x.bz2", "x.tar.zst", "x.gz", *OTHERS])
@pytest.mark.parametrize("start", ["s3://bucket/", "https://host/", "/data/"])
def test_archive_of_another_kind_is_named(start: str, name: str) -> None:
    query = "?sig=secret" if start.startswith("https") else ""
    with pytest.raises(UsageError, match=r"\.\w+ files are not read: pack it as .zip") as caught:
        data_source.parse_uri(start + name + query)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("mark", ["#sha256=12", "#sha265=" + "0" * 64, "#" + "0" * 64, "#md5=x"])
def test_mistaken_hash_is_refused(mark: str) -> None:
    for uri in ("s3://bucket/x.zip", "x.zip", "https://host/x.zip"):
        with pytest.raises(UsageError, match="64 hexadecimal"):
            data_source.parse_uri(uri + mark)


def test_stop_ends_the_reading_of_loose_files_from_a_silent_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = "".join(f"<Contents><Key>set/{key}</Key><Size>9</Size></Contents>" for key in tree(root=""))
    asked, end, ended = threading.Event(), threading.Event(), list[str]()

    def answer(method: str, path: str) -> bytes:
        if "list-type" in path:
            return encode_answer(body=f"<ListBucketResult>{listed}</ListBucketResult>".encode())
        asked.set()
        end.wait(15)
        ended.append(path)
        return b""

    for name, value in {"ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with raw_server(answer) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        source = data_source.find("s3://bucket/set", tmp_path, StorageOptions(), asked.is_set)
        with pytest.raises(Preempted):
            build_cache.prepare(source, tmp_path, 32, 0.01, asked.is_set)
        assert not ended, "it waited for the store"
        end.set()


@pytest.mark.parametrize("key", ["a//b.zip", "/b.zip", "a///b.zip", "//a//b.zip", "a//b/c.zip"])
def test_archive_under_a_key_with_empty_components(key: str, s3_bucket: str, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", tree())
    boto3.client("s3").put_object(Bucket=s3_bucket, Key=key, Body=path.read_bytes())
    assert len(prepared(f"s3://{s3_bucket}/{key}", tmp_path / "cache").index.ids) == 42
    assert "42 images" in summary(f"s3://{s3_bucket}/{key}", tmp_path)


def test_web_address_with_empty_components(site: Site, tmp_path: Path) -> None:
    site.files["a//b.zip"] = write_zip(tmp_path / "x.zip", tree()).read_bytes()
    assert len(prepared(f"{site.url}/a//b.zip", tmp_path / "cache").index.ids) == 42


def test_loose_files_under_a_prefix_with_empty_components(s3_bucket: str, tmp_path: Path) -> None:
    for name, data in tree(root="").items():
        boto3.client("s3").put_object(Bucket=s3_bucket, Key=f"/set//a//{name.replace('/', '//', 1)}", Body=data)
    for uri in (f"s3://{s3_bucket}//set//a", f"s3://{s3_bucket}//set/"):
        assert prepared(uri, tmp_path / "cache").index.classes == ("Ants", "Bees", "Cats")


def summary(uri: str, tmp_path: Path) -> str:
    return inspect.summarise(uri, tmp_path / "cache2", 32, StorageOptions(retries=0)).text


KINDS = {"zip": write_zip, "tar": write_tar, "tar.gz": write_tar}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", ["ndownloader/files/123", "uc?export=download&id=1x", "?id=7"])
def test_web_address_without_a_suffix(key: str, kind: str, site: Site, tmp_path: Path) -> None:
    site.files[key.partition("?")[0]] = KINDS[kind](tmp_path / f"x.{kind}", tree()).read_bytes()
    site.etags = dict.fromkeys(site.files, '"v1"')
    assert summary(f"{site.url}/{key}", tmp_path)
    assert len(prepared(f"{site.url}/{key}", tmp_path / "cache").index.ids) == 42


@pytest.mark.parametrize("kind", KINDS)
def test_object_without_a_suffix(kind: str, s3_bucket: str, tmp_path: Path) -> None:
    open_store(f"s3://{s3_bucket}").put("sets/birds", KINDS[kind](tmp_path / f"x.{kind}", tree()))
    assert summary(f"s3://{s3_bucket}/sets/birds", tmp_path)
    assert len(prepared(f"s3://{s3_bucket}/sets/birds", tmp_path / "cache").index.ids) == 42


def test_prefix_that_is_an_object_too_is_a_prefix(s3_bucket: str, tmp_path: Path) -> None:
    store = open_store(f"s3://{s3_bucket}")
    store.put("set", b"a marker")
    for name, data in tree(root="").items():
        store.put(f"set/{name}", data)
    assert len(prepared(f"s3://{s3_bucket}/set", tmp_path / "cache").index.ids) == 42


@pytest.mark.parametrize("etag", ["", '"v1"'])
@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("key", ["uc?export=download&id=1x", "x.zip", "x.tar.gz"])
def test_page_in_place_of_an_archive_is_told_as_such(
    key: str, ranges: bool, etag: str, site: Site, tmp_path: Path
) -> None:
    name = key.partition("?")[0]
    site.files[name], site.etags[name], site.ranges = b"\n " + PAGE, etag, ranges
    sentence = rf"{site.url}/{name} is an HTML page, not an archive: open the address in a browser"
    with pytest.raises(BadDataError, match=sentence):
        summary(f"{site.url}/{key}", tmp_path)
    with pytest.raises(BadDataError, match=sentence):
        prepared(f"{site.url}/{key}", tmp_path / "cache")


@pytest.mark.parametrize(
    ("data", "kind"), [(b"7z\xbc\xaf\x27\x1c" * 99, "a 7z archive"), (b"\0\1\2\3" * 200, "no archive")]
)
def test_object_of_no_known_kind_is_told_by_its_content(data: bytes, kind: str, s3_bucket: str, tmp_path: Path) -> None:
    open_store(f"s3://{s3_bucket}").put("birds", data)
    for verb in (summary, prepared):
        with pytest.raises(BadDataError, match=f"birds is {kind} by its content: use .* .zip, .tar, .tar.gz, .tgz"):
            verb(f"s3://{s3_bucket}/birds", tmp_path)


def test_nothing_under_a_prefix_is_bad_data(s3_bucket: str, tmp_path: Path) -> None:
    for verb in (summary, prepared):
        with pytest.raises(BadDataError, match="birds holds no files"):
            verb(f"s3://{s3_bucket}/birds", tmp_path)


@pytest.mark.parametrize("links", [["latest"], ["a", "latest"], ["deep/er/current"]])
def test_link_beside_a_data_set_is_the_same_data_set(links: list[str], tmp_path: Path) -> None:
    folder, cache = write_folder(tmp_path / "sets", tree(root="v1/") | {"v1/notes.txt": b"x"}), tmp_path / "cache"
    (folder / "v1/train/Ants/dead.jpg").symlink_to("nowhere")
    alone = data_source.find(str(folder), cache, StorageOptions(), never).open().names()
    for link in links:
        (folder / link).parent.mkdir(parents=True, exist_ok=True)
        (folder / link).symlink_to(folder / "v1")
    source = data_source.find(str(folder), cache, StorageOptions(), never)
    assert source.open().names() == alone
    assert "42 images" in inspect.summarise(str(folder), cache, 32, StorageOptions()).text
    index = build_cache.prepare(source, cache, 32, 0.1, never).index
    assert (len(index.ids), len(index.rejected), len(index.skipped)) == (42, 1, 1)


def test_two_links_to_one_data_set_elsewhere_are_one(tmp_path: Path) -> None:
    write_folder(tmp_path / "store", tree(root="v1/"))
    sets = tmp_path / "sets"
    sets.mkdir()
    for name in ("current", "latest"):
        (sets / name).symlink_to(tmp_path / "store" / "v1")
    assert len(prepared(sets, tmp_path / "cache").index.ids) == 42


def test_links_to_each_split_or_class_are_the_same_data_set(tmp_path: Path) -> None:
    sets = write_folder(tmp_path / "sets", tree(root="v1/"))
    for name in ("by-split", "by-class"):
        (sets / name).mkdir()
    for split in ("train", "val"):
        (sets / "by-split" / split).symlink_to(sets / "v1" / split)
        for label in ("Ants", "Bees", "Cats"):
            (sets / "by-class" / split).mkdir(exist_ok=True)
            (sets / "by-class" / split / label).symlink_to(f"../../v1/{split}/{label}")
    names = data_source.find(str(sets), tmp_path / "cache", StorageOptions(), never).open().names()
    assert all(name.startswith("v1/") for name in names)


def test_link_to_another_version_is_refused(tmp_path: Path) -> None:
    sets = write_folder(tmp_path / "sets", tree(root="v1/"))
    (sets / "latest").symlink_to(write_folder(tmp_path / "store", tree(root="v2/")) / "v2")
    with pytest.raises(BadDataError, match="more than one data set"):
        prepared(sets, tmp_path / "cache")


@pytest.mark.parametrize(("target", "links"), [("sets/v1.zip", ["latest.zip", "current"]), ("v1.zip", ["a", "b.zip"])])
def test_link_to_an_archive_beside_it_is_the_same_archive(target: str, links: list[str], tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    write_zip(tmp_path / target, tree())
    for link in links:
        (tmp_path / "sets" / link).symlink_to(tmp_path / target)
    assert len(prepared(tmp_path / "sets", tmp_path / "cache").index.ids) == 42
    assert "42 images" in inspect.summarise(str(tmp_path / "sets"), tmp_path / "other", 32, StorageOptions()).text
