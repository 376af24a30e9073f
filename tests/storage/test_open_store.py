"""URIs of stores and objects."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.errors import UsageError
from inat_job.storage import StorageOptions, open_store, split_uri


def test_split_uri() -> None:
    assert split_uri("s3://bucket/a/b.zip") == ("s3://bucket/a", "b.zip")
    assert split_uri("s3://bucket/a/") == ("s3://bucket", "a")
    assert split_uri("s3://bucket") == ("s3://bucket", "")
    assert split_uri("s3://bucket/what?.zip") == ("s3://bucket", "what?.zip")
    assert split_uri("gs://bucket/what?.zip") == ("gs://bucket", "what?.zip")
    assert split_uri("https://host/d/x.zip?sig=a/b") == ("https://host/d", "x.zip?sig=a/b")
    assert split_uri("https://host/x.zip") == ("https://host", "x.zip")
    assert split_uri("/data/x.zip") == ("/data", "x.zip")
    assert split_uri("file:///data/x%20y.zip") == ("/data", "x y.zip")
    assert split_uri("x.zip") == (str(Path.cwd()), "x.zip")


segments = st.text(alphabet="abc.-_%é ", min_size=1, max_size=6).filter(lambda s: s.strip(". "))


@given(st.sampled_from(["s3", "gs", "az", "https", "http"]), st.lists(segments, min_size=2, max_size=5))
def test_split_uri_splits_at_last_slash(scheme: str, parts: list[str]) -> None:
    assert split_uri(f"{scheme}://{'/'.join(parts)}") == (f"{scheme}://{'/'.join(parts[:-1])}", parts[-1])


def test_store_uri(tmp_path: Path, s3_bucket: str) -> None:
    assert open_store(f"s3://{s3_bucket}/a/b/").uri == f"s3://{s3_bucket}/a/b"
    assert open_store(f"file://{tmp_path}/").uri == str(tmp_path)
    assert open_store("https://me:secret@host/dir/?sig=1").uri == "https://host/dir"


def test_home_at_the_start_of_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("~/runs").uri == str(tmp_path / "runs")
    assert open_store("~nobody-of-this-name/runs").uri == str(Path("~nobody-of-this-name/runs").absolute())


def test_invalid_address_is_usage_error(s3_endpoint: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in (
        "s3://",
        "s3:///key",
        "gs://",
        "az:///key",
        "r2://bucket/key",
        "ftp://host/x",
        "https:///x",
        "file://host/x",
        "",
    ):
        with pytest.raises(UsageError):
            open_store(address)
    with pytest.raises(UsageError, match="not a valid S3 address"):
        open_store("s3://not a bucket/x", StorageOptions(retries=0)).stat("key")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    with pytest.raises(UsageError):
        open_store("s3://bucket", StorageOptions(retries=0))


@pytest.mark.parametrize(
    ("package", "uri", "code"),
    [("boto3", "s3://b/k", 2), ("urllib3", "https://host/k", 2), ("obstore", "gs://b", 78), ("obstore", "az://b", 78)],
)
def test_missing_package_is_named(package: str, uri: str, code: int, tmp_path: Path) -> None:
    """A machine without it still reads and writes local folders."""
    program = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from inat_job.ingest import data_source\n"
        "from inat_job.storage import open_store\nfrom inat_job.errors import JobError\n"
        f"open_store({str(tmp_path)!r}).put('k', b'')\n"
        f"try: open_store({uri!r})\nexcept JobError as error: print(error, error.exit_code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{uri} needs {package}, which is not installed: pip install {package}. {code}")


def test_import_loads_no_boto3() -> None:
    program = "import sys, inat_job.storage; print([m for m in sys.modules if m.startswith('boto')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
