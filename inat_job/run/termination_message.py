"""Writes how the job ended to where its platform looks: Kubernetes' termination log, SageMaker's failure file."""

import contextlib
import json
import os
import stat
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path

from inat_job.address import as_utf8
from inat_job.distributed import ranks
from inat_job.platforms.k8s import pod
from inat_job.platforms.sagemaker import training_job
from inat_job.telemetry.redact import redact

LOG_BYTES = 4096
"""What Kubernetes keeps of a container's termination log."""

FAILURE_CHARACTERS = 1024
"""What SageMaker shows of the failure file as FailureReason."""


def write(
    code: int,
    reason: str,
    step: int | None,
    checkpoint: str | None,
    environment: Mapping[str, str] = os.environ,
    termination_log: Path = Path("/", pod.TERMINATION_LOG),
) -> None:
    """Write the exit code, the reason and the last stored checkpoint, with secrets removed.

    Kubernetes shows the termination log of every container that ended, so it is written on success too, in the same
    form; the failure file is written on failure only. A rank writes to the file of its launcher instead. Never
    raises: the exit code matters more than the message.
    """
    reason = redact(" ".join(as_utf8(reason).split())) or f"Ended with code {code}."
    if rank_file := ranks.message_file(environment):  # the launcher reports for all ranks
        with contextlib.suppress(Exception):
            _overwrite(rank_file, _json_line(code, reason, step, checkpoint), create=True)
        return
    with contextlib.suppress(Exception):
        if stat.S_ISREG(termination_log.lstat().st_mode):  # never created: outside of Kubernetes nobody reads it
            _overwrite(termination_log, _json_line(code, reason, step, checkpoint))
    with contextlib.suppress(Exception):
        base = training_job.base_folder(environment)
        if code and base:
            failure = training_job.failure_file(base)
            failure.parent.mkdir(exist_ok=True)
            _overwrite(failure, _truncate(reason, FAILURE_CHARACTERS).encode(), create=True)


def _json_line(code: int, reason: str, step: int | None, checkpoint: str | None) -> bytes:
    """One line of JSON of at most LOG_BYTES, with as much of the texts as that allows."""

    def encode(limit: int) -> bytes:
        message = {
            "code": code,
            "reason": _truncate(reason, limit),
            "step": step,
            "checkpoint": None if checkpoint is None else _truncate(as_utf8(checkpoint), limit),
        }
        return json.dumps(message, ensure_ascii=False).encode() + b"\n"

    limits = range(LOG_BYTES + 1)
    return encode(limits[bisect_right(limits, LOG_BYTES, key=lambda limit: len(encode(limit))) - 1])


def _truncate(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: max(limit - 1, 0)] + "…"[:limit]


def _overwrite(path: Path, content: bytes, create: bool = False) -> None:
    """Overwrite the file in place, since a mounted file cannot be replaced."""
    flags = os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    descriptor = os.open(path, flags, 0o644)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)
