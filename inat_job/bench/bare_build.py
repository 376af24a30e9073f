"""The least that any job must do before its first step: import torch, torchvision and Lightning, and build the network.

It says so when it has; that is its time, for to end takes a process of this size as long as a third of it.

python -m inat_job.bench.bare_build SPEC
"""

import json
import sys
from pathlib import Path

import lightning  # noqa: F401  # to have it imported is all that it is for
import torch  # noqa: F401
import torchvision  # noqa: F401

from inat_job.configuration import configure
from inat_job.models.build import BuildInputs, build
from inat_job.signals import never
from inat_job.storage import StorageOptions


def main(text: str) -> None:
    """Build the network of the settings in the spec."""
    spec = json.loads(text)
    settings = configure(spec["part"], spec["flags"], [], None).settings
    data = settings.data
    build(
        settings.model,
        BuildInputs(spec["classes"], data.image_size, True, Path(data.cache_dir), StorageOptions(), never),
    )
    print("built", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
