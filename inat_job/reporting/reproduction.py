"""How to run again what a report is of: the settings that are not the defaults, and the command that sets them."""

import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from inat_job.configuration import options_by_key
from inat_job.options import as_text
from inat_job.recipes import RECIPES

_NOT_REPEATED = ("run.resume", "run.force")
"""Settings that decide about the run that was there, and would delete this one."""


def is_test(report: Mapping[str, Any]) -> bool:
    """Whether this is the report of a test, whose checkpoint is that of another run."""
    return f"/{report['run_id']}/checkpoints/" not in report["checkpoint"]["uri"]


def changed_settings(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings that are not the defaults of the part, with both values."""
    own, defaults = (_plain(sections) for sections in (report["settings"], RECIPES[report["part"]]().as_dict()))
    return [
        {"setting": f"{section}.{field}", "value": value, "default": defaults.get(section, {}).get(field)}
        for section, every in own.items()
        for field, value in every.items()
        if field in defaults.get(section, {}) and value != defaults[section][field]
    ]


def command_line(report: Mapping[str, Any], prefix: Sequence[str]) -> str:
    """The command of a run, for a shell. `prefix` is the words that start this program."""
    if is_test(report):
        return shlex.join([*prefix, "test", "--checkpoint", report["checkpoint"]["uri"]])
    return train_command(report, prefix)


def train_command(report: Mapping[str, Any], prefix: Sequence[str], leave_out: Collection[str] = ()) -> str:
    """The command that trains with a report's settings, all but those to `leave_out`, for a shell."""
    known = options_by_key(RECIPES[report["part"]]())
    words = [*prefix, f"part{report['part']}"]
    for row in changed_settings(report):
        if row["setting"] not in (*_NOT_REPEATED, *leave_out):
            words += _words(known[row["setting"]][0], row["value"])
    return shlex.join(words)


def config_file(report: Mapping[str, Any], leave_out: Collection[str] = ()) -> list[str]:
    """The settings that are not the defaults, as lines of TOML for `--config`, all but those to `leave_out`."""
    sections: dict[str, list[str]] = {}
    for row in changed_settings(report):
        section, _, field = row["setting"].partition(".")
        if row["setting"] not in leave_out and row["value"] is not None:
            sections.setdefault(section, []).append(f"{field} = {json.dumps(row['value'])}")
    return [line for name, lines in sections.items() for line in (f"[{name}]", *lines)]


def _plain(sections: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as a file has them, without tuples."""
    return dict(json.loads(json.dumps(sections)))


def _words(option: Any, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [option.flag if value else f"--no-{option.name}"]
    text = as_text(value)
    return [f"{option.flag}={text}"] if text.startswith("-") else [option.flag, text]
