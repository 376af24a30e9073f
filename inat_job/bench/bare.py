"""A process that decodes its share of an archive and throws the result away: what `prepare` is measured against.

    python -m inat_job.bench.bare ARCHIVE SIDE FIRST STEP

It says that it is ready, waits for a line, works, and says how many pictures it has done; from line to line.
"""

import sys
from pathlib import Path

from inat_job.data import archives, layout
from inat_job.data.decode import Rejected, decode


def main(archive: str, side: int, first: int, step: int) -> None:
    """Decode every `step`-th picture from `first`, as often as a line asks for it."""
    container = archives.open_archive(Path(archive))
    names = [picture.name for picture in layout.find(container.names(), archive)][first::step]
    print("ready", flush=True)
    for _ in sys.stdin:
        done = 0
        for _, read in container.load(names):
            done += _decoded(read, side)
        print(done, flush=True)


def _decoded(read: archives.Load, side: int) -> bool:
    try:
        decode(read(), side)
    except Rejected:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
