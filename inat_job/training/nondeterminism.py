"""Names the layer and the operation that `--deterministic` refuses, which torch's own error does not."""

from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from inat_job.errors import ConflictError
from inat_job.models.classifier import Classifier

_REFUSED = " does not have a deterministic implementation"


class NondeterministicLayer(Callback):
    """Raises ConflictError with the layer's name where torch refuses an operation in training or evaluation.

    An operation of the backward pass is found by repeating the step, with notes of which layer saved what.
    """

    def __init__(self) -> None:
        self._batch: Any = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch = batch

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        operation, refused, _ = str(exception).partition(_REFUSED)
        if not refused or not isinstance(exception, RuntimeError):
            return
        network: nn.Module = pl_module.network if isinstance(pl_module, Classifier) else pl_module
        layer = _layer_in_forward(network, exception.__traceback__)
        if layer is None and self._batch is not None:
            layer = _layer_in_backward(network, partial(_loss, trainer, pl_module, self._batch))
        kind = type(network.get_submodule(layer)).__name__ if layer else ""
        where = f"in the layer {layer} ({kind})" if layer else "outside the network's layers"
        raise ConflictError(
            f"--deterministic cannot be kept: {operation.splitlines()[-1]} {where} has no deterministic form on "
            "this device. Leave --deterministic out, or choose another network."
        ) from exception


def _loss(trainer: Trainer, module: LightningModule, batch: Any) -> Tensor:
    with trainer.precision_plugin.train_step_context():
        loss = module.training_step(batch, 0)
    assert isinstance(loss, Tensor)
    return loss


def _layer_in_forward(network: nn.Module, traceback: TracebackType | None) -> str | None:
    """The innermost layer whose `forward` an error passed through."""
    names = {id(layer): name for name, layer in network.named_modules() if name}
    found = None
    while traceback:
        if traceback.tb_frame.f_code.co_name == "forward":
            found = names.get(id(traceback.tb_frame.f_locals.get("self")), found)
        traceback = traceback.tb_next
    return found


def _layer_in_backward(network: nn.Module, loss: Any) -> str | None:
    """The layer whose backward pass fails when that of `loss` is repeated."""
    inside, reached = [""], [""]
    nodes: set[Any] = set()

    def enter(name: str, *_: Any) -> None:
        inside.append(name)

    def leave(name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        inside.pop()
        if isinstance(output, Tensor) and output.grad_fn and output.grad_fn not in nodes:
            nodes.add(output.grad_fn)  # of the innermost layer that returns it
            output.register_hook(partial(reach, name))  # type: ignore[no-untyped-call]  # for what saves no tensor

    def reach(name: str, *_: Any) -> None:
        reached.append(name)

    def unpack(saved: tuple[str, Tensor]) -> Tensor:
        reached.append(saved[0])
        return saved[1]

    handles = []
    for name, layer in network.named_modules():
        handles.append(layer.register_forward_pre_hook(partial(enter, name)))
        handles.append(layer.register_forward_hook(partial(leave, name)))
    with suppress(RuntimeError), torch.autograd.graph.saved_tensors_hooks(lambda saved: (inside[-1], saved), unpack):
        loss().backward()
    for handle in handles:
        handle.remove()
    return reached[-1] or None
