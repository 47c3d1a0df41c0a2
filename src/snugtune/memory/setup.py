"""What decides the memory of a step besides model and batch: number formats, kernels and levers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setup:
    """How a step is run.

    ``device`` is ``cuda`` or ``cpu``. ``weights`` is the format of the frozen weights, ``compute`` that of
    mixed precision (``float32`` for none). ``attention`` is ``fused`` (the memory-efficient kernel, pinned),
    ``packed`` (the variable-length kernel, on texts without padding) or ``eager`` (scores written out).
    ``chunked_evaluation`` validates in the training's micro-batches, not in those that are fastest.
    ``top_layers`` restricts adapters to the last so many layers. With ``first_token_only`` the last layer
    computes what the head reads, where it can (``model/first_token.py``). Without ``dropout`` that of the
    settings is left out. ``accumulates`` says that a step has several micro-batches, so gradients are there
    while the later ones run. Weights are divided into ``shards``, one for each device.
    """

    device: str = "cuda"
    weights: str = "float16"
    compute: str = "float16"
    attention: str = "fused"
    attention_dropout: float = 0.0
    activation_checkpointing: int = 0
    embedding_on_host: bool = False
    quantized: bool = False
    top_layers: int | None = None
    first_token_only: bool = True
    dropout: bool = True
    chunked_evaluation: bool = False
    accumulates: bool = True
    shards: int = 1
