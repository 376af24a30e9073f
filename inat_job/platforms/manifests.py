"""The manifests of k8s/, as `kubectl apply -k` takes them, read and changed: the one place where YAML is known."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from inat_job.errors import ConflictError

FOLDER = Path(__file__).parents[2] / "k8s"
"""Beside entrypoint.py, in a checkout and in the image."""

Manifest = dict[str, Any]


def read(name: str, folder: Path = FOLDER) -> Manifest:
    """A file with one manifest. Raises ConflictError where it can't be read."""
    path = folder / name
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConflictError(f"The manifest {path} can't be read ({reason}): take it from the release anew.") from None
    if not isinstance(found, dict):
        raise ConflictError(f"The manifest {path} holds no object: take it from the release anew.")
    return found


def patched(whole: Any, patch: Any) -> Any:
    """`whole` with what the patch says, as kustomize's strategic merge does it, whose lists of things with names merge.

    https://kubectl.docs.kubernetes.io/references/kustomize/glossary/#patchstrategicmerge
    """
    if isinstance(whole, Mapping) and isinstance(patch, Mapping):
        return {**whole, **{key: patched(whole.get(key), value) for key, value in patch.items()}}
    if _named(whole) and _named(patch):
        old, new = ({each["name"]: each for each in items} for items in (whole, patch))
        return [patched(old.get(name), new.get(name, old.get(name))) for name in {**old, **new}]
    return patch


def text(manifests: list[Manifest]) -> str:
    """What `kubectl apply -f` takes."""
    return str(yaml.safe_dump_all(manifests, sort_keys=False, allow_unicode=True, width=120))


def _named(items: Any) -> bool:
    return isinstance(items, list) and all(isinstance(each, Mapping) and "name" in each for each in items)
