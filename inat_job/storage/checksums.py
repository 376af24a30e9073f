"""What a store says of an object's bytes, in an answer's headers, and whether bytes agree with it.

Sources: S3's "Checking object integrity" (ETag, x-amz-checksum-*), Google Cloud Storage's x-goog-hash, Azure's
x-ms-blob-content-md5, RFC 9530 (Repr-Digest) and RFC 3230 (Digest).
"""

import base64
import binascii
import hashlib
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

_AMAZON = {"x-amz-checksum-sha256": "sha256", "x-amz-checksum-sha1": "sha1", "x-amz-checksum-crc32": "crc32"}
_SIZES = {"md5": 16, "sha1": 20, "sha256": 32, "crc32": 4}


@dataclass(frozen=True)
class Checksum:
    """A digest (in hexadecimal) by `algorithm`: a name of hashlib's, or crc32.

    With `part_size` it is the digest of the digests of parts of so many bytes. A value that is not `is_certain` may be
    something else that looks like a digest, so that only a match is evidence.
    """

    algorithm: str
    value: str
    is_certain: bool
    part_size: int | None = None

    def matches(self, blocks: Iterable[bytes], between: Callable[[], None] = lambda: None) -> bool:
        """Whether the concatenated blocks have this digest; `between` is called after each block and may raise."""
        whole, part, done = _Digest(self.algorithm), _Digest(self.algorithm), 0
        for block in blocks:
            between()
            at = 0
            while at < len(block):
                taken = block[at:] if self.part_size is None else block[at : at + self.part_size - done]
                part.update(taken)
                at, done = at + len(taken), done + len(taken)
                if done == self.part_size:
                    whole.update(part.digest())
                    part, done = _Digest(self.algorithm), 0
        if self.part_size is None:
            return part.digest().hex() == self.value
        if done:
            whole.update(part.digest())
        return whole.digest().hex() == self.value


def stated_checksum(
    headers: Mapping[str, str], *, is_amazon: bool = False, part_size: int | None = None
) -> Checksum | None:
    """The best checksum in the headers (in lower case) of an answer about an object, or None.

    `part_size` is the size of the object's parts, if it was uploaded in parts and this is known. An ETag is an MD5 for
    certain only on Amazon S3, and never for an object encrypted with a key of its user's or of KMS.
    """
    found = [*_amazon(headers, part_size), *_named(headers), *_etag(headers, is_amazon, part_size)]
    return found[0] if found else None


def parts_of(headers: Mapping[str, str]) -> int:
    """Number of the parts whose digests an ETag or a checksum is made of, 0 if there are none."""
    values = [headers.get("etag", "").strip('"'), *(headers.get(name, "") for name in _AMAZON)]
    counts = [re.fullmatch(r".+-(\d{1,5})", value) for value in values]
    return next((int(count[1]) for count in counts if count), 0)


class _Digest:
    """hashlib's interface, also for CRC-32."""

    def __init__(self, algorithm: str) -> None:
        self._hash = None if algorithm == "crc32" else hashlib.new(algorithm, usedforsecurity=False)
        self._crc = 0

    def update(self, data: bytes) -> None:
        if self._hash is None:
            self._crc = zlib.crc32(data, self._crc)
        else:
            self._hash.update(data)

    def digest(self) -> bytes:
        return self._crc.to_bytes(4, "big") if self._hash is None else self._hash.digest()


def _amazon(headers: Mapping[str, str], part_size: int | None) -> list[Checksum]:
    found = []
    for name, algorithm in _AMAZON.items():
        value, _, parts = headers.get(name, "").partition("-")
        composite = bool(parts) or headers.get("x-amz-checksum-type", "").upper() == "COMPOSITE"
        if (digest := _decoded(value, algorithm)) and (part_size or not composite):
            # as for ETags: parts may differ in size
            found.append(Checksum(algorithm, digest, not composite, part_size if composite else None))
    return found


def _named(headers: Mapping[str, str]) -> list[Checksum]:
    google = re.search(r"\bmd5=([\w+/]{22}==)", headers.get("x-goog-hash", ""))
    digest = re.search(
        r"\bsha-256=:?([\w+/]{43}=)", f"{headers.get('repr-digest', '')} {headers.get('digest', '')}", re.IGNORECASE
    )
    pairs = (
        ("sha256", digest[1] if digest else "", True),
        ("md5", google[1] if google else "", True),
        ("md5", headers.get("x-ms-blob-content-md5", ""), False),  # Azure stores what the client said
    )
    return [Checksum(kind, value, sure) for kind, text, sure in pairs if (value := _decoded(text, kind))]


def _etag(headers: Mapping[str, str], is_amazon: bool, part_size: int | None) -> list[Checksum]:
    encrypted = headers.get("x-amz-server-side-encryption", "").startswith("aws:")
    match = re.fullmatch(r'"?([0-9a-f]{32})(-\d+)?"?', headers.get("etag", ""))
    if match is None or encrypted or "x-amz-server-side-encryption-customer-algorithm" in headers:
        return []
    if match[2]:
        return [Checksum("md5", match[1], False, part_size)] if part_size else []
    return [Checksum("md5", match[1], is_amazon)]


def _decoded(text: str, algorithm: str) -> str:
    """A base64 digest in hexadecimal, empty if it is none."""
    try:
        digest = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return ""
    return digest.hex() if len(digest) == _SIZES[algorithm] else ""
