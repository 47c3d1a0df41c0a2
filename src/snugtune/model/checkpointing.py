"""Activation checkpointing of some layers: keep a layer's input, recompute its inside during backward."""

from __future__ import annotations

import functools
from typing import Any

from peft import PrefixEncoder
from peft.tuners.lora import Embedding as LoraEmbedding
from torch import nn
from torch.utils.checkpoint import checkpoint


def encoder_layers(model: nn.Module) -> list[nn.Module]:
    """The repeated layers of a Transformers model, plain or PEFT-wrapped, first to last.

    Raises:
        ValueError: the model has no list of layers.
    """
    lists: list[nn.ModuleList] = [
        module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)
    ]
    if not lists:
        raise ValueError("the model has no list of layers")
    return list(max(lists, key=_size))  # type: ignore[arg-type]


def _size(layers: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layers.parameters())


def trained_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that hold activations for backward: from the lowest one with trained parameters up."""
    layers = encoder_layers(model)
    lowest = next(
        (i for i, layer in enumerate(layers) if any(p.requires_grad for p in layer.parameters())), len(layers)
    )
    below = (
        parameter
        for module in model.modules()
        # PEFT's adapter of an embedding keeps its factors in lists of parameters.
        if isinstance(module, (nn.Embedding, LoraEmbedding))
        for parameter in module.parameters()
    )
    return layers if any(parameter.requires_grad for parameter in below) else layers[lowest:]


def checkpoint_layers(model: nn.Module, k: int) -> int:
    """Checkpoint the last ``k`` trained layers (fewer if there are fewer); returns how many.

    None are where prefix tuning has put keys and values into a cache, for a recomputation would add to it
    again. Calling it again sets the number anew; 0 undoes it. Results are those of the plain model, bit for
    bit: the same operators run on the same inputs, and the random state is restored where dropout draws.
    """
    for layer in encoder_layers(model):
        _undo(layer)
    chosen = trained_layers(model)[-k:] if k > 0 and not _has_prefix(model) else []
    config = getattr(model, "config", None)
    if chosen and config is not None and getattr(config, "use_cache", False):
        # A decoder's cache of keys and values would be filled again by the recomputation.
        config.use_cache = False
    draws = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    for layer in chosen:
        _checkpoint(layer, preserve_rng_state=draws)
    return len(chosen)


def _has_prefix(model: nn.Module) -> bool:
    return any(isinstance(module, PrefixEncoder) for module in model.modules())


def _checkpoint(layer: nn.Module, *, preserve_rng_state: bool) -> None:
    forward = layer.forward

    @functools.wraps(forward)
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        if not layer.training:
            return forward(*args, **kwargs)
        return checkpoint(
            forward, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state, **kwargs
        )

    layer.forward = recomputed
    layer._snugtune_plain_forward = forward  # type: ignore[assignment]


def _undo(layer: nn.Module) -> None:
    plain = layer.__dict__.pop("_snugtune_plain_forward", None)
    if plain is not None:
        # The class's own forward comes back by removing what hides it, an earlier wrapper by setting it.
        if getattr(plain, "__func__", None) is type(layer).forward:
            del layer.__dict__["forward"]
        else:
            layer.forward = plain
