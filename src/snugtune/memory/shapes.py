"""Fake tensors (shapes without memory), several times as fast where an operator is plain.

A step of a large model has tens of thousands of operators. For each, PyTorch's fake mode looks up what it
computed for the same arguments before, by a key made of all their metadata; for most, to ask the meta kernel
again costs a fraction of that. Plain operators go there at once, all others take PyTorch's way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

_CPU = torch.device("cpu")
_aten = torch.ops.aten

PLAIN = frozenset(
    {
        _aten._foreach_add_.List, _aten._foreach_add_.Scalar, _aten._foreach_copy_.default,
        _aten._log_softmax.default, _aten._log_softmax_backward_data.default, _aten._softmax.default,
        _aten._softmax_backward_data.default, _aten._to_copy.default, _aten._unsafe_view.default,
        _aten.add.Tensor, _aten.add_.Tensor, _aten.addmm.default, _aten.bmm.default, _aten.cat.default,
        _aten.clone.default, _aten.copy_.default, _aten.cos.default, _aten.detach.default,
        _aten.div.Scalar, _aten.div.Tensor, _aten.empty_like.default, _aten.exp.default,
        _aten.expand.default, _aten.gelu.default, _aten.gelu_backward.default, _aten.mean.dim,
        _aten.mm.default, _aten.mul.Scalar, _aten.mul.Tensor, _aten.mul_.Tensor,
          _aten.neg.default,
        _aten.permute.default, _aten.pow.Tensor_Scalar, _aten.relu.default, _aten.rsqrt.default,
        _aten.select.int, _aten.select_backward.default, _aten.sigmoid.default, _aten.silu.default,
        _aten.silu_backward.default, _aten.sin.default, _aten.slice.Tensor, _aten.slice_backward.default,
        _aten.split.Tensor, _aten.squeeze.dim, _aten.stack.default, _aten.sub.Tensor, _aten.sum.default,
        _aten.sum.dim_IntList, _aten.t.default, _aten.tanh.default, _aten.tanh_backward.default,
        _aten.transpose.int, _aten.unsqueeze.default, _aten.view.default, _aten.where.self,
        _aten.zeros_like.default,
    }
)  # fmt: skip
"""Operators whose results follow from their tensors alone: no numbers are read, no device is asked for (as by
layer norm, whose statistics have another format on a CPU)."""


ELEMENTWISE = frozenset(
    {
        _aten.add.Tensor, _aten.gelu_backward.default, _aten.mul.Tensor, _aten.pow.Tensor_Scalar,
        _aten.silu_backward.default, _aten.sub.Tensor,
    }
)  # fmt: skip
"""Of the plain ones, those whose meta kernels are written in Python; of floats of one shape, all laid out one
behind the other, they make another such tensor."""


class Shapes(FakeTensorMode):  # type: ignore[no-untyped-call]
    """PyTorch's fake mode for tensors that are all on one device, the CPU."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """As of `snugtune.memory.trace.Ledger`."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Ask the meta kernel of a plain operator, PyTorch's own fake mode for any other."""
        if func in PLAIN and _is_plain(args) and (not kwargs or _is_plain(kwargs.values())):
            alike = func in ELEMENTWISE and _are_alike(args)
            with in_kernel_invocation_manager(self):
                out = _aten.empty_like.default(args[0]) if alike else func(*args, **(kwargs or {}))
            return self._faked(out)
        return super().__torch_dispatch__(func, types, args, kwargs or {})

    def _faked(self, out: Any) -> Any:
        if type(out) is Tensor:
            return FakeTensor(self, out, _CPU)
        if isinstance(out, (tuple, list)):
            return type(out)(map(self._faked, out))
        return out


def _is_plain(values: Any) -> bool:
    """Whether all tensors in it are fake ones whose numbers nobody knows, and no device is named."""
    for value in values:
        if isinstance(value, Tensor):
            if type(value) is not FakeTensor or value.constant is not None:
                return False
        elif isinstance(value, (list, tuple)):
            if not _is_plain(value):
                return False
        elif isinstance(value, torch.device):
            return False
    return True


def _are_alike(args: Sequence[Any]) -> bool:
    """Whether all tensors are contiguous floats of one type and shape, and numbers are real."""
    first = args[0]
    if not first.is_floating_point() or not first.is_contiguous():
        return False
    for value in args[1:]:
        if not isinstance(value, Tensor):
            if isinstance(value, complex):
                return False
        elif value.dtype != first.dtype or value.shape != first.shape or not value.is_contiguous():
            return False
    return True
