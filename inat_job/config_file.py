"""The file of `--config`: TOML, or JSON by its name, with the settings in sections."""

import functools
import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from inat_job.address import expanded
from inat_job.errors import UsageError


def read(file: str) -> dict[str, Any]:
    """The file's values by "section.field". Raises UsageError for one that cannot be read or gives a value twice."""
    once = functools.partial(_each_once, file)
    try:
        text = Path(expanded(file)).read_text(encoding="utf-8-sig")
        tables = json.loads(text, object_pairs_hook=once) if file.endswith(".json") else tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"--config is {file}, which cannot be read ({error.strerror}): check the path.") from None
    except (ValueError, RecursionError) as error:
        yaml = file.endswith((".yaml", ".yml"))
        why = "which is not read: write" if yaml else f"which is not TOML, nor JSON in a *.json file ({error}): write"
        raise UsageError(f"--config is {file}, {why} it as --print-config does.") from None
    if not isinstance(tables, dict):
        raise UsageError(f"--config {file} has no sections: write it as --print-config does.")
    for section, fields in tables.items():
        if "." not in section and not isinstance(fields, dict):
            raise UsageError(
                f"--config {file}: {section!r} is not a section: write its settings as --print-config does."
            )
    return once(flatten(tables))


def flatten(tables: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Pairs of "section.field" and value, from values by section and field."""
    for section, fields in tables.items():
        if isinstance(fields, Mapping):
            yield from ((f"{section}.{field}", value) for field, value in fields.items())
        else:
            yield section, fields


def _each_once(file: str, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a mapping, where a dict would silently keep the last of two."""
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise UsageError(f"--config {file} gives {key!r} twice: leave one out.")
        values[key] = value
    return values
