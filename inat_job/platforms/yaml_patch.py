"""Reads manifests and `submit --patch` from YAML files, and merges a patch as kustomize does."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from inat_job.errors import UsageError
from inat_job.platforms.sent_secrets import variables_in
from inat_job.platforms.submit_values import OWN_VARIABLE

Document = dict[str, Any]

_ITEM_KEYS = {
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "topologySpreadConstraints": "topologyKey",
    "hostAliases": "ip",
    "resourceRequirements": "type",
    "nodeRangeProperties": "targetNodes",
    "Tags": "Key",
    "InputDataConfig": "ChannelName",
    "MetricDefinitions": "Name",
}
"""The field by which the items of a list are merged, where it is not `name`: Kubernetes' own merge keys, then AWS's."""

_DIRECTIVE = "$patch"


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses a key that an object has twice, of which PyYAML would take the last."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        """The object as it is written. Raises ValueError."""
        node, seen = super().compose_mapping_node(anchor), set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise ValueError(f"the key {key.value} is given twice, again in line {key.start_mark.line + 1}")
            seen.add(key.value)
        return node


def read_documents(path: str | Path) -> list[Document]:
    """The objects in a YAML or JSON file. Raises OSError, and ValueError for anything else than objects of JSON."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        documents = [each for each in yaml.load_all(text, Loader=_Loader) if each is not None]
        if not documents or not all(isinstance(each, dict) for each in documents):
            raise ValueError("it contains no object")
        _check_json(documents)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("it contains itself") from None
    return documents


def _check_json(value: Any) -> None:
    """Raise ValueError for what YAML makes of a date, of a key such as 1 or `on`, or of .nan and .inf."""
    if isinstance(value, dict):
        for name, each in value.items():
            if not isinstance(name, str):
                raise ValueError(f"the key {name} is no text, write it in quotes")
            _check_json(each)
    elif isinstance(value, list):
        for each in value:
            _check_json(each)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no number of JSON")
    elif not isinstance(value, str | int | float | None):
        raise ValueError(f"{value} is neither text nor number, write it in quotes")


def read_patch(path: str | None) -> list[Document]:
    """The documents of --patch, none without it. Raises UsageError."""
    try:
        return read_documents(path) if path else []
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--patch is {path!r}, which cannot be read ({reason}): it must be a YAML file.") from None


def patched(document: Document, patches: Sequence[Document], fixed: Mapping[str, str]) -> Document:
    """A manifest or request with the patches merged into it.

    `fixed` maps the paths that no patch may change, such as spec.containers.job.args, to the reason and the fix. Raises
    UsageError for a change of these or of a setting, and for a patch without an effect.
    """
    before = document
    for patch in patches:
        after = merge(document, patch)
        if after == document:
            raise UsageError(
                f"--patch changes nothing by {', '.join(patch) or 'nothing'}: correct it, or leave it out."
            )
        document = after
    for path, why in fixed.items() if patches else ():
        if _at(before, path) != _at(document, path):
            raise UsageError(f"--patch changes {path}, {why}.")
    was, now = dict(variables_in(before)), dict(variables_in(document))
    for name in {**was, **now}:
        if OWN_VARIABLE.match(name) and was.get(name) != now.get(name):
            raise UsageError(f"--patch changes {name}, a variable of the job itself: use an option of the command.")
    return document


def _at(value: Any, path: str) -> Any:
    """The value at a path of keys, and of names or numbers of items; None where there is none."""
    for key in path.split("."):
        if isinstance(value, list):
            named = [each for each in value if isinstance(each, Mapping) and each.get("name") == key]
            value = next(iter(named or (value[int(key) :] if key.isdecimal() else [])), None)
        else:
            value = value.get(key) if isinstance(value, Mapping) else None
    return value


def merge(old: Any, patch: Any, item_key: str = "name") -> Any:
    """`old` with a patch applied as kustomize's strategic merge does.

    Lists of named items are merged by name, other lists are replaced, null removes a field, and `$patch: delete` an
    item. Raises UsageError for another directive, for a plain value in place of an object or a list, and for two items
    of one name.
    https://kubectl.docs.kubernetes.io/references/kustomize/glossary/#patchstrategicmerge
    """
    if isinstance(patch, Mapping):
        if _DIRECTIVE in patch:
            raise UsageError(
                f"--patch has {_DIRECTIVE}: {patch[_DIRECTIVE]!r}: only `delete` in an item of a list works."
            )
        was = old if isinstance(old, Mapping) else {}
        for name, value in patch.items():
            if isinstance(was.get(name), dict | list) and not isinstance(value, type(was[name]) | None):
                kind = "an object" if isinstance(was[name], dict) else "a list"
                raise UsageError(f"--patch sets {name}, which must be {kind}, or null to remove it.")
        changed = {name: merge(was.get(name), value, _ITEM_KEYS.get(name, "name")) for name, value in patch.items()}
        return {name: value for name, value in {**was, **changed}.items() if name not in patch or value is not None}
    if _has_keys(patch, item_key) and (old is None or _has_keys(old, item_key)):
        items, new = ({each[item_key]: each for each in group} for group in (old or [], patch))
        if len(new) < len(patch):
            names = [each[item_key] for each in patch]
            twice = next(name for name in names if names.count(name) > 1)
            raise UsageError(f"--patch has two items with the {item_key} {twice!r} in a list: give it once.")
        kept = [name for name in {**items, **new} if new.get(name, {}).get(_DIRECTIVE) != "delete"]
        return [merge(items.get(name), new[name]) if name in new else items[name] for name in kept]
    return patch


def _has_keys(items: Any, item_key: str) -> bool:
    return isinstance(items, list) and all(
        isinstance(each, Mapping) and isinstance(each.get(item_key), str | int) for each in items
    )
