"""The images that a person names: files, folders, archives, objects and prefixes of a bucket, each read in place."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from inat_job.data import layout
from inat_job.errors import BadDataError, UsageError
from inat_job.ingest import archives, data_source
from inat_job.ingest.container import Load
from inat_job.options import public_uri
from inat_job.signals import Stop
from inat_job.storage import StorageOptions, open_store, split_uri
from inat_job.storage.interruptible import interruptible


@dataclass(frozen=True)
class ImageSource:
    """The images of one PATH; `read` is its container's `load`, and `shown` how a name is shown, without what may be
    secret.
    """

    read: Callable[[Sequence[str]], Iterator[tuple[str, Load]]]
    names: Sequence[str]
    shown: Callable[[str], str]

    def load(self) -> Iterator[tuple[str, Load]]:
        """The shown name of each image and the function that reads it, which raises Rejected or a JobError."""
        return ((self.shown(name), load) for name, load in self.read(self.names))


def find_images(path: str, cache_dir: Path, options: StorageOptions, stop: Stop) -> ImageSource:
    """The images at a path or URI: one image, or those of a folder, a prefix or an archive.

    Hidden files and sidecars, such as .csv and .txt, are left out. Raises BadDataError if there is nothing, and what
    the source raises.
    """
    parent, key = split_uri(path)
    store = interruptible(open_store(parent, options), stop)
    entry = store.stat(key) if key else None
    if entry is not None and not data_source.names_archive(path):
        return ImageSource(archives.LooseFiles(store, {key: entry.size}, {}).load, [key], lambda name: public_uri(path))
    try:
        container = data_source.find(path, cache_dir, options, stop).open()
    except (BadDataError, UsageError) as error:
        raise type(error)(str(error).replace("check --data", "check the path").replace("--data", "PATH")) from None
    names = [
        name
        for name in container.names()
        if not layout.is_ignored(name) and not layout.is_sidecar(name) and not name.endswith("/")
    ]
    if not names:
        raise BadDataError(f"{public_uri(path)} holds no images: check the path.")
    prefix = f"{public_uri(path).rstrip('/')}/"
    return ImageSource(container.load, names, lambda name: prefix + name)


def unreadable_path(path: str, error: BadDataError) -> ImageSource:
    """In place of the images of a path that has none: a single one, whose `Load` raises the reason."""

    def fail() -> bytes:
        raise error

    return ImageSource(lambda names: iter([(path, fail)]), [path], public_uri)
