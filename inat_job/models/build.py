"""From the settings of a part to its architecture; which part it is, is known by the type of its settings alone."""

import dataclasses
import hashlib
import re
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path

import torch

from inat_job import events
from inat_job.errors import BadDataError, TransientError, UsageError
from inat_job.models.backbones import build_backbone
from inat_job.models.five_block import BLOCKS, FiveBlockSpec, block_filters, build_five_block
from inat_job.models.strategies import Architecture
from inat_job.models.weights import LoadedWeights, is_weights_name, load_weights, named_weights
from inat_job.options import public_uri, unsigned_uri
from inat_job.settings import BackboneSettings, FiveBlockSettings
from inat_job.signals import Stop
from inat_job.storage import StorageOptions, cache_locks, open_store, split_uri
from inat_job.storage.cache_locks import hold_folder


@dataclass(frozen=True)
class BuildInputs:
    """What building needs beside the settings of the model; `pretrained` is off where a checkpoint follows."""

    classes: int
    image_size: int
    pretrained: bool
    cache_dir: Path
    options: StorageOptions
    stop: Stop


@singledispatch
def build(settings: object, needs: BuildInputs) -> Architecture:
    """The network for some settings, its fresh weights drawn from torch's generator."""
    raise AssertionError(f"no network for {type(settings).__name__}")


@build.register
def _(settings: FiveBlockSettings, needs: BuildInputs) -> Architecture:
    filters, kernels = settings.filters, settings.kernel_sizes
    return build_five_block(
        FiveBlockSpec(
            filters=filters if len(filters) > 1 else block_filters(filters[0], settings.filter_organisation),
            kernel_sizes=kernels if len(kernels) > 1 else kernels * BLOCKS,
            activation=settings.activation,
            dense=settings.dense,
            pooling=settings.pooling,
            batch_norm=settings.batch_norm,
            dropout=settings.dropout,
            image_size=needs.image_size,
            num_classes=needs.classes,
        )
    )


@build.register
def _(settings: BackboneSettings, needs: BuildInputs) -> Architecture:
    built = build_backbone(settings.backbone, needs.classes, needs.image_size)
    architecture = dataclasses.replace(
        built,
        strategy=settings.strategy,
        last_k=settings.last_k,
        layer_decay=settings.layer_decay,
        feature_views=settings.feature_views,
    )
    if needs.pretrained and settings.weights != "none":
        loaded = _weights(architecture, settings, needs)
        events.emit("weights", sha256=loaded.sha256, loaded=loaded.loaded, missing=len(loaded.missing))
    return architecture


def _weights(architecture: Architecture, settings: BackboneSettings, needs: BuildInputs) -> LoadedWeights:
    """Load the weights that `--weights` names: torchvision's, or a file at a path or URI."""
    uri, mark, fragment = settings.weights.partition("#")
    sha256 = fragment.removeprefix("sha256=") if mark else None
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise UsageError(f"--weights ends in #{fragment}: write #sha256= and 64 hexadecimal digits.")
    if is_weights_name(uri):
        path = _named(named_weights(architecture.name, uri).url, needs)
    else:
        path = _fetched(uri, needs) if "://" in uri else Path(uri)
    return load_weights(architecture, path, sha256=sha256, allow_partial=settings.allow_partial_weights)


def _named(url: str, needs: BuildInputs) -> Path:
    """torchvision's own file: where torch keeps such files, if it is there, or else fetched as any other."""
    kept = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if kept.exists():
        return kept
    try:
        return _fetched(url, needs)
    except TransientError as error:
        raise TransientError(f"{error} Or fetch it elsewhere, and name the file by --weights.") from error


def _fetched(uri: str, needs: BuildInputs) -> Path:
    """The file behind a URI, fetched unless this version of it is here.

    Raises BadDataError when there is none, ConflictError when the cache folder cannot be written.
    """
    parent, key = split_uri(uri)
    store = open_store(parent, needs.options)
    entry = store.stat(key)
    if entry is None:
        raise BadDataError(f"--weights names {public_uri(uri)}, which does not exist: check it.")
    # Another signature is not another file.
    version = hashlib.sha256(f"{unsigned_uri(uri)} {entry.version} {entry.size}".encode()).hexdigest()[:16]
    path = needs.cache_dir / "weights" / version / Path(public_uri(uri)).name
    cache_locks.fetch(store, key, path, needs.cache_dir, needs.stop, what="weights")
    hold_folder(path.parent)  # which notes that it is used
    return path
