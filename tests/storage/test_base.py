"""Object keys."""

from pathlib import PurePosixPath

from hypothesis import given
from hypothesis import strategies as st

from inat_job.errors import BadDataError
from inat_job.storage.base import checked_key


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
