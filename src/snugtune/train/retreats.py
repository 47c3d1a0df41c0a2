"""What a run can still give way with when a single example does not fit; none changes the result."""

from __future__ import annotations

from torch import nn

from snugtune.memory.guard import Retreat
from snugtune.model.checkpointing import checkpoint_layers, trained_layers
from snugtune.model.offload import embedding_to_host


def retreats(model: nn.Module, checkpointed_layers: int) -> list[Retreat]:
    """For training ``model``, of which the last ``checkpointed_layers`` are checkpointed already."""
    count = len(trained_layers(model))

    def checkpoint_all() -> bool:
        if checkpointed_layers >= count:
            return False
        return checkpoint_layers(model, count) > 0

    every_layer = f"activation checkpointing of all {count} layers"
    return [Retreat(every_layer, checkpoint_all, of_training=True), _embedding(model)]


def evaluation_retreats(model: nn.Module, *, freeze: bool = False) -> list[Retreat]:
    """For running ``model`` without gradients; ``freeze``: its word embedding will not be trained later."""
    return [_embedding(model, freeze=freeze)]


def _embedding(model: nn.Module, *, freeze: bool = False) -> Retreat:
    def move() -> bool:
        try:
            return embedding_to_host(model, freeze=freeze)
        except ValueError:  # it is trained, or there is none
            return False

    return Retreat("the word embedding moved to the host", move)
