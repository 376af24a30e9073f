"""Where the job runs, in plain values: what every platform is asked, whichever it is."""

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
    """What a platform tells the job and asks of it; None where it says nothing.

    `run_id` is the same in every attempt of the platform's job, `attempt` counts from 1. `rank` is this machine's among
    the `world` machines that work on one run; `master` is the host name or address of rank 0, None for one machine.
    `scratch` is for what may be lost, `output` keeps run folders, `grace_s` are the seconds from the stop signal to the
    kill. `failure` is the file for the sentence of a failure, beside stderr. `data` is the data set that the platform
    brought; `unclear` says why there is none though it brought something. `model` and `results` are the folders that it
    collects when the job has ended. `asked` are settings by the names of their options, with `part` and `config`.
    """

    name: str
    run_id: str | None = None
    attempt: int | None = None
    rank: int = 0
    world: int = 1
    master: str | None = None
    scratch: Path | None = None
    output: Path | None = None
    grace_s: float | None = None
    failure: Path | None = None
    data: Path | None = None
    unclear: str = ""
    model: Path | None = None
    results: Path | None = None
    asked: Mapping[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """What it says of the settings, by "section.field"."""
        said = {
            "run.run_id": self.run_id,
            "run.output": self.output and str(self.output),
            "run.grace_seconds": self.grace_s,
            "data.uri": self.data and str(self.data),
            "data.cache_dir": self.scratch and str(self.scratch / "cache"),
        }
        return {key: value for key, value in said.items() if value is not None}

    def facts(self) -> dict[str, Any]:
        """What a log should say of it."""
        said = {"run_id": self.run_id, "attempt": self.attempt, "rank": self.rank, "world": self.world}
        known = {name: value for name, value in said.items() if value is not None}
        return {"name": self.name, **known} | ({"master": self.master} if self.master else {})


NO_PLATFORM = Platform("machine")
"""A place that promises nothing: whoever starts the job there says all of it by options."""


def run_id_of(job: str) -> str | None:
    """A job's name as a run id: other characters become -, and what is too long ends in a digest of the whole."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", job)
    if len(plain) > _RUN_ID_LENGTH:
        digest = hashlib.sha256(job.encode(errors="surrogateescape")).hexdigest()[:_DIGEST_LENGTH]
        plain = f"{plain[: _RUN_ID_LENGTH - _DIGEST_LENGTH - 1]}-{digest}"
    return None if plain in ("", ".", "..") else plain


def whole(environment: Mapping[str, str], name: str) -> int | None:
    """The whole number, at least 0, in a variable that the platform sets, or None without one.

    Raises ConflictError for anything else.
    """
    text = environment.get(name, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit()):
        raise ConflictError(f"{name} is {text!r}: it must be a whole number, or not be set.")
    return int(text)


def first(environment: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    """The first of some variables that is set, as `whole` reads it."""
    found = [number for name in names if (number := whole(environment, name)) is not None]
    return found[0] if found else None
