"""What a file is by its first bytes, and which names of archives are read: the one table of both."""

import bz2
import codecs
import gzip
import lzma
import re
import tarfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from inat_job.errors import BadDataError

HEAD_BYTES = 512
"""First bytes of an archive that tell its kind: a tar's first header."""

_ZIP, _TAR = "a zip", "a tar"
_PACK = "pack its files as .zip or .tar.gz"


class Kind(NamedTuple):
    """A kind of file: what its first bytes match (as Latin-1, in any case of letters), its name, and what to do.

    Of an archive also the suffixes of its name, what reads it, if anything does, and the function that unpacks its tar.
    """

    magic: str
    name: str
    advice: str = ""
    suffixes: tuple[str, ...] = ()
    reader: str = ""
    decompress: Any = None


_NOTHING = r"(?!)"
_ARCHIVES = (
    Kind(r"PK(\x03\x04|\x05\x06)", "a zip archive", "call it .zip", (".zip",), _ZIP),
    Kind(r".{257}ustar", "a tar archive", "call it .tar", (".tar",), _TAR),
    Kind(r"\x1f\x8b", "a gzip-compressed file", "", (".tar.gz", ".tgz"), _TAR, gzip.open),
    Kind(r"BZh\d", "a bzip2-compressed file", "", (".tar.bz2", ".tbz2", ".tbz"), _TAR, bz2.open),
    Kind(r"\xfd7zXZ\0", "an xz-compressed file", "", (".tar.xz", ".txz"), _TAR, lzma.open),
    Kind(r"7z\xbc\xaf", "a 7z archive", _PACK, (".7z",)),
    Kind(r"Rar!", "a RAR archive", _PACK, (".rar",)),
    Kind(r"\x28\xb5\x2f\xfd", "a zstd-compressed file", _PACK, (".zst", ".tzst")),
    Kind(r"\x04\x22\x4d\x18", "an lz4-compressed file", _PACK, (".lz4",)),
    Kind(r"\x5d\0\0.{2}(\xff{8}|.{5}\0{3})", "an lzma-compressed file", _PACK, (".lzma", ".tlz")),
    Kind(r"LZIP\x01", "an lzip-compressed file", _PACK, (".lz",)),
    Kind(r"\x1f[\x9d\xa0]", "a file of compress", _PACK, (".z",)),
    Kind(r"MSCF\0", "a cabinet archive", _PACK, (".cab",)),
    Kind(_NOTHING, "", "", (".gz", ".bz2", ".xz", ".br", ".zipx", ".iso", ".dmg")),  # not told by their first bytes
)
SUFFIXES = tuple(suffix for kind in _ARCHIVES if kind.reader for suffix in kind.suffixes)
"""Of the archives that are read."""

_UNREAD = tuple(suffix for kind in _ARCHIVES if not kind.reader for suffix in kind.suffixes)
_PART = re.compile(r"\.(zip|7z|rar|tar|gz|tgz)\.\d{3}$|\.z\d{2}$")

_MARKUP = r"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--((?!-->).)*-->\s*)*"
_PAGE = "an HTML page"
_RAW = "a camera's raw image"
_AS_JPEG = "convert it to JPEG"
_OTHERS = (
    Kind(r"....ftyp(heic|heix|hevc|heim|heis|mif1|msf1)", "a HEIC image", _AS_JPEG),
    Kind(r"....ftypavi[fs]", "a damaged AVIF image or sequence"),
    Kind(r"....ftypcrx |FUJIFILMCCD-RAW|II(RO|RS)\x08\0|IIU\0|MMOR\0|FOVb.\0.\0|\0MRM", _RAW, _AS_JPEG),
    Kind(r"II\*\0.{4}CR", _RAW, _AS_JPEG),
    Kind(r"II\*\0|MM\0\*", f"{_RAW} or a damaged TIFF", _AS_JPEG),
    Kind(r"....ftyp", "a video"),
    Kind(r"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL image", _AS_JPEG),
    Kind(r"8BPS", "a Photoshop document"),
    Kind(r".{128}DICM", "a DICOM image", "convert it to PNG"),
    Kind(r"version https://git-lfs", "a git-lfs pointer", "run git lfs pull"),
    Kind(_MARKUP + r"<(!doctype\s+html|(html|head|body|script)\b)", _PAGE),
    Kind(_MARKUP + r"(<!doctype svg[^>]*>\s*)?<svg", "an SVG drawing"),
    Kind(r"(\xef\xbb\xbf)?\s*<\?xml", "XML"),
    Kind(r"%PDF", "a PDF document"),
    Kind(r"%!PS|\xc5\xd0\xd3\xc6", "a PostScript document"),
    Kind(r"\{\\rtf", "an RTF document"),
    Kind(r"\x00\x05\x16[\x00\x07]\x00", "AppleDouble metadata of macOS"),
    Kind(r"\0\0[\1\2]\0[^\0]", "an icon"),
)
_IMAGES = (
    Kind(r"\xff\xd8\xff", "a JPEG image"),
    Kind(r"\x89PNG", "a PNG image"),
    Kind(r"GIF8", "a GIF image"),
    Kind(r"RIFF.{4}WEBP", "a WebP image"),
    Kind(r"BM.{4}\0{4}", "a BMP image"),
)
"""Images that are read, and so no fault but in the place of an archive."""

_TEXT, _JSON = Kind(_NOTHING, "text"), Kind(_NOTHING, "JSON or text")
TEXTS = (_TEXT.name, _JSON.name)


def kind_of(data: bytes) -> Kind | None:
    """What a file is that is no image in a format that is read, by its first bytes; None if unknown."""
    start = data[:1024].decode("latin-1")
    if kind := _first_match((*_ARCHIVES, *_OTHERS), start):
        return kind
    if _is_text(data):
        return _JSON if re.match(r"(\xef\xbb\xbf)?\s*[\[{]", start) else _TEXT
    return None


def _first_match(kinds: Iterable[Kind], start: str) -> Kind | None:
    return next((kind for kind in kinds if re.match(kind.magic, start, re.IGNORECASE | re.DOTALL)), None)


def _is_text(data: bytes) -> bool:
    """Whether a file begins with text in UTF-8, or in UTF-16 with its mark."""
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8"
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(data[:1024])  # which may end within a letter
    except UnicodeDecodeError:
        return False
    return bool(text) and all(unicodedata.category(each) not in ("Cc", "Cn", "Co") or each.isspace() for each in text)


def described(data: bytes) -> str:
    """A file's kind with its advice; empty if unknown."""
    kind = kind_of(data)
    if kind is None:
        return ""
    return f"{kind.name}: {kind.advice}" if kind.advice and not kind.suffixes else kind.name


def is_archive(name: str) -> bool:
    """Whether a file name is that of an archive that is read."""
    return name.lower().endswith(SUFFIXES)


def unread_suffix(name: str) -> str:
    """The suffix of an archive of another kind, or of a part of one; empty if the name has none."""
    name = name.lower()
    part = _PART.search(name)
    if part or is_archive(name):
        return part[0] if part else ""
    return next((suffix for suffix in _UNREAD if name.endswith(suffix)), "")


def is_zip(name: str, head: bytes, shown: str) -> bool:
    """Whether an archive is a zip and not a tar, by its name or else by its `head`, the first HEAD_BYTES.

    Raises BadDataError for an empty file, for a web page, and for a head that is neither's.
    """
    if not head:
        raise BadDataError(f"{shown} is empty: upload it again.")
    refuse_page(head, shown)
    if is_archive(name):
        return name.lower().endswith(".zip")
    kind = kind_of(head)
    if _is_tar(head) or (kind and kind.reader):
        return bool(kind and kind.reader == _ZIP)
    found = kind.name if kind else "no archive"
    raise BadDataError(f"{shown} is {found} by its content: use an archive of the kind {', '.join(SUFFIXES)}.")


def refuse_page(head: bytes, shown: str) -> None:
    """Raise BadDataError for the first bytes of an HTML page."""
    if (kind := kind_of(head)) and kind.name == _PAGE:
        raise BadDataError(
            f"{shown} is an HTML page, not an archive: open the address in a browser to see why (a login, a warning, a "
            "folder), and give the address of the file itself. For a large file on Google Drive that is "
            "https://drive.usercontent.google.com/download?id=ID&confirm=t."
        )


def mismatch(name: str, head: bytes) -> str:
    """What an archive really is, and what to do, if its `head` is nothing like its name; empty if that fits."""
    wanted = _ZIP if name.lower().endswith(".zip") else _TAR
    kind = kind_of(head) or _first_match(_IMAGES, head.decode("latin-1"))
    if (
        kind is None
        or kind.reader == wanted
        or (kind.reader and not is_archive(name))
        or (wanted == _TAR and _is_tar(head))
    ):
        return ""
    if kind.reader:
        advice = kind.advice or f"call it {kind.suffixes[0]} if it holds a tar"
        return f"{kind.name}, whatever its name says: {advice}"
    if kind.name in TEXTS:
        return "text, not an archive: check its address"
    return f"{kind.name}, not {wanted}: {kind.advice or 'check its address'}"


def open_tar(path: Path) -> IO[bytes]:
    """The file of a tar, decompressed."""
    with path.open("rb") as file:
        kind = kind_of(file.read(HEAD_BYTES))
    return path.open("rb") if kind is None or kind.decompress is None else cast("IO[bytes]", kind.decompress(path))


def _is_tar(head: bytes) -> bool:
    """Whether a file begins with the header of a tar, which older ones do not mark."""
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True
