"""Finds the model that a person names: a run, its model/ folder, or a folder with model.json, local or in a store."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inat_job.errors import BadDataError
from inat_job.models.model_files import DESCRIPTION, EXPORTS, WEIGHTS, check_digest, read_description
from inat_job.options import public_uri
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
        return float(self.description.get("temperature") or 1.0)


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
    found = ModelFolder(path, description, hold_folder(path))
    try:
        if not found.classes or found.image_size < 1 or not 0 < found.eval_crop <= 1 or found.temperature <= 0:
            raise ValueError("a value is out of range")
        if file != WEIGHTS:  # the weights are checked where they are loaded
            check_digest(path / file, description["exports"][runtime]["sha256"])
    except (LookupError, TypeError, ValueError, OSError) as error:
        raise BadDataError(f"{path / DESCRIPTION} does not describe a model ({error}): export it again.") from None
    return found


def _located(name: str, output: str | None, options: StorageOptions) -> tuple[Store, str]:
    """The store of a run or a folder, and the prefix of the model in it."""
    files = [prefix + DESCRIPTION for prefix in _PREFIXES]
    store = open_store(run_uri(name, output, *files) if output else name, options)
    for prefix, file in zip(_PREFIXES, files, strict=True):
        if store.stat(file) is not None:
            return store, prefix
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
