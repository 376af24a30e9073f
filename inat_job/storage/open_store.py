"""From a URI to its store: the supported schemes, and how an object's URI splits into store and key."""

import os
import re
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from inat_job.address import BUCKETS, expanded, fault_of, quote_login, without_secrets
from inat_job.errors import ConflictError, JobError, UsageError
from inat_job.storage.base import Role, StorageOptions, Store
from inat_job.storage.local import LocalStore

_BUCKET_SCHEMES = tuple(start.removesuffix("://") for start in BUCKETS)
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")


def open_store(uri: str, options: StorageOptions = StorageOptions(), *, role: Role = "data") -> Store:  # noqa: B008
    """The store at `uri`: s3://, gs:// or az:// and bucket/prefix, https://host/dir, file:///folder or a local folder.

    Makes no request. Raises UsageError for an invalid address.
    """
    scheme, uri = _scheme(uri), quote_login(uri)
    if scheme in _BUCKET_SCHEMES:
        return _open_bucket(scheme, uri, options, role)
    if scheme in ("http", "https"):
        return _open_https(uri, options)
    return LocalStore(_local_path(uri), options)


def split_uri(uri: str) -> tuple[str, str]:
    """(URI of the parent store, last key) of an object's URI; the key is empty if the URI names a whole bucket.

    The query of a web address stays with the key, and so does an empty path component before it: no store's URI ends
    in a slash.
    """
    scheme, uri = _scheme(uri), quote_login(uri)
    if scheme == "":
        path = _local_path(uri)
        return str(path.parent), path.name
    address, mark, query = uri.partition("?") if scheme not in _BUCKET_SCHEMES else (uri, "", "")
    start, rest = address[: len(scheme) + 3], address[len(scheme) + 3 :].rstrip("/")
    root, _, key = rest.rpartition("/")
    empty = len(root) - len(root.rstrip("/"))
    root, key = root[: len(root) - empty], "/" * empty + key
    return (start + root, key + mark + query) if root else (start + rest, mark + query)


def _scheme(uri: str) -> str:
    """s3, gs, az, http or https in lower case; empty for a local path, with or without file://."""
    if fault := fault_of(uri):
        raise UsageError(f"An address {fault}.")
    match = _SCHEME.match(uri)
    scheme = match[1].lower() if match else "file"
    if scheme not in (*_BUCKET_SCHEMES, "http", "https", "file"):
        raise UsageError(
            f"{scheme}:// is not supported: use s3://bucket/key, gs:// or az://, https://host/file or a local path."
        )
    return "" if scheme == "file" else scheme


def _open_bucket(scheme: str, uri: str, options: StorageOptions, role: Role) -> Store:
    bucket, _, prefix = uri[len(scheme) + 3 :].partition("/")
    if scheme != "s3":
        return _open_object_store(scheme, bucket, prefix.rstrip("/"), options, role)
    with _needing("boto3", uri):
        from inat_job.storage.s3.s3_store import S3Store  # here: boto3 is slow to import and may be missing
    return S3Store(bucket, prefix.rstrip("/"), options, role)


def _open_object_store(scheme: str, bucket: str, root: str, options: StorageOptions, role: Role) -> Store:
    with _needing("obstore", f"{scheme}://{bucket}", ConflictError):
        from inat_job.storage.object_store import ObjectStore  # here: obstore may be missing
    return ObjectStore(scheme, bucket, root, options, role)


def _open_https(uri: str, options: StorageOptions) -> Store:
    if not urlsplit(uri).hostname:
        raise UsageError(f"{without_secrets(uri)!r} names no host: give https://host/folder.")
    with _needing("urllib3", without_secrets(uri)):
        from inat_job.storage.https import HttpsStore  # here: urllib3 may be missing
    return HttpsStore(uri, options)


@contextmanager
def _needing(package: str, address: str, kind: type[JobError] = UsageError) -> Iterator[None]:
    """Translate the error of a package that is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise kind(f"{address} needs {package}, which is not installed: pip install {package}.") from error


def _local_path(uri: str) -> Path:
    """An absolute path, so that a report or a log line is valid in another working folder too."""
    if not _SCHEME.match(uri):
        if not uri:
            raise UsageError("The path is empty: give a folder.")
        return _absolute(expanded(uri))
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise UsageError(
            f"{without_secrets(uri)!r} names the host {parts.hostname!r}: "
            "a local path is file:///folder, with three slashes."
        )
    return _absolute(urllib.request.url2pathname(uri[len("file://") + len(parts.netloc) :]))


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would replace a link that the user gave)
