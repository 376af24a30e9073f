"""What headers state of an object's bytes, and whether bytes agree."""

import base64
import hashlib
import itertools
import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.storage.checksums import Checksum, parts_of, stated_checksum

DATA = random.Random(1).randbytes(1000)
MD5 = hashlib.md5(DATA, usedforsecurity=False)
SHA256 = base64.b64encode(hashlib.sha256(DATA).digest()).decode()
CRC32 = base64.b64encode(zlib.crc32(DATA).to_bytes(4, "big")).decode()


def composite(data: bytes, part_size: int) -> str:
    """The ETag of an upload in parts."""
    parts = [data[at : at + part_size] for at in range(0, len(data), part_size)]
    joined = b"".join(hashlib.md5(part, usedforsecurity=False).digest() for part in parts)
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(parts)}"


@pytest.mark.parametrize(
    ("headers", "algorithm"),
    [
        ({"etag": f'"{MD5.hexdigest()}"'}, "md5"),
        ({"etag": '"v1"', "x-amz-checksum-sha256": SHA256}, "sha256"),
        ({"x-amz-checksum-crc32": CRC32, "x-amz-checksum-type": "FULL_OBJECT"}, "crc32"),
        ({"x-goog-hash": f"crc32c=n03x6A==,md5={base64.b64encode(MD5.digest()).decode()}"}, "md5"),
        ({"x-ms-blob-content-md5": base64.b64encode(MD5.digest()).decode()}, "md5"),
        ({"repr-digest": f"sha-256=:{SHA256}:"}, "sha256"),
        ({"digest": f"SHA-256={SHA256}"}, "sha256"),
    ],
)
def test_stated_checksum_of_whole_object(headers: dict[str, str], algorithm: str) -> None:
    checksum = stated_checksum(headers)
    assert checksum is not None
    assert checksum.algorithm == algorithm
    assert checksum.matches([DATA[:300], DATA[300:]])
    assert not checksum.matches([DATA[:-1], b"?"])


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"etag": '"v1"'},
        {"etag": f'W/"{MD5.hexdigest()}"'},
        {"etag": f'"{MD5.hexdigest()}"', "x-amz-server-side-encryption": "aws:kms"},
        {"etag": f'"{MD5.hexdigest()}"', "x-amz-server-side-encryption-customer-algorithm": "AES256"},
        {"etag": f'"{composite(DATA, 300)}"'},
        {"x-amz-checksum-sha256": f"{SHA256}-4"},
        {"x-amz-checksum-crc32": CRC32, "x-amz-checksum-type": "COMPOSITE"},
        {"x-goog-hash": "crc32c=n03x6A=="},
        {"x-ms-blob-content-md5": "?" * 24, "x-amz-checksum-sha1": "\u00b2"},
    ],
)
def test_headers_that_state_nothing_of_the_bytes(headers: dict[str, str]) -> None:
    assert stated_checksum(headers) is None


@pytest.mark.parametrize(("is_amazon", "certain"), [(True, True), (False, False)])
def test_etag_is_certain_on_amazon_alone(is_amazon: bool, certain: bool) -> None:
    checksum = stated_checksum({"etag": f'"{MD5.hexdigest()}"'}, is_amazon=is_amazon)
    assert checksum is not None
    assert checksum.is_certain is certain


@given(st.integers(1, 1200), st.lists(st.integers(0, 1000), max_size=5))
def test_checksum_of_parts_depends_on_no_block(part_size: int, cuts: list[int]) -> None:
    at = [0, *sorted(cuts), len(DATA)]
    etag = composite(DATA, part_size)
    checksum = stated_checksum({"etag": f'"{etag}"'}, part_size=part_size)
    assert checksum == Checksum("md5", etag.split("-")[0], False, part_size)
    assert checksum.matches(DATA[start:end] for start, end in itertools.pairwise(at))
    assert not checksum.matches([DATA[:-1]])


def test_number_of_parts() -> None:
    assert parts_of({"etag": f'"{composite(DATA, 300)}"'}) == 4
    assert parts_of({"etag": '"v1"', "x-amz-checksum-sha256": f"{SHA256}-12"}) == 12
    assert parts_of({"etag": f'"{MD5.hexdigest()}"'}) == 0
