"""A child process that decodes its share of an archive and discards the result: the limit for `prepare`.

    python -m inat_job.bench.bare_decode ARCHIVE SIDE FIRST STEP DECODER

It prints "ready". Then, for each line that it reads, it decodes its images and prints how many.
"""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F
from torchvision.io import ImageReadMode, decode_image

from inat_job.data import layout
from inat_job.ingest import archives
from inat_job.ingest.decode import Rejected, decode


def main(archive: str, side: str, first: str, step: str, decoder: str) -> None:
    """Decode every `step`-th image from `first`, once for each line on stdin."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DeprecationWarning)  # torchvision plans to remove its decoder
    decoders: dict[str, Callable[[bytes, int], object]] = {"ours": decode, "torchvision": _decode_at_full_size}
    decode_one = decoders[decoder]
    container = archives.open_archive(Path(archive))
    names = [image.name for image in layout.find_images(container.names(), archive)][int(first) :: int(step)]
    print("ready", flush=True)
    for _ in sys.stdin:
        done = 0
        for _, read in container.load(names):
            try:
                decode_one(read(), int(side))
            except (Rejected, RuntimeError):  # RuntimeError is torchvision's, for what it cannot read
                continue
            done += 1
        print(done, flush=True)


def _decode_at_full_size(data: bytes, side: int) -> torch.Tensor:
    """uint8 (side, side, 3): decoded by torchvision at full size, then resized."""
    pixels = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    return F.interpolate(pixels[None], (side, side), mode="bilinear", antialias=True)[0].permute(1, 2, 0).contiguous()


if __name__ == "__main__":
    main(*sys.argv[1:])
