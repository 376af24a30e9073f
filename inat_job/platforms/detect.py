"""Which platform this is: the first that shows itself, from the most to the least particular."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from inat_job.platforms.batch import batch_job
from inat_job.platforms.k8s import pod
from inat_job.platforms.platform import NO_PLATFORM, Platform, first
from inat_job.platforms.sagemaker import training_job

CONTAINER = Platform("container")

_NODES, _NODE = ("INAT_NUM_NODES", "PET_NNODES"), ("NODE_RANK", "PET_NODE_RANK")

_CONTAINERS = (".dockerenv", "run/.containerenv")
"""What Docker and podman leave in a container."""


def place(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> Platform:
    """Where the job runs, by the environment and the files under `root`, and nothing else.

    SageMaker comes before the platform that it may be imitated on, and Batch before the Kubernetes that it may run on.
    `docker stop` waits 10 s unless it is told otherwise, which the container can't see: its grace is not known. Raises
    UsageError or ConflictError where a platform's own words are damaged or contradict themselves.
    """
    if base := training_job.base_folder(environment, root):
        return training_job.place(base, environment, root)
    found = batch_job.place(environment) or pod.place(environment, root)
    if found:
        return found
    plain = CONTAINER if any((root / name).exists() for name in _CONTAINERS) else NO_PLATFORM
    return replace(plain, **_told(environment))


def _told(environment: Mapping[str, str]) -> dict[str, Any]:
    """Which machine of several this is, where whoever starts the job says it in torchrun's words."""
    if "LOCAL_RANK" in environment:  # and this is no machine, but one of its ranks, see ranks.py
        return {}
    master = environment.get("MASTER_ADDR") or environment.get("PET_MASTER_ADDR")
    return {"rank": first(environment, _NODE) or 0, "world": first(environment, _NODES) or 1, "master": master}
