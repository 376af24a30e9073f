"""Builds the network of a run from its settings: Part A's or Part B's, by the type of the model settings alone."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import singledispatch
from pathlib import Path

from torch import nn

from inat_job import events
from inat_job.errors import TransientError, UsageError
from inat_job.host.environment import torch_hub_folder
from inat_job.models.backbones import build_backbone, check_size
from inat_job.models.find_weights import parse_weights, stat_weights, weights_of_library
from inat_job.models.five_block import FiveBlockSpec, block_filters, build_five_block
from inat_job.models.strategies import AFTER_PROBE, Architecture
from inat_job.models.weights import LoadedWeights, load_weights
from inat_job.options import public_uri, unsigned_uri
from inat_job.settings import BLOCKS, BackboneSettings, FiveBlockSettings
from inat_job.signals import Stop
from inat_job.storage import StorageOptions, cache_locks
from inat_job.storage.cache_locks import hold_folder


@dataclass(frozen=True)
class BuildInputs:
    """What building a network needs beside its settings; `pretrained` is off if a checkpoint replaces the weights.

    `other_sizes` are the sizes that it must take besides the image size, by their flags; `lacking` is what pretrained
    weights lacked that are not loaded now (`Architecture.lacking`).
    """

    classes: int
    image_size: int
    pretrained: bool
    cache_dir: Path
    options: StorageOptions
    stop: Stop
    other_sizes: Mapping[str, int] = field(default_factory=dict)
    lacking: tuple[str, ...] = ()


@singledispatch
def build(settings: object, inputs: BuildInputs) -> Architecture:
    """The network for some model settings, with fresh weights drawn from torch's generator.

    Raises UsageError for values that make no network, and what loading weights raises.
    """
    raise AssertionError(f"no network for {type(settings).__name__}")


@build.register
def _(settings: FiveBlockSettings, inputs: BuildInputs) -> Architecture:
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
            image_size=inputs.image_size,
            num_classes=inputs.classes,
        )
    )


@build.register
def _(settings: BackboneSettings, inputs: BuildInputs) -> Architecture:
    architecture = dataclasses.replace(
        build_backbone(settings.backbone, inputs.classes, inputs.image_size),
        strategy=settings.strategy,
        last_k=settings.last_k,
        layer_decay=settings.layer_decay,
        feature_views=settings.feature_views,
        freeze_batch_norm=settings.freeze_batch_norm,
        lacking=inputs.lacking,
    )
    _check_probe(architecture)
    for flag, size in inputs.other_sizes.items():
        if size != inputs.image_size:
            check_size(settings.backbone, architecture.network, size, flag)
    if inputs.pretrained and settings.weights != "none":
        loaded = _load_weights(architecture, settings, inputs)
        found = {"loaded": loaded.loaded, "missing": len(loaded.missing), "statistics": loaded.statistics}
        events.emit("weights", sha256=loaded.sha256, **found)
        architecture = dataclasses.replace(architecture, lacking=tuple(f"backbone.{key}" for key in loaded.missing))
    return architecture


def _check_probe(architecture: Architecture) -> None:
    """Raise UsageError for a strategy that solves for the head, and a head that is not one dense layer."""
    heads = [type(architecture.network.get_submodule(each)) for each in architecture.head]
    if architecture.strategy in AFTER_PROBE and heads != [nn.Linear]:
        raise UsageError(
            f"--strategy {architecture.strategy} solves for a single dense layer, which is not the head of "
            f"{architecture.name}: use --strategy full."
        )


def _load_weights(architecture: Architecture, settings: BackboneSettings, inputs: BuildInputs) -> LoadedWeights:
    """Load the weights of `--weights`: those of torchvision or timm by name, or a file at a path or URI."""
    weights = parse_weights(settings.weights)
    if weights.is_name:
        path = _named_file(architecture.name, weights.source, inputs)
    else:
        path = _download(weights.source, inputs) if weights.is_uri else Path(weights.source)
    return load_weights(architecture, path, sha256=weights.sha256 or None, allow_partial=settings.allow_partial_weights)


def _named_file(backbone: str, name: str, inputs: BuildInputs) -> Path:
    """The library's file from the library's own folder if it is there, or else downloaded like any other."""
    url, local = weights_of_library(backbone, name, torch_hub_folder())
    if local:
        return local
    try:
        return _download(url, inputs)
    except TransientError as error:
        raise TransientError(f"{error} Or download it elsewhere, and name the file by --weights.") from error


def _download(uri: str, inputs: BuildInputs) -> Path:
    """The file behind a URI, downloaded unless this version of it is in the cache.

    Raises BadDataError if there is none, ConflictError if the cache folder cannot be written.
    """
    store, entry = stat_weights(uri, inputs.options, inputs.stop)
    # Without the URL's signature, which changes while the file does not.
    version = hashlib.sha256(f"{unsigned_uri(uri)} {entry.version} {entry.size}".encode()).hexdigest()[:16]
    path = inputs.cache_dir / "weights" / version / Path(public_uri(uri)).name
    cache_locks.fetch(store, entry.key, path, inputs.cache_dir, inputs.stop, what="weights")
    hold_folder(path.parent)  # only notes the use: nothing keeps the hold
    return path
