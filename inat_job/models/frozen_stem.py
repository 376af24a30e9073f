"""Cuts a network where its frozen stem ends, so that what never changes need not be computed in every epoch."""

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
"""Layers that do something else in training; where they are not frozen, what follows them is another each time."""


class CannotCutError(Exception):
    """A network that cannot be cut; the message is the reason."""


@dataclass(frozen=True)
class StemAndTail:
    """The two halves of a network, which share its layers.

    `stem` takes pixels (B, 3, S, S) to features (B, ...), `tail` features to logits (B, classes); `at` names the place.
    A tensor that is no layer's own stays where it was when the network was cut: cut anew on another device.
    """

    cut_at: str
    stem: nn.Module
    tail: nn.Module


def cut_stem(architecture: Architecture, n_trainable_stages: int) -> StemAndTail:
    """Cut behind the last layer that no trainable or random layer comes before. Raises CannotCutError."""
    network = architecture.network
    closed = architecture.stages[: len(architecture.stages) - n_trainable_stages]
    graph = _traced(network)
    live = _live(graph, network, [prefix for stage in closed for prefix in stage])
    (pixels,) = graph.find_nodes(op="placeholder")
    output = graph.output_node()
    for end in reversed(graph.nodes):
        if end in live or end.op in ("get_attr", "placeholder"):
            continue
        after = _needed(output, end)
        if pixels not in after:
            stem, tail = _part(graph, _needed(end), end=end), _part(graph, after, start=end)
            return StemAndTail(cut_at=end.name, stem=fx.GraphModule(network, stem), tail=fx.GraphModule(network, tail))
    raise CannotCutError("nothing frozen comes before all that learns")


def stem_digest(stem: nn.Module) -> str:
    """SHA-256 of everything that decides what a stem computes: its layers' weights and statistics."""
    found = hashlib.sha256(str(stem).encode())
    for name, tensor in sorted(stem.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # Traced into, whether it is in training would be fixed for good.
        return isinstance(m, StochasticDepth) or super().is_leaf_module(m, module_qualified_name)


def _traced(network: nn.Module) -> fx.Graph:
    try:
        graph = _Tracer().trace(network)
    except Exception as error:  # foreign code meets stand-ins for tensors, and may raise anything
        raise CannotCutError(f"its operations cannot be listed ({error})") from None
    if any(node.target in (F.dropout, F.dropout2d) and node.args[1:2] != (0.0,) for node in graph.nodes):
        raise CannotCutError("it has dropout that is no layer")
    return graph


def _live(graph: fx.Graph, network: nn.Module, frozen: Collection[str]) -> set[fx.Node]:
    """The nodes whose values may change from one epoch to the next."""
    learning = {name for name, _ in network.named_parameters() if not has_prefix(name, frozen)}
    live: set[fx.Node] = set()
    for node in graph.nodes:
        own = False
        if node.op == "call_module":
            module = network.get_submodule(node.target)
            own = any(has_prefix(name, [node.target]) for name in learning)
            own = own or (_is_random(module) and not has_prefix(node.target, frozen))
        elif node.op == "get_attr":
            own = node.target in learning
        if own or live & set(node.all_input_nodes):
            live.add(node)
    return live


def _is_random(module: nn.Module) -> bool:
    return isinstance(module, _RANDOM) and getattr(module, "p", 1.0) > 0


def _needed(last: fx.Node, end: fx.Node | None = None) -> set[fx.Node]:
    """The nodes that `last` depends on, and itself; `end` is not looked behind."""
    found, waiting = set(), [last]
    while waiting:
        node = waiting.pop()
        if node is not end and node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _part(
    graph: fx.Graph, nodes: set[fx.Node], *, start: fx.Node | None = None, end: fx.Node | None = None
) -> fx.Graph:
    """A graph of these nodes, in order; it takes what `start` gives, and gives what `end` does."""
    part = fx.Graph()
    known = {} if start is None else {start: part.placeholder("features")}
    for node in graph.nodes:
        if node in nodes:
            known[node] = part.node_copy(node, known.__getitem__)
    if end is not None:
        part.output(known[end])
    return part
