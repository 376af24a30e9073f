"""Counts what a GPU would be asked for: operators, copies from the host, and calls that make the host wait.

Under FakeTensorMode tensors on "cuda" need no GPU: no operator computes, and all are dispatched as on a GPU.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique_consecutive", "_unique2"}
"""Operators whose result the host reads."""

_NO_KERNEL = {
    "device",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "lift_fresh",
    "_pin_memory",
}
_COPIES = {"_to_copy", "copy_", "_copy_from", "_copy_from_and_resize"}


class DeviceCalls(TorchDispatchMode):
    """While it is entered: the operators of this thread that compute on the device, copy to it, or wait for it.

    `operators` counts kernels by name, `dtypes` has those of their floating point inputs. A copy that is not
    asynchronous is a wait too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.dtypes: dict[str, set[torch.dtype]] = {}
        self.copies: list[str] = []
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name in WAITS or (name == "index" and _has_mask(args)):
            self.waits.append(name)
        result = func(*args, **kwargs)
        source, target = _on_cuda(args[1:] if name == "copy_" else args), _on_cuda(result)
        if name in _COPIES and source != target:
            if target == {True}:
                self.copies.append(name)
            if not (kwargs.get("non_blocking") or args[2:] == (True,)):
                self.waits.append(name)
        elif True in source | target and name not in _NO_KERNEL and not func.is_view:
            self.operators[name] += 1
            self.dtypes.setdefault(name, set()).update(each.dtype for each in _floats(args))
        return result


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _floats(tree: Any) -> list[Tensor]:
    return [each for each in _tensors(tree) if each.is_floating_point()]


def _on_cuda(tree: Any) -> set[bool]:
    return {each.is_cuda for each in _tensors(tree)}


def _has_mask(args: Any) -> bool:
    return any(each.dtype == torch.bool for each in _tensors(args[1:]))


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Lets tensors on "cuda" need no GPU in the block, also under autocast."""
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        mock.patch.object(Tensor, "pin_memory", lambda self: self),  # fake tensors cannot be pinned
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        mock.patch("torch.cuda.is_bf16_supported", return_value=True),
    ):
        yield
