"""The platform that runs the job, in plain values: the same questions for every platform."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inat_job.errors import ConflictError

_RUN_ID_LENGTH = 64
_DIGEST_LENGTH = 8


@dataclass(frozen=True)
class Platform:
    """What a platform provides to the job, and expects from it; None for what it does not set.

    `run_id` is the same in every attempt of the platform's job, and `attempt` counts from 1. This machine is number
    `node_rank` of the `num_nodes` machines of the run; `master_address` is the host name or address of machine 0, None
    for a single machine; `node_problem` says why a run cannot train as it was started. `scratch` may be lost at any
    time, `output` keeps run folders, and `grace_s` is the time in seconds from the stop signal to the kill.
    `data` is the data set that the platform provides; `data_problem` says why none of what it provides could be used.
    `model_folder` and `results_folder` are collected when the job has ended. `hyperparameters` are settings by option
    name, with `part` and `config`.
    """

    name: str
    run_id: str | None = None
    attempt: int | None = None
    node_rank: int = 0
    num_nodes: int = 1
    master_address: str | None = None
    node_problem: str = ""
    scratch: Path | None = None
    output: Path | None = None
    grace_s: float | None = None
    data: Path | None = None
    data_problem: str = ""
    model_folder: Path | None = None
    results_folder: Path | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """The settings that the platform suggests, by "section.field"."""
        suggested = {
            "run.run_id": self.run_id,
            "run.output": self.output and str(self.output),
            "run.grace_seconds": self.grace_s,
            "data.uri": self.data and str(self.data),
            "data.cache_dir": self.scratch and str(self.scratch / "cache"),
        }
        return {key: value for key, value in suggested.items() if value is not None}

    def log_fields(self) -> dict[str, Any]:
        """The fields of the log event `platform`."""
        fields = {
            "name": self.name,
            "run_id": self.run_id,
            "attempt": self.attempt,
            "rank": self.node_rank,
            "world": self.num_nodes,
            "master": self.master_address or None,
        }
        return {name: value for name, value in fields.items() if value is not None}


NO_PLATFORM = Platform("machine")
"""A plain machine, which sets nothing: every setting comes from options."""


def run_id_from(job_name: str) -> str | None:
    """The run id for a platform's job, None for a name that gives none.

    Other characters than those of a run id become `-`; a name that is too long ends in a digest of the full name.
    """
    run_id = re.sub(r"[^A-Za-z0-9._-]", "-", job_name)
    if len(run_id) > _RUN_ID_LENGTH:
        digest = hashlib.sha256(job_name.encode(errors="surrogateescape")).hexdigest()[:_DIGEST_LENGTH]
        run_id = f"{run_id[: _RUN_ID_LENGTH - _DIGEST_LENGTH - 1]}-{digest}"
    return None if run_id in ("", ".", "..") else run_id


_SERVICE = re.compile("(tcp|udp|sctp)://")
"""What Kubernetes sets MASTER_PORT to in each pod beside a Service called `master`:
https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables"""


def read_int(environment: Mapping[str, str], name: str) -> int | None:
    """The integer, at least 0, in an environment variable; None where it is not set, is empty or is of a Service.

    Raises ConflictError for anything else.
    """
    text = environment.get(name, "").strip()
    if not text or _SERVICE.match(text):
        return None
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ConflictError(f"{name} is {text!r}: set it to a whole number, or unset it.")
    return int(text)


def first_int(environment: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    """The integer in the first of these variables that is set, None if none is. Raises as `read_int` does."""
    numbers = [number for name in names if (number := read_int(environment, name)) is not None]
    return numbers[0] if numbers else None
