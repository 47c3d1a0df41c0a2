"""What several models have in common, kept in memory once: frozen weights, and tokenizers.

Classifiers of one backbone differ in their adapters and heads, which are small. Each stays a model of its
own, with nothing to switch between one text and the next; only the tensors of their frozen weights are the
same. Tokenizers are small beside a model and not beside an adapter.
"""

from __future__ import annotations

import copy
import hashlib
import queue
import re
import weakref
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

_WRAPPERS = re.compile(r"base_model\.model\.|base_layer\.|original_module\.|modules_to_save\.default\.")
"""What PEFT puts into the names of a model's own weights."""

_TOKENIZER_FILES = (
    "tokenizer",
    "special_tokens",
    "vocab",
    "merges",
    "sentencepiece",
    "spiece",
    "added_tokens",
)

Copies = queue.SimpleQueue[Any]
"""Of a tokenizer."""

_Key = tuple[str, torch.Size, torch.dtype, torch.device]


class SharedParts:
    """The weights and tokenizers of the models given to it, as long as one of them lives."""

    def __init__(self) -> None:
        self._known: dict[_Key, list[weakref.ref[nn.Parameter]]] = defaultdict(list)
        self._tokenizers: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
        self._copies: weakref.WeakValueDictionary[int, Copies] = weakref.WeakValueDictionary()
        self.saved_bytes = 0
        """Of weights, by all models so far, those that are gone included."""

    def share(self, model: nn.Module) -> None:
        """Let ``model``'s weights lie where equal ones of earlier models lie.

        Equal is: of the same name (PEFT's wrappers aside), shape, number format and device, and the same in
        every bit. ``model`` must not be trained afterwards.
        """
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                key = (_WRAPPERS.sub("", name), parameter.shape, parameter.dtype, parameter.device)
                known = self._find(key, parameter)
                if known is not None and known.data_ptr() != parameter.data_ptr():
                    self.saved_bytes += parameter.numel() * parameter.element_size()
                    parameter.data = known.data
                self._known[key].append(weakref.ref(parameter))

    def _find(self, key: _Key, parameter: nn.Parameter) -> nn.Parameter | None:
        living = [known for ref in self._known[key] if (known := ref()) is not None]
        self._known[key] = [weakref.ref(known) for known in living]
        return next((known for known in living if torch.equal(known, parameter)), None)

    def tokenizer(self, folder: Path, tokenizer: Any) -> Any:
        """``tokenizer``, loaded from ``folder``, or an earlier one that was loaded from equal files."""
        digest = hashlib.sha256()
        for path in sorted(folder.iterdir()):
            if path.name.startswith(_TOKENIZER_FILES):
                digest.update(f"{path.name} {path.stat().st_size} ".encode())
                digest.update(path.read_bytes())
        found: Any = self._tokenizers.setdefault(digest.hexdigest(), tokenizer)
        return found

    def copies(self, tokenizer: Any, n: int) -> Copies:
        """``n`` copies of ``tokenizer`` for threads to take and put back, the same for all who ask for it."""
        found = self._copies.get(id(tokenizer))  # who lives in its copies has its id to itself
        if found is None:
            found = self._copies[id(tokenizer)] = copies_of(tokenizer, n)
        return found


def copies_of(tokenizer: Any, n: int) -> Copies:
    """``tokenizer`` and ``n`` - 1 copies of it: one thread at a time may use each."""
    found: Copies = queue.SimpleQueue()
    for i in range(n):
        found.put(copy.deepcopy(tokenizer) if i else tokenizer)
    return found
