"""A ledger of every storage that a piece of PyTorch code allocates, and what it adds up to.

The ledger is a dispatch mode: it sees the outputs of every operator below autograd, so tensors saved for the
backward pass are counted as long as autograd holds them. Views and in-place results share a storage that is
known already and count nothing. It works alike on real tensors and on fake ones, which have shapes only.
"""

from __future__ import annotations

import sys
import weakref
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import PurePath
from types import CodeType, FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from snugtune.memory.workspaces import Demand, demands_of, library_workspaces

WEIGHTS, GRADIENTS, STATE = "weights", "gradients", "optimiser state"
ACTIVATIONS, BACKWARD, WORKSPACES = "activations", "backward temporaries", "workspaces"
UPDATE, EVALUATION, INPUTS, HOST = "update temporaries", "evaluation", "inputs", "host"
BEST = "best weights so far"
LIBRARY = "cuBLAS workspaces"

MODEL_SOURCES = ("transformers.models.", "peft.tuners.", "peft.utils.")
"""Packages whose lines are the model's."""

KINDS = {
    "linear": ("addmm", "mm", "bmm", "baddbmm"),
    "attention": ("_scaled_dot_product", "_softmax", "_safe_softmax", "_efficient_attention", "_varlen"),
    "normalisation": ("native_layer_norm", "rsqrt", "pow", "mean", "_fused_rms_norm"),
    "non-linearity": ("gelu", "silu", "relu", "tanh", "sigmoid"),
    "dropout": ("native_dropout", "bernoulli"),
    "casts": ("_to_copy",),
    "embedding": ("embedding",),
}
"""Kinds of activations by the beginning of the operator's name; everything else is element-wise."""


_SOURCES: dict[CodeType, str] = {}
"""File names of functions that are the model's, "" of others: the stack is read at every operator."""


@dataclass(frozen=True)
class Storage:
    """One allocation: its size, what it was for and where it was made.

    ``module`` is the path of the innermost module whose forward (or whose part of backward) made it, ``line``
    the line of the model's source (file and number) that called for it; empty outside.
    """

    n_bytes: int
    category: str
    kind: str
    module: str
    line: str = ""


@dataclass(frozen=True)
class Work:
    """Arithmetic and traffic of each operator call, in order: FLOPs, bytes read plus written, and phase.

    ``square_flops`` and ``square_n_bytes`` are what of them grows with the square of the length: attention's.
    """

    flops: NDArray[np.float64]
    n_bytes: NDArray[np.float64]
    phase: NDArray[np.str_]
    square_flops: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    square_n_bytes: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class Trace:
    """Everything allocated and freed, in order.

    ``events`` (N,) holds ``i + 1`` where storage ``i`` is allocated and ``-(i + 1)`` where it is freed.
    ``demands`` are the rules, by storage, of what operators take beside their results; at the sizes of this
    trace that may be 0 bytes, which is no allocation.
    """

    storages: list[Storage]
    events: NDArray[np.int64]
    work: Work = field(default_factory=lambda: Work(np.zeros(0), np.zeros(0), np.zeros(0, np.str_)))
    demands: Mapping[int, Demand] = field(default_factory=dict)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each storage."""
        return np.array([s.n_bytes for s in self.storages], dtype=np.int64)

    @cached_property
    def is_library(self) -> NDArray[np.bool_]:
        """Which storages are cuBLAS's workspaces, whose size hangs on the card."""
        return np.array([s.category == LIBRARY for s in self.storages], dtype=bool)

    def sized(self, sizes: NDArray[np.int64], library_bytes: int) -> NDArray[np.int64]:
        """``sizes`` of the storages with workspaces of ``library_bytes``."""
        return np.where(self.is_library, library_bytes, sizes)

    def running_bytes(self, sizes: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Bytes alive after each event."""
        sizes = self.sizes if sizes is None else sizes
        return np.cumsum(np.sign(self.events) * sizes[np.abs(self.events) - 1])

    @property
    def peak_bytes(self) -> int:
        """The most bytes alive at once."""
        return int(self.running_bytes().max(initial=0))

    @property
    def peak_event(self) -> int:
        """Index of the event that makes the peak."""
        return int(self.running_bytes().argmax()) if len(self.events) else 0

    def alive(self, event: int) -> list[int]:
        """Indices of the storages alive just after ``event``."""
        alive = set()
        for value in self.events[: event + 1].tolist():
            if value > 0:
                alive.add(value - 1)
            else:
                alive.discard(-value - 1)
        return sorted(alive)

    def composition(self, event: int | None = None) -> dict[str, int]:
        """Bytes at the peak (or after ``event``) by category, activations by kind (``activations: linear``),
        largest first.
        """
        counts: Counter[str] = Counter()
        for i in self.alive(self.peak_event if event is None else event):
            storage = self.storages[i]
            name = storage.category
            if storage.n_bytes:
                counts[f"{name}: {storage.kind}" if name == ACTIVATIONS else name] += storage.n_bytes
        return dict(counts.most_common())

    def peak_place(self, event: int | None = None) -> str:
        """Module, kind of operator and line of the model's source whose allocation makes the peak (or is
        ``event``).
        """
        if not len(self.events):
            return ""
        storage = self.storages[abs(int(self.events[self.peak_event if event is None else event])) - 1]
        line = f", {storage.line}" if storage.line else ""
        return f"{storage.module or 'outside the model'} ({storage.category}, {storage.kind}{line})"

    def without(self, category: str) -> Trace:
        """The trace less one category, for instance what lives on the host."""
        dropped = np.array([s.category == category for s in self.storages], dtype=bool)
        kept = self.events[~dropped[np.abs(self.events) - 1]] if len(self.events) else self.events
        return Trace(self.storages, kept, self.work, self.demands)


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records allocations while it is active; ``phase`` says what they are for.

    Args:
        model: names the places; hooks on its modules are removed by ``close``.
        workspaces: adds what CUDA kernels allocate inside one operator, and cuBLAS for good, once in the
            forward and once in the backward pass's thread (see ``workspaces.py``).
        work: also counts FLOPs and bytes moved, for the estimate of time.
    """

    def __init__(
        self, model: nn.Module | None = None, *, workspaces: bool = False, work: bool = False
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase = ACTIVATIONS
        self._workspaces, self._count_work, self._alone = workspaces, work, _holds_alone()
        self._libraries: set[tuple[bool, str]] = set()
        self._n_bytes: list[int] = []
        self._category: list[str] = []
        self._kind: list[str] = []
        self._module: list[str] = []
        self._line: list[str] = []
        self._events: list[int] = []
        self._demands: dict[int, Demand] = {}
        self._alive: dict[int, tuple[int, Any]] = {}
        self._flops: list[float] = []
        self._moved: list[float] = []
        self._squares: list[tuple[float, float]] = []
        self._phases: list[str] = []
        self._stack: list[str] = []
        self._mark_at: list[int] = []
        self._mark_name: list[str] = []
        self._running = ""
        self._line_at: list[int] = []
        self._line_name: list[str] = []
        self._hooks = _hook_modules(model, self) if model is not None else []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is compiled: the call that would say so to Dynamo is saved for every operator."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and enter what it allocated."""
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            # The backward pass asks for it at every step, oftener than for anything else.
            fake_device = getattr(args[0], "fake_device", None)
            return func(*args, **kwargs) if fake_device is None else fake_device
        self._running = self._source_line()
        if _adds_gradients(func, args) and _holds(args[0]) == self._alone:
            # Autograd adds in place what it alone holds, but not while a dispatch mode is watching.
            func = torch.ops.aten.add_.Tensor
        out = func(*args, **kwargs)
        if not func.is_view:
            kind = ""
            for tensor in _tensors(out):
                kind = kind or _kind(func)
                self._see(tensor, None, kind)
            if self._count_work:
                self._add_work(func, args, kwargs, out)
        if self._workspaces:
            self._see_workspace(func, args)
            self._see_libraries(func)
        return out

    def mark(self, tensors: Iterable[Tensor | None], category: str) -> None:
        """Say what storages are, entering those that were there before the ledger."""
        self._running = ""
        for tensor in tensors:
            if tensor is not None:
                self._see(tensor, category, category)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Allocations inside are for ``phase``."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def close(self) -> Trace:
        """Stop watching and return the trace."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._alive = {}
        columns = zip(self._n_bytes, self._category, self._kind, self._module, self._line, strict=True)
        return Trace(
            [Storage(*row) for row in columns],
            np.array(self._events, dtype=np.int64),
            Work(
                np.array(self._flops, float),
                np.array(self._moved, float),
                np.array(self._phases, np.str_),
                *np.array(self._squares, float).reshape(-1, 2).T,
            ),
            self._demands,
        )

    def enter_module(self, name: str) -> None:
        """A module's forward begins."""
        self._stack.append(name)
        self._mark(name)

    def leave_module(self) -> None:
        """The innermost module's forward is over."""
        if self._stack:
            self._stack.pop()
        self._mark(self._stack[-1] if self._stack else "")

    def _mark(self, name: str) -> None:
        # Autograd numbers its nodes in the order of the forward pass: the number leads back to the module.
        self._mark_at.append(torch._C._autograd._get_sequence_nr())
        self._mark_name.append(name)

    def _place(self) -> str:
        if self._stack:
            return self._stack[-1]
        node = torch._C._current_autograd_node()
        if node is None or not self._mark_at:
            return ""
        at = bisect_right(self._mark_at, node._sequence_nr()) - 1
        return self._mark_name[at] if at >= 0 else ""

    def _enter(self, n_bytes: int, category: str, kind: str) -> int:
        self._n_bytes.append(n_bytes)
        self._category.append(category)
        self._kind.append(kind)
        self._module.append(self._place())
        self._line.append(self._running)
        return len(self._n_bytes) - 1

    def _source_line(self) -> str:
        """The model's line that is running, or whose gradient is being computed."""
        line = _model_line()
        node: Any = torch._C._current_autograd_node()
        if line:
            # Autograd has numbered the operator's node already; one without a node must not take its place.
            number = torch._C._autograd._get_sequence_nr() - 1
            if node is None and (not self._line_at or number > self._line_at[-1]):
                self._line_at.append(number)
                self._line_name.append(line)
            return line
        if node is None or not self._line_at:
            return ""
        at = bisect_right(self._line_at, node._sequence_nr()) - 1
        return self._line_name[at] if at >= 0 else ""

    def _see(self, tensor: Tensor, category: str | None, kind: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._alive.get(key)
        if known is not None:
            if category is not None:
                self._category[known[0]] = category
            return
        n_bytes = storage.nbytes()
        if n_bytes == 0:
            return
        index = self._enter(n_bytes, category or self._category_now(), kind)
        self._alive[key] = (index, weakref.ref(storage, lambda _: self._free(key, index)))
        self._events.append(index + 1)

    def _see_workspace(self, func: Any, args: tuple[Any, ...]) -> None:
        """What the operator takes beside its results, and gives back at its end."""
        taken = []
        for demand in demands_of(func, args):
            taken.append(self._enter(demand.n_bytes, WORKSPACES, _kind(func)))
            self._demands[taken[-1]] = demand
        self._events += [index + 1 for index in taken] + [-(index + 1) for index in reversed(taken)]

    def _see_libraries(self, func: Any) -> None:
        """What libraries keep from a thread's first product on."""
        in_backward = torch._C._current_autograd_node() is not None
        for library, n_bytes in library_workspaces(_name(func)).items():
            if (in_backward, library) not in self._libraries:
                self._libraries.add((in_backward, library))
                category = LIBRARY if library == "cuBLAS" else WORKSPACES
                self._events.append(self._enter(n_bytes, category, "linear") + 1)

    def _category_now(self) -> str:
        in_backward = self.phase == ACTIVATIONS and torch._C._current_autograd_node() is not None
        return BACKWARD if in_backward else self.phase

    def _free(self, key: int, index: int) -> None:
        if self._alive.pop(key, None) is not None:
            self._events.append(-(index + 1))

    def _add_work(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        flops, tensors = _flops(func, args, kwargs, out), (*_tensors(args), *_tensors(out))
        self._flops.append(flops)
        self._moved.append(float(sum(t.numel() * t.element_size() for t in tensors)))
        is_attention = _kind(func) == "attention"
        square = sum(t.numel() * t.element_size() for t in tensors if is_attention and _is_square(t))
        self._squares.append((flops if is_attention else 0.0, float(square)))
        self._phases.append(self.phase)


def _adds_gradients(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether autograd is adding up two gradients of one tensor, alike in shape and format."""
    if func is not torch.ops.aten.add.Tensor or torch.is_grad_enabled():
        return False
    one, other = args[:2]
    alike = isinstance(other, Tensor) and one.shape == other.shape and one.dtype == other.dtype
    return alike and torch._C._current_autograd_node() is not None


def _holds(tensor: Tensor) -> tuple[int, int]:
    """How often a tensor and its storage are held, as an operator's argument."""
    return tensor._use_count(), torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)  # type: ignore[attr-defined]


@cache
def _holds_alone() -> tuple[int, int]:
    """The same where autograd alone holds the first of two gradients (``InputBuffer::accumulate`` in
    ``torch/csrc/autograd/input_buffer.cpp``): tried out, because it hangs on the version.
    """
    seen: list[tuple[int, int]] = []

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if _adds_gradients(func, args):
                seen.append(_holds(args[0]))
            return func(*args, **(kwargs or {}))

    with torch.utils._python_dispatch._disable_current_modes(), torch.enable_grad():
        leaf, other = torch.zeros(2, 2, requires_grad=True), torch.zeros(2, 2)
        values = 2 * leaf
        total = (values @ other + values @ other).sum()
        with Watch():  # type: ignore[no-untyped-call]
            torch.autograd.backward(total)
    return seen[0]


def _model_line() -> str:
    """File and number of the innermost line of the model's source in the stack; empty without one."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if code not in _SOURCES:
            is_model = str(frame.f_globals.get("__name__", "")).startswith(MODEL_SOURCES)
            _SOURCES[code] = PurePath(code.co_filename).name if is_model else ""
        if _SOURCES[code]:
            return f"{_SOURCES[code]} line {frame.f_lineno}"
        frame = frame.f_back
    return ""


def _hook_modules(model: nn.Module, ledger: Ledger) -> list[Any]:
    hooks: list[Any] = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: ledger.enter_module(name)))
        hooks.append(module.register_forward_hook(lambda *_: ledger.leave_module(), always_call=True))
    return hooks


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)


def _name(func: Any) -> str:
    """``addmm`` of ``aten::addmm.out``."""
    name: str = func._schema.name.rpartition("::")[2]
    return name


def _is_square(tensor: Tensor) -> bool:
    """Scores or their mask, of shape (B, heads, L, L)."""
    return tensor.ndim == 4 and tensor.shape[-1] == tensor.shape[-2]


def _kind(func: Any) -> str:
    name = _name(func)
    for kind, beginnings in KINDS.items():
        if name.startswith(beginnings):
            return kind
    return "element-wise"


def _flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> float:
    name = func._schema.name
    if name.endswith("_varlen_attn"):
        return _varlen_flops(args[0], args[3], args[6])
    if name.endswith("_varlen_attn_backward"):
        # Five products of the size of the forward pass's two (Dao 2023, arXiv:2307.08691, section 3).
        return 2.5 * _varlen_flops(args[1], args[6], args[9])
    if name.endswith("_attention_for_cpu"):
        return float(sdpa_flop_count(*(t.shape for t in args[:3])))  # type: ignore[no-untyped-call]
    if name.endswith("_attention_for_cpu_backward"):
        return float(sdpa_backward_flop_count(*(t.shape for t in args[:4])))  # type: ignore[no-untyped-call]
    count = flop_registry.get(func._overloadpacket)
    return float(count(*args, **kwargs, out_val=out)) if count else 0.0


def _varlen_flops(query: Tensor, boundaries: Tensor, longest: int) -> float:
    """Of attention over packed texts, each with the longest one's keys: fake boundaries tell no lengths."""
    queries, heads, head_dim = query.shape
    texts = len(boundaries) - 1
    of_queries, of_keys = ((texts, heads, n, head_dim) for n in (queries // texts, longest))
    return float(sdpa_flop_count(of_queries, of_keys, of_keys))  # type: ignore[no-untyped-call]
