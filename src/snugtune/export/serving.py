"""Which files and keys other programs read of a classifier's folder, and whether they are there.

Read off the programs' own pages and sources, November 2026:

- Transformers, ``pipeline("text-classification")``: ``config.json`` (``architectures``, ``id2label``),
  safetensors, the tokenizer's files (huggingface.co/docs/transformers/main_classes/pipelines).
- text-embeddings-inference (TEI): ``router/src/lib.rs`` reads ``architectures``, ``model_type``,
  ``max_position_embeddings`` (or ``n_positions``), ``pad_token_id`` (a number, not null), ``id2label`` and
  ``label2id`` of ``config.json``, ``tokenizer.json`` and ``max_seq_length`` of ``sentence_bert_config.json``;
  ``backends/candle/src/models`` says which model types have a classifier, the names of its tensors and the
  keys of its configuration; ``backends/ort/src/lib.rs`` reads ``model.onnx`` in float32
  (github.com/huggingface/text-embeddings-inference).
  For more than one label it computes the softmax, unless asked for ``raw_scores`` (``core/src/infer.rs``).
- vLLM's ``classify``: docs.vllm.ai/en/stable/models/pooling_models/classify lists the architectures;
  ``problem_type`` chooses softmax or sigmoid; ``sentence_bert_config.json`` counts if it has both
  ``max_seq_length`` and ``do_lower_case`` (``vllm/transformers_utils/config.py``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from snugtune.config import MULTI_LABEL, SINGLE_LABEL
from snugtune.errors import ArtifactError
from snugtune.files import write_json

TEI_HEADS = {
    "bert": ("bert.pooler.dense.weight", "classifier.weight"),
    "roberta": ("classifier.dense.weight", "classifier.out_proj.weight"),
    "xlm-roberta": ("classifier.dense.weight", "classifier.out_proj.weight"),
    "camembert": ("classifier.dense.weight", "classifier.out_proj.weight"),
    "modernbert": ("head.dense.weight", "head.norm.weight", "classifier.weight"),
    "deberta-v2": ("pooler.dense.weight", "classifier.weight"),
}
"""Model types of which TEI's own backend has a classifier, with the tensors of the head that it reads."""

TEI_KEYS = {
    "modernbert": (
        "num_labels", "global_rope_theta", "local_rope_theta", "global_attn_every_n_layers",
        "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id",
    ),
}  # fmt: skip
"""Further keys of ``config.json`` that TEI cannot do without, by model type."""

VLLM_ARCHITECTURES = {
    "Bert", "Roberta", "XLMRoberta", "ModernBert", "GPT2", "Ernie", "Gemma", "Gemma2", "Gemma3Text", "Llama",
    "Mistral", "Qwen2", "Qwen3",
}  # fmt: skip
"""``...ForSequenceClassification`` that vLLM computes, or converts from a decoder of the same kind."""

GRAPH_OF_PAGE = "model_quantized.onnx"
"""The graph of a static page, under transformers.js's name for one in 8-bit integers."""

PHONE_BYTES = 300 << 20
"""From which size on a phone's browser is likely to give up: it ends pages of a gigabyte or two, and a model
is held twice while it starts."""

PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclass(frozen=True)
class Verdict:
    """Whether a program runs the folder unchanged; ``why`` not, or what is to be known, in sentences."""

    program: str
    runs: bool
    why: tuple[str, ...] = ()


def complete_config(folder: Path) -> None:
    """Add to ``config.json`` keys that TEI needs and Transformers 5 writes in another form or not at all."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config["model_type"] != "modernbert":
        return
    layers, rope = config.get("layer_types", []), config.get("rope_parameters", {})
    config["num_labels"] = len(config["id2label"])
    for key, kind in (("global_rope_theta", "full_attention"), ("local_rope_theta", "sliding_attention")):
        config.setdefault(key, rope.get(kind, {}).get("rope_theta"))
    period = layers.index("full_attention", 1) if "full_attention" in layers[1:] else len(layers)
    config.setdefault("global_attn_every_n_layers", period)
    write_json(path, config)


def check_folder(
    folder: Path, *, max_length: int, texts: Sequence[str] = (), problem_type: str = SINGLE_LABEL
) -> list[Verdict]:
    """Check every file and key of ``folder``, a saved Transformers classifier or its ONNX graph.

    ``max_length`` is the length it was trained with, ``problem_type`` the one it was trained for; ``texts``
    are tokenized as Transformers does and by ``tokenizer.json`` alone, as TEI does.

    Raises:
        ArtifactError: what every program needs is missing or wrong; all faults are named.
    """
    faults = list(_faults(folder, max_length, texts, problem_type))
    if faults:
        raise ArtifactError(f"The folder {folder} is not one that others can use: {'; '.join(faults)}.")
    config = _json(folder / "config.json")
    assert config is not None
    if (folder / GRAPH_OF_PAGE).is_file():
        return [_browser(folder)]
    if (folder / "model.onnx").is_file():
        return [_tei_onnx(config)]
    return [Verdict("pipeline", True), _tei(config, folder), _vllm(config)]


def _faults(folder: Path, max_length: int, texts: Sequence[str], problem_type: str) -> Iterator[str]:
    config = _json(folder / "config.json")
    if config is None:
        yield "config.json is missing or damaged"
    else:
        yield from _config_faults(config, problem_type)
        yield from _weight_faults(folder, config)
    yield from _tokenizer_faults(folder, texts)
    length = _json(folder / "sentence_bert_config.json") or {}
    if length.get("max_seq_length") != max_length:
        yield f"sentence_bert_config.json does not say max_seq_length {max_length}"
    if not isinstance(length.get("do_lower_case"), bool):
        yield "sentence_bert_config.json does not say do_lower_case"
    if pickled := sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED):
        yield f"it holds pickled files ({', '.join(pickled)})"


def _config_faults(config: dict[str, Any], problem_type: str) -> Iterator[str]:
    architectures = config.get("architectures") or [""]
    if not all(str(name).endswith("ForSequenceClassification") for name in architectures):
        yield "architectures in config.json names no sequence classifier"
    if "auto_map" in config:
        yield "config.json refers to code (auto_map)"
    id2label, label2id = config.get("id2label") or {}, config.get("label2id") or {}
    if sorted(id2label, key=str) != sorted(map(str, range(len(id2label)))) or not id2label:
        yield "the ids of id2label in config.json do not run from 0 without a gap"
    if {name: int(i) for i, name in id2label.items() if str(i).isdigit()} != label2id:
        yield "label2id in config.json is not the reverse of id2label"
    if len(set(id2label.values())) < len(id2label):
        yield "two ids of id2label in config.json have one name"
    if not isinstance(_text_part(config).get("pad_token_id"), int):
        yield "pad_token_id in config.json is no number"
    if not config.get("problem_type"):
        yield "problem_type is missing in config.json"
    elif config["problem_type"] != problem_type:
        # It chooses between softmax and sigmoid.
        yield f"problem_type in config.json is not {problem_type}"


def _weight_faults(folder: Path, config: dict[str, Any]) -> Iterator[str]:
    if any((folder / name).is_file() for name in ("model.onnx", GRAPH_OF_PAGE)):
        return
    shapes, broken = _tensor_shapes(folder)
    if broken:
        yield broken
        return
    K = len(config.get("id2label") or {})
    of_heads = [shape for name, shape in shapes.items() if name.startswith(("classifier", "score"))]
    if not any(len(shape) == 2 and shape[0] == K for shape in of_heads):
        yield f"the weights have no head of {K} classes"


def _tensor_shapes(folder: Path) -> tuple[dict[str, list[int]], str | None]:
    """Shapes by name of all tensors, or what is wrong with their files."""
    index = _json(folder / "model.safetensors.index.json")
    names = sorted(set(index["weight_map"].values())) if index else ["model.safetensors"]
    shapes: dict[str, list[int]] = {}
    for name in names:
        try:
            with safe_open(folder / name, framework="np") as file:
                shapes |= {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return {}, f"the weights file {name} is missing or damaged"
    return shapes, None


def _tokenizer_faults(folder: Path, texts: Sequence[str]) -> Iterator[str]:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    if not (folder / "tokenizer_config.json").is_file():
        yield "tokenizer_config.json is missing"
        return
    try:
        alone = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:
        # The library raises the base class alone.
        yield "tokenizer.json is missing or damaged"
        return
    whole = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    alone.no_truncation()
    alone.no_padding()
    if any(alone.encode(text).ids != whole(text, verbose=False)["input_ids"] for text in texts):
        yield "tokenizer.json by itself gives other ids than Transformers' tokenizer"


def _tei(config: dict[str, Any], folder: Path) -> Verdict:
    kind = config["model_type"]
    if kind not in TEI_HEADS:
        return Verdict(
            "text-embeddings-inference", False,
            (f"it has no classifier for models of type {kind}; its CPU image runs the onnx export",),
        )  # fmt: skip
    shapes, _ = _tensor_shapes(folder)
    why = [f"it looks for the tensor {name}" for name in TEI_HEADS[kind] if name not in shapes]
    needed = ("pad_token_id", "max_position_embeddings", *TEI_KEYS.get(kind, ()))
    why += [f"it looks for {key} in config.json" for key in needed if config.get(key) is None]
    return Verdict("text-embeddings-inference", not why, (*why, *_raw_scores(config)))


def _tei_onnx(config: dict[str, Any]) -> Verdict:
    """TEI's ONNX backend, of its CPU image."""
    missing = [
        names[0]
        for names in (
            ("max_position_embeddings", "n_positions"), ("pad_token_id",), ("hidden_size", "n_embd"),
            ("num_hidden_layers", "n_layer"),
        )
        if not any(isinstance(config.get(name), int) for name in names)
    ]  # fmt: skip
    why = tuple(f"it looks for {key} in config.json" for key in missing)
    return Verdict("text-embeddings-inference (CPU image)", not missing, (*why, *_raw_scores(config)))


def _browser(folder: Path) -> Verdict:
    size = (folder / GRAPH_OF_PAGE).stat().st_size
    if size <= PHONE_BYTES:
        return Verdict("web browser", True)
    why = f"its model has {size >> 20} MiB, which may be too much for a phone"
    return Verdict("web browser", True, (why,))


def _raw_scores(config: dict[str, Any]) -> tuple[str, ...]:
    """What is to be known of TEI where a text may carry several labels."""
    if config.get("problem_type") != MULTI_LABEL:
        return ()
    return ("it knows the softmax alone: ask for raw_scores and take the sigmoid of each",)


def _vllm(config: dict[str, Any]) -> Verdict:
    name = config["architectures"][0]
    if name.removesuffix("ForSequenceClassification") in VLLM_ARCHITECTURES:
        return Verdict("vLLM classify", True)
    return Verdict("vLLM classify", False, (f"{name} is not among the architectures it lists",))


def _text_part(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = config.get("text_config") or config
    return found


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
