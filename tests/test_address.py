"""Where a login ends, whatever its password holds; and that none of it is in what is shown, stored or looked up."""

import base64
import re
from urllib.parse import unquote, urlsplit

from hypothesis import given
from hypothesis import strategies as st

from inat_job.address import host_of, quote_login, split_login, without_login, without_secrets
from inat_job.options import public_uri, unsigned_uri
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
