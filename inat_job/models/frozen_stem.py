"""Cuts a network after its frozen stem, whose output for a view never changes and can be cached over the epochs."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth

from inat_job.models.strategies import Architecture, has_prefix

_RANDOM = (_DropoutNd, StochasticDepth, _NormBase)
"""Layers that behave differently in training: unless frozen, they make everything after them differ each time. So does
timm's DropPath, which has a `drop_prob`."""


class CannotCutError(Exception):
    """The network cannot be cut; the message is the reason."""


@dataclass(frozen=True)
class StemAndTail:
    """The two halves of a network, which share its layers.

    `stem` takes pixels (B, 3, S, S) to features (B, ...), `tail` features to logits (B, classes). `cut_at` is the name
    of the stem's last node. Constants that belong to no layer stay on the device where the network was cut: after a
    move to another device, cut it again.
    """

    cut_at: str
    stem: nn.Module
    tail: nn.Module


def cut_stem(architecture: Architecture, n_trainable_stages: int) -> StemAndTail:
    """Cut after the last node that depends on no trainable and no random layer. Raises CannotCutError."""
    network = architecture.network
    frozen = architecture.stages[: len(architecture.stages) - n_trainable_stages]
    graph = _trace(network)
    changing = _changing_nodes(graph, network, [prefix for stage in frozen for prefix in stage])
    (pixels,) = graph.find_nodes(op="placeholder")
    output = graph.output_node()
    for end in reversed(graph.nodes):
        if end in changing or end.op in ("get_attr", "placeholder"):
            continue
        after = _dependencies(output, end)
        if pixels not in after:
            stem, tail = _subgraph(graph, _dependencies(end), end=end), _subgraph(graph, after, start=end)
            return StemAndTail(cut_at=end.name, stem=fx.GraphModule(network, stem), tail=fx.GraphModule(network, tail))
    raise CannotCutError("no frozen layer comes before all trainable ones")


def stem_digest(stem: nn.Module) -> str:
    """SHA-256 of everything that decides what a stem computes: its graph, weights and statistics."""
    found = hashlib.sha256(str(stem).encode())
    for name, tensor in sorted(stem.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # Tracing into it would fix whether it is in training mode. timm has norms and random layers of its own.
        of_timm = m.__module__.startswith("timm.") and not any(m.children())
        return isinstance(m, _RANDOM) or of_timm or super().is_leaf_module(m, module_qualified_name)


def _trace(network: nn.Module) -> fx.Graph:
    try:
        graph = _Tracer().trace(network)
    except Exception as error:  # torchvision's code may raise anything when it is called with proxies
        raise CannotCutError(f"its operations cannot be listed ({error})") from None
    if any(node.target in (F.dropout, F.dropout2d) and node.args[1:2] != (0.0,) for node in graph.nodes):
        raise CannotCutError("it has dropout outside a layer")
    return graph


def _changing_nodes(graph: fx.Graph, network: nn.Module, frozen: Collection[str]) -> set[fx.Node]:
    """The nodes whose values for the same input may differ from one epoch to the next."""
    trainable = {name for name, _ in network.named_parameters() if not has_prefix(name, frozen)}
    changing: set[fx.Node] = set()
    for node in graph.nodes:
        changes = False
        if node.op == "call_module":
            module = network.get_submodule(node.target)
            changes = any(has_prefix(name, [node.target]) for name in trainable)
            changes = changes or (_is_random(module) and not has_prefix(node.target, frozen))
        elif node.op == "get_attr":
            changes = node.target in trainable
        if changes or changing & set(node.all_input_nodes):
            changing.add(node)
    return changing


def _is_random(module: nn.Module) -> bool:
    return (isinstance(module, _RANDOM) and getattr(module, "p", 1.0) > 0) or getattr(module, "drop_prob", 0.0) > 0


def _dependencies(last: fx.Node, end: fx.Node | None = None) -> set[fx.Node]:
    """`last` and all nodes that it depends on, without `end` and those that only `end` depends on."""
    found, waiting = set(), [last]
    while waiting:
        node = waiting.pop()
        if node is not end and node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _subgraph(
    graph: fx.Graph, nodes: set[fx.Node], *, start: fx.Node | None = None, end: fx.Node | None = None
) -> fx.Graph:
    """A graph of these nodes, in order, whose input is the output of `start` and whose output is that of `end`."""
    copy = fx.Graph()
    known = {} if start is None else {start: copy.placeholder("features")}
    for node in graph.nodes:
        if node in nodes:
            known[node] = copy.node_copy(node, known.__getitem__)
    if end is not None:
        copy.output(known[end])
    return copy
