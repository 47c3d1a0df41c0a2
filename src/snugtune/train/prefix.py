"""The layers below the lowest trained one, computed once for each text: what they gave waits in a file.

With adapters in the top layers only, and without dropout, they give the same for a text in every epoch and at
every look at validation. The file is the run's own, has no name and is gone with the process. It is read, not
mapped: the pages of a mapped file would count as the process's own memory.
It is filled before the first step.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from snugtune.config import FitConfig
from snugtune.data.tokens import Tokens
from snugtune.memory.guard import Guard
from snugtune.model.checkpointing import encoder_layers, trained_layers
from snugtune.train.forward import pass_rows
from snugtune.units import GIB

ROOM_LEFT_BYTES = GIB
"""On the disk, beside the file: for the run folder and for others."""


def lower_layers(model: nn.Module) -> list[nn.Module]:
    """The repeated layers below the lowest one with trained parameters, first to last.

    Never the last: it may compute the one token that the head reads (``model/first_token.py``).
    """
    layers = encoder_layers(model)
    return layers[: min(len(layers) - len(trained_layers(model)), len(layers) - 1)]


def may_keep(config: FitConfig, device: torch.device) -> bool:
    """Whether lower layers give the same again, and it pays to keep it.

    On a CPU it does (``benchmarks/prefix_cache.py``); on a GPU nobody has measured it.
    """
    return device.type == "cpu" and config.hidden_dropout == 0 and config.num_train_epochs > 1


def time_share(config: FitConfig, model: nn.Module, device: torch.device) -> float:
    """Of the time that training takes if every layer is passed in every epoch; ``model`` is plain.

    With adapters in every layer those are passes forward and back, with the head alone passes forward.
    Nothing goes back through the layers below the lowest adapter, and what is kept is passed once.
    """
    layers = len(encoder_layers(model))
    # A layer that does not exist is told of when the adapter is attached.
    frozen = min(*(config.layers_to_transform or (0,)), layers)
    every = layers if config.method == "head" else 2 * layers
    below = layers if config.method == "head" else frozen
    kept = min(below, layers - 1) if may_keep(config, device) else 0
    first, epochs = every - frozen, config.num_train_epochs
    return (first - kept * (1 - 1 / epochs)) / every


@contextmanager
def kept_prefix(
    model: nn.Module, config: FitConfig, lengths: NDArray[np.int64], device: torch.device, folder: Path
) -> Iterator[Prefix | None]:
    """What keeps the lower layers' outputs of rows of ``lengths`` (R,) tokens in ``folder`` for a while.

    None where there are no lower layers, or it would not pay.
    """
    if not may_keep(config, device) or not lower_layers(model):
        yield None
        return
    prefix = Prefix(model, lengths, folder)
    try:
        yield prefix
    finally:
        prefix.close()


class _Kept(Exception):  # noqa: N818 - no error
    """The lower layers have given what was asked for."""


class Prefix:
    """Outputs of the lower layers of ``model`` for rows of ``lengths`` (R,) tokens, as they were given.

    Inside ``rows``, a forward pass over rows that all went through before takes what they gave from the
    file; any other computes it, and it is kept. What does not go with that (a layer that returns more than a
    tensor, something trained below, a disk without room) ends the keeping and nothing else.
    """

    def __init__(self, model: nn.Module, lengths: NDArray[np.int64], folder: Path) -> None:
        self.usable, self._is_filling = True, False
        self._lengths, self._folder = lengths, folder
        self._starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
        self._known = np.zeros(len(lengths), dtype=np.bool_)
        self._rows: NDArray[np.int64] | None = None
        self._file: FileIO | None = None
        self._layers = lower_layers(model)
        self._plain = [layer.__dict__.get("forward") for layer in self._layers]
        for layer in self._layers:
            layer.forward = self._around(layer.forward, last=layer is self._layers[-1])

    @contextmanager
    def rows(self, indices: NDArray[np.int64]) -> Iterator[None]:
        """What passes through the model inside are the rows ``indices`` (B,), in this order."""
        self._rows = indices if self.usable else None
        try:
            yield
        finally:
            self._rows = None

    @property
    def rows_kept(self) -> int:
        """Rows that need not pass through the lower layers again."""
        return int(self._known.sum())

    def fill(
        self, model: nn.Module, parts: Sequence[Tokens], *, pad_token_id: int, device: torch.device,
        dtype: torch.dtype, guard: Guard | None,
    ) -> None:  # fmt: skip
        """Compute all rows now, those of ``parts`` one part after another.

        Filled by training itself, what a row gives would depend in its last bits on the company it had in
        its first micro-batch, and a run that goes on in the second epoch could not repeat them.
        """
        self._is_filling, first = True, 0
        try:
            for part in parts:
                pass_rows(
                    model, part, around=partial(self._rows_after, first),
                    enough=lambda: not self.usable, stop=_Kept, pad_token_id=pad_token_id, device=device,
                    dtype=dtype, guard=guard,
                )  # fmt: skip
                first += part.rows
        finally:
            self._is_filling = False

    def _rows_after(self, first: int, rows: NDArray[np.int64]) -> AbstractContextManager[None]:
        return self.rows(first + rows)

    def close(self) -> None:
        """Give the layers their own forward back, and the file's room to the disk."""
        for layer, plain in zip(self._layers, self._plain, strict=True):
            del layer.forward
            if plain is not None:
                layer.forward = plain
        if self._file is not None:
            self._file.close()

    def _around(self, plain: Callable[..., Any], *, last: bool) -> Callable[..., Any]:
        @functools.wraps(plain)
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            rows = self._rows
            if rows is not None and self._known[rows].all():
                return self._stored(rows, hidden_states) if last else hidden_states
            out = plain(hidden_states, *args, **kwargs)
            if last and rows is not None:
                self.usable = self.usable and self._keep(rows, out)
                if self._is_filling:
                    raise _Kept
            return out

        return forward

    def _keep(self, rows: NDArray[np.int64], out: Any) -> bool:
        """Whether it could be kept."""
        if not isinstance(out, Tensor) or out.requires_grad:
            return False
        offsets = self._offsets(rows, out)
        if offsets is None or not self._opened(out):
            return False
        assert self._file is not None
        values = _as_bytes(out.detach().cpu().contiguous())
        try:
            for row, offset in zip(rows.tolist(), offsets.tolist(), strict=True):
                self._file.seek(self._starts[row] * values.shape[1])
                source = values[offset : offset + self._lengths[row]].data
                if self._file.write(source) != source.nbytes:
                    return False
        except OSError:  # the disk filled up meanwhile
            return False
        self._known[rows] = True
        return True

    def _stored(self, rows: NDArray[np.int64], like: Tensor) -> Tensor:
        """What was kept, in the layout of ``like``; zeros at padding, to which nothing attends."""
        offsets = self._offsets(rows, like)
        assert offsets is not None
        assert self._file is not None
        out = torch.zeros(like.shape, dtype=self._dtype)
        values = _as_bytes(out)
        for row, offset in zip(rows.tolist(), offsets.tolist(), strict=True):
            self._file.seek(self._starts[row] * values.shape[1])
            target = values[offset : offset + self._lengths[row]].data
            if self._file.readinto(target) != target.nbytes:
                raise OSError("what the lower layers gave cannot be read back")
        return out.to(like.device)

    def _offsets(self, rows: NDArray[np.int64], hidden: Tensor) -> NDArray[np.int64] | None:
        """Where each row begins in ``hidden``, (B, longest, H) or, packed, (1, sum, H); None in any other."""
        lengths = self._lengths[rows]
        batch, longest = hidden.shape[:2]
        if batch == len(rows) and longest >= lengths.max():
            return np.arange(batch) * longest
        if batch == 1 and longest == lengths.sum():
            return np.cumsum(lengths) - lengths
        return None

    def _opened(self, out: Tensor) -> bool:
        """Whether there is a file for tensors such as ``out``; made if the disk has room for all texts."""
        if self._file is None:
            needed = int(self._starts[-1]) * out.shape[-1] * out.dtype.itemsize
            if shutil.disk_usage(self._folder).free < needed + ROOM_LEFT_BYTES:
                return False
            try:
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - see close
            except OSError:
                return False
            self._dtype = out.dtype
        return out.dtype == self._dtype


def _as_bytes(hidden: Tensor) -> NDArray[np.uint8]:
    """Positions and bytes of (B, L, H), the same memory: (B * L, H * itemsize)."""
    found: NDArray[np.uint8] = hidden.view(torch.uint8).flatten(0, 1).numpy()
    return found
