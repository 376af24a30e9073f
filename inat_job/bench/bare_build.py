"""A child process: the least that any job must do before its first step, the limit for the time to first step.

It imports torch, torchvision and Lightning, builds the network, and prints a line. That line is what is timed, since
ending a process of this size takes a third as long.

    python -m inat_job.bench.bare_build SPEC
"""

import json
import sys
from pathlib import Path

import lightning  # noqa: F401  # only imported, for the time that it takes
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
    inputs = BuildInputs(spec["classes"], data.image_size, True, Path(data.cache_dir), StorageOptions(), never)
    build(settings.model, inputs)
    print("built", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
