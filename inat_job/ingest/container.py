"""What holds image files, what they are called in it, and whose fault it is when one cannot be read."""

import errno
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from inat_job.errors import BadDataError, JobError
from inat_job.ingest.decode import Rejected
from inat_job.storage.disk import disk_errors

Load = Callable[[], bytes]

LINK = "a link, not a image"


class Container(Protocol):
    """What holds image files."""

    def names(self) -> list[str]:
        """Paths of the files and links, with `/`, each once."""

    def load(self, names: Collection[str]) -> Iterator[tuple[str, Load]]:
        """Each name once, in the order that is cheapest to read, with a function that any thread may call."""


def plain_name(name: str) -> str:
    """A member's path without `.` parts and doubled or leading slashes, and with `/` where Windows wrote `\\`."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def refuse(reason: Rejected) -> bytes:
    raise reason


@contextmanager
def damage(path: Path) -> Iterator[None]:
    with disk_errors(path, missing=f"{path} does not exist: check --data."):
        try:
            yield
        except Exception as error:
            if is_the_machines(error):
                raise
            words = " ".join(str(error).split())
            raise BadDataError(f"{path} is no intact archive ({words}): fetch it again.") from None


def is_the_machines(error: Exception) -> bool:
    """Whether an error is ours or the machine's: by a damaged file, zipfile and tarfile raise nearly any other."""
    disk = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)  # a header may tell to seek below 0
    return disk or isinstance(error, JobError | MemoryError)
