"""Detects the platform, from the most to the least specific: SageMaker, AWS Batch, Slurm, Kubernetes, container,
machine.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from inat_job.platforms import slurm_step
from inat_job.platforms.batch import batch_job
from inat_job.platforms.k8s import pod
from inat_job.platforms.platform import NO_PLATFORM, Platform, first_int
from inat_job.platforms.sagemaker import training_job

CONTAINER = Platform("container")

_NUM_NODES, _NODE_RANK = ("INAT_NUM_NODES", "PET_NNODES"), ("NODE_RANK", "PET_NODE_RANK")

_CONTAINER_FILES = (".dockerenv", "run/.containerenv")
"""Files that Docker and podman create in every container."""


def detect_platform(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> Platform:
    """The platform that runs the job, by nothing but its environment variables and the files under `root`.

    SageMaker comes first because it can be emulated on any other platform, and Batch and Slurm come before Kubernetes
    because they can run on it. The grace period of a plain container is unknown: `docker stop` waits for 10 s by
    default, but the container cannot see its options. Nor does Slurm tell a job its own. Raises UsageError or
    ConflictError for a platform's files or variables that are damaged or contradict each other.
    """
    if base := training_job.base_folder(environment, root):
        return training_job.detect_sagemaker(base, environment, root)
    if platform := batch_job.detect_batch(environment):
        return platform
    if platform := slurm_step.detect_slurm(environment):
        if first_int(environment, _NUM_NODES) is None:
            return platform
        return replace(platform, node_problem="", **_node_fields(environment))
    if platform := pod.detect_kubernetes(environment, root):
        return platform
    plain = CONTAINER if any((root / name).exists() for name in _CONTAINER_FILES) else NO_PLATFORM
    return replace(plain, **_node_fields(environment))


def _node_fields(environment: Mapping[str, str]) -> dict[str, Any]:
    """Which of several machines this is, if torchrun's variables say so."""
    if "LOCAL_RANK" in environment:  # this process is already one of a machine's ranks, see distributed/ranks.py
        return {}
    return {
        "node_rank": first_int(environment, _NODE_RANK) or 0,
        "num_nodes": first_int(environment, _NUM_NODES) or 1,
        "master_address": environment.get("MASTER_ADDR") or environment.get("PET_MASTER_ADDR"),
    }
