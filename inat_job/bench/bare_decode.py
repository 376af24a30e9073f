"""A process that decodes its share of an archive and throws the result away: what `prepare` is measured against.

    python -m inat_job.bench.bare_decode ARCHIVE SIDE FIRST STEP DECODER

It says that it is ready, waits for a line, works, and says how many images it has done; from line to line.
"""

import sys
import warnings
from pathlib import Path

import torch
from torch.nn import functional as F
from torchvision.io import ImageReadMode, decode_image

from inat_job.data import layout
from inat_job.ingest import archives
from inat_job.ingest.decode import Rejected, decode


def main(archive: str, side: str, first: str, step: str, decoder: str) -> None:
    """Decode every `step`-th image from `first`, as often as a line asks for it."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DeprecationWarning)  # torchvision means to give its decoder up
    decoded = {"ours": decode, "torchvision": _at_full_size}[decoder]
    container = archives.open_archive(Path(archive))
    names = [image.name for image in layout.find_images(container.names(), archive)][int(first) :: int(step)]
    print("ready", flush=True)
    for _ in sys.stdin:
        done = 0
        for _, read in container.load(names):
            try:
                decoded(read(), int(side))
            except (Rejected, RuntimeError):  # the latter is what torchvision says of what it can't read
                continue
            done += 1
        print(done, flush=True)


def _at_full_size(data: bytes, side: int) -> torch.Tensor:
    """uint8 (side, side, 3), by torchvision as it comes."""
    pixels = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    return F.interpolate(pixels[None], (side, side), mode="bilinear", antialias=True)[0].permute(1, 2, 0).contiguous()


if __name__ == "__main__":
    main(*sys.argv[1:])
