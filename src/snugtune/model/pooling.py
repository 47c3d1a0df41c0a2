"""Mean pooling inside a stock architecture: one more encoder layer that averages.

Sentence encoders such as all-MiniLM-L6-v2 are trained to say what a text is about by the mean over its
tokens (Reimers & Gurevych 2019, arXiv:1908.10084), while Transformers' classification heads of the BERT
family read the first token, which such models never trained. A layer of the same architecture can do the
averaging: with zero queries the softmax weighs every real token alike, identity keys and values hand the
tokens through, and a feed-forward part of zeros adds nothing. The first token then carries

    LayerNorm(SCALE * mean(tokens) + first token)

that is the standardised mean; the first token's own share of it is a per cent or so. The model stays one
that anyone loads as it is, and since a low-rank update of the queries makes the weights depend on the token,
training can turn the mean into attention pooling.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from snugtune.files import sha256

MEAN_POOLING_TYPES = {"bert", "roberta", "xlm-roberta", "camembert", "electra"}
"""Model types whose encoder is a list of post-norm layers of Transformers' BERT layout."""

SCALE = 128.0
"""Weight of the mean against the residual first token: a power of two, so exact in every number format."""

_TOKENIZER_SUFFIXES = {".json", ".txt", ".model"}


def declares_mean_pooling(folder: str | Path) -> bool:
    """Whether the model folder says, in sentence-transformers' own file, that the mean was trained."""
    try:
        text = (Path(folder) / "1_Pooling" / "config.json").read_text(encoding="utf-8")
        return bool(json.loads(text).get("pooling_mode_mean_tokens"))
    except (OSError, ValueError, AttributeError):
        return False


def wants_mean_pooling(name: str, pooling: str) -> bool:
    """Whether ``pooling``, or with "auto" the model itself, asks for the mean.

    The bundled model's folder need not be there for that: it was trained with the mean.
    """
    return pooling == "mean" or (pooling == "auto" and (name == "minilm" or declares_mean_pooling(name)))


def planned_config(config: PretrainedConfig, name: str, pooling: str) -> PretrainedConfig:
    """``config`` as ``load_backbone`` would load ``name``: with the averaging layer where it appends one."""
    if wants_mean_pooling(name, pooling) and config.model_type in MEAN_POOLING_TYPES:
        config.num_hidden_layers += 1
    return config


def append_mean_pooling(model: PreTrainedModel) -> None:
    """Append the averaging layer to a model (bare, not adapted) of ``MEAN_POOLING_TYPES``, in place.

    Raises:
        ValueError: the model is of another type.
    """
    if model.config.model_type not in MEAN_POOLING_TYPES:
        raise ValueError(f"model_type must be one of {sorted(MEAN_POOLING_TYPES)}.")
    layers = model.base_model.encoder.layer
    layer = copy.deepcopy(layers[-1])
    _set_to_mean(layer)
    layers.append(layer)
    model.config.num_hidden_layers += 1


def _set_to_mean(layer: Any) -> None:
    attention = layer.attention
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        for projection in (attention.self.key, attention.self.value):
            projection.weight.copy_(_identity(projection.weight))
        attention.output.dense.weight.copy_(SCALE * _identity(attention.output.dense.weight))
        for norm in (attention.output.LayerNorm, layer.output.LayerNorm):
            norm.weight.fill_(1.0)


def _identity(like: Tensor) -> Tensor:
    return torch.eye(len(like), dtype=like.dtype, device=like.device)


def pooled_folder(folder: str | Path) -> Path:
    """A folder with the model and tokenizer of ``folder`` and the averaging layer, made once and kept.

    It lies in the user's cache (``cache_folder``) under a name made from the
    content of the weights and configuration, so that the saved adapters that refer to it stay loadable.
    """
    folder = Path(folder)
    target = cache_folder() / f"{folder.name}-mean-{_content_name(folder)}"
    if (target / "config.json").is_file():
        return target
    model = AutoModel.from_pretrained(folder, use_safetensors=True, trust_remote_code=False, dtype="auto")
    append_mean_pooling(model)
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        model.save_pretrained(made)
        for path in folder.iterdir():
            if path.suffix in _TOKENIZER_SUFFIXES and not (made / path.name).exists():
                shutil.copy(path, made)
        made.chmod(0o755)
        _rename(made, target)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return target


def cache_folder() -> Path:
    """Where snugtune keeps what it made, measured or read before: ``SNUGTUNE_CACHE``, else the user's cache.

    That is ``XDG_CACHE_HOME`` (an absolute path, by the XDG Base Directory Specification) or ``~/.cache``.
    """
    if own := os.environ.get("SNUGTUNE_CACHE"):
        return Path(own)
    of_user = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (of_user if of_user.is_absolute() else Path.home() / ".cache") / "snugtune"


def _rename(made: Path, target: Path) -> None:
    try:
        made.rename(target)
    except OSError:
        if not target.is_dir():  # else another process made the same folder first
            raise


def _content_name(folder: Path) -> str:
    files = sorted([folder / "config.json", *folder.glob("*.safetensors")])
    return hashlib.sha256("".join([str(SCALE), *map(sha256, files)]).encode()).hexdigest()[:16]
