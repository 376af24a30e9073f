"""How the job ended, left where a platform looks for it: Kubernetes' termination log and SageMaker's failure file."""

import contextlib
import json
import os
import stat
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path

from inat_job.distributed import ranks
from inat_job.platforms.k8s import pod
from inat_job.platforms.sagemaker import training_job
from inat_job.telemetry.redact import discreet

LOG_BYTES = 4096
"""What Kubernetes keeps of a container's termination log."""

FAILURE_CHARACTERS = 1024
"""What SageMaker shows of the failure file as FailureReason."""


def say(
    code: int,
    reason: str,
    step: int | None,
    checkpoint: str | None,
    environment: Mapping[str, str] = os.environ,
    termination_log: Path = Path("/", pod.TERMINATION_LOG),
) -> None:
    """Leave the exit code and a sentence, with the step and checkpoint last stored, where this platform reads.

    Kubernetes shows the log of every container that ended, so it is written on success too, and whoever reads it finds
    one shape; a failure file is for failures. A rank's words go to its supervisor. It never raises: the exit code
    counts more than the words.
    """
    sentence = discreet(" ".join(_utf8(reason).split())) or f"Ended with code {code}."
    if own := ranks.message_file(environment):  # the supervisor speaks for all of them
        with contextlib.suppress(Exception):
            _overwrite(own, _line(code, sentence, step, checkpoint), create=True)
        return
    with contextlib.suppress(Exception):
        if stat.S_ISREG(termination_log.lstat().st_mode):  # never made here: elsewhere nobody would read it
            _overwrite(termination_log, _line(code, sentence, step, checkpoint))
    with contextlib.suppress(Exception):
        base = training_job.base_folder(environment)
        if code and base:
            failure = training_job.failure_file(base)
            failure.parent.mkdir(exist_ok=True)
            _overwrite(failure, _cut(sentence, FAILURE_CHARACTERS).encode(), create=True)


def _line(code: int, sentence: str, step: int | None, checkpoint: str | None) -> bytes:
    """One line of JSON that fits, with as much of its texts as that allows."""

    def encoded(limit: int) -> bytes:
        words = {
            "code": code,
            "reason": _cut(sentence, limit),
            "step": step,
            "checkpoint": None if checkpoint is None else _cut(_utf8(checkpoint), limit),
        }
        return json.dumps(words, ensure_ascii=False).encode() + b"\n"

    limits = range(LOG_BYTES + 1)
    return encoded(limits[bisect_right(limits, LOG_BYTES, key=lambda limit: len(encoded(limit))) - 1])


def _utf8(text: str) -> str:
    """The text without the halves of characters that a file name may bring."""
    return text.encode(errors="backslashreplace").decode()


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: max(limit - 1, 0)] + "…"[:limit]


def _overwrite(path: Path, content: bytes, create: bool = False) -> None:
    """Write over the file in place, as a mounted one must be."""
    flags = os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    descriptor = os.open(path, flags, 0o644)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)
