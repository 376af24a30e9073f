"""Finds the model that a person names: a run, its model/ folder, or a folder with model.json, local or in a store."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inat_job.errors import BadDataError
from inat_job.models.model_files import (
    DESCRIPTION,
    EXPORTS,
    WEIGHTS,
    check_description,
    check_digest,
    read_description,
    temperature_in,
)
from inat_job.options import public_uri
from inat_job.run.sweep_folder import refuse_sweep
from inat_job.signals import Stop
from inat_job.storage import StorageOptions, Store, cache_locks, open_store
from inat_job.storage.cache_locks import FolderHold, hold_folder
from inat_job.storage.local import LocalStore
from inat_job.storage.run_folder import run_uri

RUNTIMES = {"torch": WEIGHTS, "onnx": EXPORTS["onnx"]}
"""By runtime, the file with the network."""
_PREFIXES = ("", "model/")
"""Where model.json is in a folder that a person names."""


@dataclass(frozen=True)
class ModelFolder:
    """A local folder with model.json and the runtime's file; `hold` keeps it in the cache while it is used."""

    path: Path
    description: dict[str, Any]
    hold: FolderHold | None

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.description["classes"])

    @property
    def image_size(self) -> int:
        return int(self.description["preprocessing"]["image_size"])

    @property
    def eval_crop(self) -> float:
        return float(self.description["preprocessing"]["eval_crop"])

    @property
    def temperature(self) -> float:
        """What logits are divided by."""
        return temperature_in(self.description, self.path / DESCRIPTION)


def find_model(
    name: str, runtime: str, cache_dir: Path, options: StorageOptions, stop: Stop, output: str | None = None
) -> ModelFolder:
    """The model that `name` means: a path or URI, or a run id under `output`; a remote one is downloaded once.

    Raises BadDataError for a missing or damaged model, and one without the runtime's file, and what the store raises.
    """
    store, prefix = _located(name, output, options)
    file = RUNTIMES[runtime]
    if store.stat(prefix + file) is None:
        more = f": train with --export {runtime}, or use --runtime torch" if file != WEIGHTS else ": export it again"
        raise BadDataError(f"{store.uri}/{prefix} holds no {file}{more}.")
    if isinstance(store, LocalStore):
        path = store.root / prefix
    else:
        path = _download(store, prefix, (DESCRIPTION, file), cache_dir, stop)
    description = read_description(path / DESCRIPTION)
    check_description(description, path / DESCRIPTION)
    found = ModelFolder(path, description, hold_folder(path))
    if file != WEIGHTS:  # the weights are checked where they are loaded
        _check_export(path, description, runtime)
    return found


def _check_export(path: Path, description: Mapping[str, Any], runtime: str) -> None:
    """Raise BadDataError unless the runtime's file is the one that the description names."""
    try:
        check_digest(path / EXPORTS[runtime], description["exports"][runtime]["sha256"])
    except (LookupError, TypeError, OSError) as error:
        raise BadDataError(f"{path / DESCRIPTION} does not describe a model ({error}): export it again.") from None


def _located(name: str, output: str | None, options: StorageOptions) -> tuple[Store, str]:
    """The store of a run or a folder, and the prefix of the model in it."""
    files = [prefix + DESCRIPTION for prefix in _PREFIXES]
    store = open_store(run_uri(name, output, *files) if output else name, options)
    for prefix, file in zip(_PREFIXES, files, strict=True):
        if store.stat(file) is not None:
            return store, prefix
    refuse_sweep(store, whole=True)
    raise BadDataError(
        f"{public_uri(name)} holds no {DESCRIPTION}: name a run that has trained, its model/ folder, or its run id "
        "under --output."
    )


def _download(store: Store, prefix: str, files: tuple[str, ...], cache_dir: Path, stop: Stop) -> Path:
    entries = [store.stat(prefix + file) for file in files]
    versions = " ".join(f"{each.version} {each.size}" for each in entries if each)
    name = hashlib.sha256(f"{store.uri} {prefix} {versions}".encode()).hexdigest()[:16]
    folder = cache_dir / "weights" / name
    for file in files:
        cache_locks.fetch(store, prefix + file, folder / file, cache_dir, stop, what="model")
    return folder
