"""The frozen word embedding on the host: looked up there, only the vectors of the batch go to the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def word_embedding(model: nn.Module) -> nn.Embedding:
    """The largest embedding of the model.

    Raises:
        ValueError: the model has none.
    """
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    if not embeddings:
        raise ValueError("the model has no embedding")
    return max(embeddings, key=lambda module: module.weight.numel())


def embedding_to_host(model: nn.Module, *, freeze: bool = False) -> bool:
    """Keep the frozen word embedding on the CPU whatever device the model is moved to.

    With ``freeze`` it becomes so: a model as it is loaded has everything trainable, and whoever attaches an
    adapter freezes the rest. Returns whether anything changed. The look-up copies the same numbers from
    another place, so results are unchanged. Token ids are read back to the host in each forward pass.

    Raises:
        ValueError: the embedding is trained, or there is none.
    """
    embedding = word_embedding(model)
    weight = embedding.weight.requires_grad_(embedding.weight.requires_grad and not freeze)
    if weight.requires_grad:
        raise ValueError("the word embedding is trained, so it must stay on the device")
    if "_snugtune_on_host" in embedding.__dict__:
        return False
    if weight.device.type != "cpu":
        embedding.cpu()
    embedding.forward = _on_host(embedding.forward)  # type: ignore[method-assign, assignment]
    # Moving the model must not move the embedding; its number format stays too.
    embedding._apply = lambda _fn, recurse=True: embedding  # type: ignore[method-assign]  # noqa: ARG005
    embedding._snugtune_on_host = True  # type: ignore[assignment]
    return True


def move_whole(model: nn.Module, device: torch.device) -> None:
    """Move ``model`` to ``device``, or leave it on the host: it goes tensor by tensor, and what has arrived
    when memory runs out would stay there.
    """
    was_on_host = all(parameter.device.type == "cpu" for parameter in model.parameters())
    try:
        model.to(device)
    except BaseException:
        if was_on_host:
            model.to("cpu")
        raise


def _on_host(forward: Callable[..., Any]) -> Callable[[Tensor], Tensor]:
    def look_up(input_ids: Tensor) -> Tensor:
        vectors: Tensor = forward(input_ids.cpu())
        return vectors.to(input_ids.device, non_blocking=True)

    return look_up
