"""Object keys and addresses."""

from pathlib import PurePosixPath

from hypothesis import given
from hypothesis import strategies as st

from inat_job.errors import BadDataError
from inat_job.storage.base import checked_key, without_secrets


@given(st.text(alphabet="ab./\0~é\\", max_size=12))
def test_accepted_key_stays_under_root(key: str) -> None:
    try:
        checked_key(key, "/root", has_folders=True)
    except BadDataError:
        parts = key.split("/")
        assert not key or "\0" in key or {"", ".", ".."} & set(parts)
        return
    path = PurePosixPath("/root") / key
    assert path.is_relative_to("/root")
    assert ".." not in path.parts
    assert path != PurePosixPath("/root")


segments = st.text(alphabet="abc.-_%é ", min_size=1, max_size=6).filter(lambda s: s.strip(". "))


@given(segments, segments, segments)
def test_without_secrets_removes_login_query_and_fragment(user: str, query: str, path: str) -> None:
    assert without_secrets(f"https://{user}:s3cret@host/{path}?{query}=s3cret#s3cret") == f"https://host/{path}"
