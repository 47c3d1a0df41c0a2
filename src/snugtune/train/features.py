"""The one pass of the frozen model over the data: it serves the probe and the audit, and is never run twice.

What a row gives depends on the model, the number format and the row's token ids, and on nothing else: texts
are read in batches of one length, without padding, so that a row's company does not change its last bits (on
a CPU; a GPU may choose its kernels by the size of a batch). So what was read once can stand for it later,
whatever the table, the labels or the settings of training are by then.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from snugtune.data.tokens import Tokens, choose_rows
from snugtune.memory.guard import Guard
from snugtune.model.head import Head
from snugtune.model.sharding import whole
from snugtune.train.feature_store import LEAST_TOKENS, Keys, open_store
from snugtune.train.forward import layer_inputs
from snugtune.train.group import ALONE, Group

FORMAT = 2
"""Raised when the same model and ids would give other features."""

WITHOUT_EFFECT = {"id2label", "label2id", "problem_type", "_name_or_path", "architectures"}
"""Keys of a model's configuration that its features do not depend on, beside those of dropout."""


@dataclass(frozen=True)
class FrozenPass:
    """What the frozen model says of N texts.

    ``features`` (N, H) is what its head is given, ``rows_from_cache`` how many were not read anew,
    ``tokens_per_s`` real tokens read in a second, in this pass or the last one that read some (None: never).
    """

    features: NDArray[np.floating[Any]]
    rows_from_cache: int
    tokens_per_s: float | None

    def sentence(self) -> str:
        """For the user: what did not have to be read."""
        return (
            f"{self.rows_from_cache:,} of {len(self.features):,} texts were read by this model before; "
            "what it said of them was kept."
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, without the features."""
        return {
            "rows": len(self.features),
            "rows_from_cache": self.rows_from_cache,
            "tokens_per_s": self.tokens_per_s,
        }


def frozen_pass(
    model: PreTrainedModel,
    head: Head,
    parts: Sequence[Tokens],
    *,
    pad_token_id: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    on_rows: Callable[[int], None] | None = None,
    guard: Guard | None = None,
    group: Group = ALONE,
) -> FrozenPass:
    """What ``head.feature_layer`` of the frozen model is given for each text of ``parts``, one after another.

    Rows that any run on this machine has read before come from its cache; the others are read, and kept. A
    ``group`` takes from caches what is in all of its machines', and deals the others out.

    Raises:
        UserInputError: the environment gives the cache a size that is none.
        RestartNeededError: not even a single text fits into memory.
    """
    digest = model_digest(model, head, pad_token_id=pad_token_id, device=device, dtype=dtype)
    store = open_store(digest)
    keys = np.concatenate([row_keys(digest, part) for part in parts])
    known, features = store.read(keys) if store else (np.zeros(len(keys), dtype=np.bool_), None)
    known = group.known_everywhere(known)
    if on_rows and known.any():
        on_rows(int(known.sum()))
    missing = np.flatnonzero(~known)
    rate = store.tokens_per_s() if store else None
    if len(missing):
        unread = choose_rows(parts, missing)
        started = time.perf_counter()
        read = layer_inputs(
            model, head.feature_layer, unread, pad_token_id=pad_token_id, device=device, dtype=dtype,
            on_rows=on_rows, guard=guard, group=group,
        )  # fmt: skip
        seconds, tokens = time.perf_counter() - started, int(unread.lengths.sum())
        rate = tokens / seconds if tokens >= LEAST_TOKENS else rate
        if features is None:
            features = read
        else:
            features[missing] = read
        if store and group.local_rank == 0:
            store.add(keys[missing], read, tokens=tokens, seconds=seconds)
    assert features is not None
    return FrozenPass(features, len(keys) - len(missing), rate)


def row_keys(digest: str, tokens: Tokens) -> Keys:
    """SHA-256 of the model's digest and a row's token ids, for each row, as four words: (N, 4)."""
    start = hashlib.sha256(digest.encode())
    words = bytearray()
    for ids in tokens.ids:
        row = start.copy()
        row.update(np.ascontiguousarray(ids, dtype="<i4").tobytes())
        words += row.digest()
    return np.frombuffer(words, dtype=np.uint64).reshape(-1, 4)


def model_digest(
    model: PreTrainedModel, head: Head, *, pad_token_id: int, device: torch.device, dtype: torch.dtype
) -> str:
    """What decides the features of given token ids: SHA-256 in hexadecimal.

    The weights themselves are read, not the name or the date of a file: a folder may be moved, and no change
    goes unnoticed. The layers that come after the features, which hold random numbers, are left out. The
    tokenizer and ``max_length`` need not be in it, for the ids say what they did.
    """
    after = {id(p) for layer in (head.feature_layer, head.final) for p in layer.parameters()}
    left_out = {name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in after}
    digest = hashlib.sha256(json.dumps(_conditions(model, head, pad_token_id, device, dtype)).encode())
    for name, tensor in model.state_dict().items():
        if name not in left_out and isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(_bytes(tensor))
    return digest.hexdigest()


def _conditions(
    model: PreTrainedModel, head: Head, pad_token_id: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    config = {
        key: str(value)
        for key, value in sorted(model.config.to_dict().items())
        if key not in WITHOUT_EFFECT and "drop" not in key
    }
    on_card = device.type == "cuda"
    return {
        "format": FORMAT,
        "class": type(model).__name__,
        "config": config,
        "layer": next(name for name, module in model.named_modules() if module is head.feature_layer),
        "pad_token_id": pad_token_id,
        "dtype": str(dtype),
        "device": torch.cuda.get_device_name(device) if on_card else torch.backends.cpu.get_cpu_capability(),
        "versions": {name: version(name) for name in ("snugtune", "torch", "transformers")},
    }


def _bytes(tensor: Tensor) -> Any:
    """A view of the values that ``hashlib`` reads."""
    return whole(tensor.detach()).to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
