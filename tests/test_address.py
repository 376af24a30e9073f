"""Where a login ends, whatever its password holds; and that none of it is in what is shown, stored or looked up."""

import base64
import re
from contextlib import nullcontext
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.address import child, fault_of, host_of, quote_login, split_login, without_login, without_secrets
from inat_job.errors import UsageError
from inat_job.job_settings import RunSettings
from inat_job.options import public_uri, unsigned_uri
from inat_job.settings import BackboneSettings, DataSettings
from inat_job.storage import open_store, split_uri
from inat_job.storage.https import HttpsStore
from inat_job.telemetry.redact import redact

SIGNS = "@#?:!$&'()*+,;=~%[]\\\"<>|^`{}é"
users = st.text(alphabet="ab-.é", min_size=1, max_size=5)
passwords = st.text(alphabet="ab1" + SIGNS.replace(" ", ""), min_size=1, max_size=12).map(
    lambda text: f"S3CRET{text}S3CRET"
)
hosts = st.sampled_from(["host", "host:8080", "a.b.example", "[::1]:9000"])
paths = st.sampled_from(["x.zip", "a/x@2.zip", "a@b/c@d.tar", "a%40b.zip"])


@given(users, passwords, hosts, paths)
def test_login_ends_at_the_last_at_sign_of_the_authority(user: str, password: str, host: str, path: str) -> None:
    address = f"https://{user}:{password}@{host}/{path}"
    assert split_login(address) == ("https://", f"{user}:{password}", f"{host}/{path}")
    assert host_of(address) == host
    assert without_login(address) == without_secrets(address) == public_uri(address) == f"https://{host}/{path}"
    assert unsigned_uri(address) == f"https://{host}/{path}"


@given(users, passwords, hosts, paths)
def test_password_is_in_nothing_that_is_shown_or_looked_up(user: str, password: str, host: str, path: str) -> None:
    address = f"https://{user}:{password}@{host}/{path}"
    quoted = quote_login(address)
    assert quote_login(quoted) == quoted
    assert urlsplit(quoted).netloc.rpartition("@")[2] == host
    for shown in (redact(f"can't open {address}: no"), redact(f"{quoted} {address}", {}), redact(repr(address), {})):
        assert "S3CRET" not in shown
    assert "S3CRET" not in redact(f"of {password}", {"AWS_ENDPOINT_URL": address})
    parent, key = split_uri(address)
    assert key == path.rpartition("/")[2]
    store = open_store(parent)
    assert isinstance(store, HttpsStore)
    assert store.uri == f"https://{host}/{path}".rpartition("/")[0]
    sent = base64.b64decode(str(store._login).removeprefix("Basic ")).decode()
    assert sent == unquote(f"{user}:{password}")


def test_slash_in_a_password() -> None:
    assert split_login("https://me:pa/ss@host/a@b.zip") == ("https://", "me:pa/ss", "host/a@b.zip")
    assert split_login("https://me:p@a/s#s@host/x") == ("https://", "me:p", "a/s#s@host/x")  # as a browser reads it
    assert "pa" not in redact("https://me:pa/ss@host/x.zip", {})


def test_address_without_login_stays() -> None:
    for address in (
        "https://host/a@b.zip",
        "https://host:80/a@b.zip?x=c@d",
        "https://[::1]:80/a@b",
        "s3://bucket/a@b#c",
        "a@b.zip",
        "file:///a@b",
        "demo:",
    ):
        assert quote_login(address) == without_login(address) == address
        assert re.sub(r"\?.*", "", redact(address, {})) == re.sub(r"\?.*", "", address)


segments = st.text(alphabet="abc.-_%é ", min_size=1, max_size=6).filter(lambda s: s.strip(". "))


@given(segments, segments, segments)
def test_without_secrets_removes_login_query_and_fragment(user: str, query: str, path: str) -> None:
    assert without_secrets(f"https://{user}:s3cret@host/{path}?{query}=s3cret#s3cret") == f"https://host/{path}"


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        ("s3://", "begins with 's3://', which names no bucket: give s3://bucket/prefix"),
        ("GS:///runs", "begins with 'GS:///', which names no bucket: give gs://bucket/prefix"),
        ("az:/b/runs", "begins with 'az:/', which needs two slashes: give az://bucket/prefix"),
        ("s3:b", "begins with 's3:', which needs two slashes: give s3://bucket/prefix"),
        ("https:/u:S3CRET@host/x", "begins with 'https:/', which needs two slashes: give https://host/folder"),
        ("http://", "begins with 'http://', which names no host: give http://host/folder"),
        ("file:/runs", "begins with 'file:/', which needs two slashes: give file:///folder"),
        ("file://", "begins with 'file://', which names no folder: give file:///folder"),
        *((address, "") for address in ("s3://b", "https://host", "file:///", "file:///runs", "runs", "./s3:/b", "/")),
        *((address, "") for address in ("", "demo:", "sqlite:///x.db", "C:/runs")),
    ],
)
def test_start_of_an_address_that_would_pass_for_a_path(address: str, fault: str) -> None:
    assert fault_of(address) == fault
    for section, field in (
        (DataSettings, "uri"),
        (DataSettings, "labels"),
        (BackboneSettings, "weights"),
        (RunSettings, "output"),
        (RunSettings, "init_from"),
    ):
        with pytest.raises(UsageError, match=re.escape(fault)) if fault else nullcontext():
            section(**{field: address})  # type: ignore[arg-type]
    if fault:
        with pytest.raises(UsageError, match=re.escape(fault)):
            open_store(address)


def test_child_keeps_the_slashes_of_the_scheme() -> None:
    assert child("s3://b/runs/", "r") == "s3://b/runs/r"
    assert child("s3://b", "r") == "s3://b/r"
    assert child("file:///", "r") == "file:///r"
    assert child("/", "r") == "/r"
    assert child("runs//", "r") == "runs/r"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("sqlite:///x.db", "sqlite:///x.db"),
        ("sqlite:////a/x.db", "sqlite:////a/x.db"),
        ("file:///a/x.zip#sha256=1", "file:///a/x.zip#sha256=1"),
        ("postgresql://me:secret@host/name?password=secret", "postgresql://host/name"),
    ],
)
def test_address_is_shown_as_it_is_written_but_for_secrets(address: str, shown: str) -> None:
    assert public_uri(address) == shown
