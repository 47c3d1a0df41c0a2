"""EVA: LoRA whose A begins from the data, with ranks given to the layers whose inputs vary most.

Paischer et al. 2024, arXiv:2410.07170: A of each layer are the first right singular vectors of its inputs on
training texts, and the ranks of all layers are dealt out by the variance that each vector explains. The work
is PEFT's (``initialize_lora_eva_weights``); here it is fed, in an order that the seed decides.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel, initialize_lora_eva_weights
from torch import Tensor, nn

from snugtune.config import FitConfig
from snugtune.data.tokens import Tokens
from snugtune.errors import UserInputError
from snugtune.model.checkpointing import encoder_layers
from snugtune.model.dora import wake_dead_rows
from snugtune.train.forward import INFERENCE_TOKENS, autocast, collate

BATCH_TOKENS = 2048
"""Real tokens of a batch, more than there are vectors to find in it."""


def start_from_data(
    model: nn.Module,
    config: FitConfig,
    tokens: Tokens,
    *,
    pad_token_id: int,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Give the LoRA layers of ``model`` EVA's first weights and ranks, by passes over some of ``tokens``.

    Raises:
        UserInputError: the texts hold fewer tokens than vectors are sought.
    """
    assert isinstance(model, PeftModel)
    wanted = round(config.r * config.eva_rho)
    batches = _batches(tokens.lengths, 2 * wanted, config.seed)
    if int(tokens.lengths.sum()) < 2 * wanted:
        raise UserInputError(
            f"init_lora_weights='eva' seeks {wanted} directions in the training texts, which have "
            f"{int(tokens.lengths.sum())} tokens only; lower r or eva_rho, or leave it out."
        )
    texts = _Loader(batches, lambda rows: collate(tokens, rows, pad_token_id, device))
    with _every_token(model), autocast(device, dtype), warnings.catch_warnings():
        # Some of torch's low-rank routines tell that they were given a seed.
        warnings.simplefilter("ignore")
        initialize_lora_eva_weights(
            model, texts, prepare_layer_inputs_fn=_real_tokens, show_progress_bar=False
        )
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    if config.use_dora:
        # Layers of other ranks than before begin anew.
        wake_dead_rows(model)


class _Loader:
    """Batches that are made when PEFT asks for them, which it does for a few of all."""

    def __init__(
        self, batches: Sequence[NDArray[np.int64]], make: Callable[[NDArray[np.int64]], dict[str, Tensor]]
    ) -> None:
        self._batches, self._make = batches, make

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return map(self._make, self._batches)


def _batches(lengths: NDArray[np.int64], least: int, seed: int) -> list[NDArray[np.int64]]:
    """Rows in an order drawn by ``seed``, in batches of ``least`` real tokens or more; all in one if they are
    fewer. A batch ends at ``BATCH_TOKENS``, or before a text with which padding would be much.
    """
    order = np.random.default_rng(seed).permutation(len(lengths))
    batches: list[NDArray[np.int64]] = []
    start = real = longest = 0
    for i, length in enumerate(lengths[order].tolist()):
        longest = max(longest, length)
        is_wide = longest * (i + 1 - start) > INFERENCE_TOKENS
        if real >= least and (real >= BATCH_TOKENS or is_wide):
            batches.append(order[start:i])
            start, real, longest = i, 0, length
        real += length
    if real >= least or not batches:
        batches.append(order[start:])
    return batches


def _real_tokens(layer_input: Any, at: Tensor, _name: str) -> Tensor:
    """What a layer was given for the tokens of the texts, (T, in), ``at`` their rows and positions (T, 2)."""
    inputs: Tensor = layer_input[0] if isinstance(layer_input, tuple) else layer_input
    return inputs[at.to(inputs.device).T.unbind()].float().contiguous()


@contextmanager
def _every_token(model: nn.Module) -> Iterator[None]:
    """The last layer computes every token inside, which ``model/first_token.py`` else spares it."""
    layer = encoder_layers(model)[-1]
    short = layer.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if short is not None:
            layer.forward = short
