"""A run's model in 8-bit integers, for ``predict`` and ``evaluate``: made and measured once, then cached."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from snugtune.data.label_sets import split_cell
from snugtune.data.labels import LabelSet
from snugtune.data.long_texts import LongTexts
from snugtune.data.tokens import tokenize
from snugtune.errors import UserInputError
from snugtune.evaluate.multilabel.decision import LabelSetDecision
from snugtune.files import check_free_space, file_digest, write_json
from snugtune.methods import METHODS
from snugtune.model.artifact import load_model
from snugtune.model.first_token import read_first_token_only
from snugtune.model.pooling import cache_folder
from snugtune.predict.agreement import ROUNDED, Agreement, Logits, agreement, set_agreement
from snugtune.predict.held_out import HeldOut, read_held_out
from snugtune.predict.onnx import OPSET, OnnxModel, require_onnx, weight_bytes, write_int8
from snugtune.train.forward import predict_logits

FORMAT = 2
"""Goes up when the graphs or what is measured of them change; part of the name they are cached under."""

ROWS_TO_MEASURE = 300
"""Held-out rows on which rounded numbers are compared: 2 % of them are 6."""

_CPU = torch.device("cpu")


def int8_model(run: Path, record: dict[str, Any], say: Callable[[str], None]) -> OnnxModel:
    """The run's model in 8-bit integers; whether its accuracy held is told to ``say``, every time.

    The graph is made at the first call and kept in the user's cache, with what was measured of it.

    Raises:
        UserInputError: packages are missing, the architecture cannot be exported, or the disk is full.
    """
    check_mergeable(record, "int8")
    require_onnx()
    folder = cache_folder() / f"int8-{_content_name(run, record)}"
    if not (folder / "measured.json").is_file():
        say("Making an int8 model of this run, once ...")
        _make(folder, run, record)
    say(json.loads((folder / "measured.json").read_text(encoding="utf-8"))["told"])
    return OnnxModel(folder / "model.onnx")


def check_mergeable(record: dict[str, Any], what: str, *, unless: bool = False) -> None:
    """``what`` needs a model by itself, into which virtual tokens cannot be merged.

    Raises:
        UserInputError: the run's method puts virtual tokens before each text.
    """
    method = record.get("config", {}).get("method", "lora")
    if not unless and method in METHODS and METHODS[method].has_virtual_tokens:
        raise UserInputError(
            f"{what} needs a model by itself, and what method={method!r} learned cannot be merged into one; "
            "export it with --to adapter, or train with method='lora'."
        )


def reference_model(run: Path, record: dict[str, Any], *, as_quantized: bool = True) -> tuple[Any, Any]:
    """The run's model in float32, adapter merged, with attention that can be exported, and the tokenizer.

    Raises:
        UserInputError: it cannot be loaded.
    """
    folder = run / record["model"]["folder"]
    model, tokenizer = load_model(
        folder, dtype=torch.float32, attn_implementation="sdpa", as_quantized=as_quantized
    )
    read_first_token_only(model)
    return model.eval(), tokenizer


def long_texts_of(record: dict[str, Any]) -> LongTexts:
    """How the run reads texts beyond ``max_length``; older runs cut them off."""
    chosen: LongTexts = record.get("long_texts", {}).get("chosen", "truncate")
    return chosen


def logits_of(
    model: nn.Module, texts: list[str], tokenizer: Any, max_length: int, long_texts: LongTexts = "truncate"
) -> Logits:
    """Logits (N, K) of ``texts`` on the CPU; ``long_texts``: how those beyond ``max_length`` are read."""
    tokens = tokenize(texts, tokenizer, max_length, long_texts)
    return predict_logits(model, tokens, pad_token_id=tokenizer.pad_token_id, device=_CPU)


def agreement_on(held_out: HeldOut, record: dict[str, Any], given: Logits, reference: Logits) -> Agreement:
    """Compare logits (N, K) on the held-out rows, as runs of one label or of several a text do."""
    separator = record.get("label_separator")
    if separator is None:
        return agreement(given, reference, true_classes(held_out, record))
    cells = [split_cell(cell or "", separator) for cell in held_out.recorded["label"].to_list()]
    y = LabelSet(tuple(record["labels"]), record.get("label_aliases", {}), separator).encode_sets(cells)
    decision = LabelSetDecision.from_dict(record["decision"])
    return set_agreement(given, reference, y, decision.sigmoid_thresholds())


def true_classes(held_out: HeldOut, record: dict[str, Any]) -> list[int | None]:
    """Class ids of the held-out rows; None where training never saw the label."""
    ids = {name: i for i, name in enumerate(record["labels"])}
    labels = held_out.recorded["label"].to_list()
    return [ids.get(label) if isinstance(label, str) else None for label in labels]


def _make(folder: Path, run: Path, record: dict[str, Any]) -> None:
    model, tokenizer = reference_model(run, record, as_quantized=False)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The graph in float32 is on the disk until it is quantised.
    check_free_space(folder.parent, 2 * weight_bytes(model), what="the int8 model")
    made = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        write_int8(model, made / "model.onnx")
        measured = _measure(OnnxModel(made / "model.onnx"), model, tokenizer, run, record)
        write_json(made / "measured.json", measured)
        made.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    except OSError:
        if not (folder / "measured.json").is_file():  # else another process made the same one first
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _measure(
    given: OnnxModel, reference: nn.Module, tokenizer: Any, run: Path, record: dict[str, Any]
) -> dict[str, Any]:
    try:
        held_out = read_held_out(run, record, rows=ROWS_TO_MEASURE)
    except UserInputError as error:
        return {"told": f"Whether int8 keeps this run's accuracy is not known: {error}", "agreement": None}
    length, way = record["model"]["max_length"], long_texts_of(record)
    found = agreement_on(
        held_out,
        record,
        logits_of(given, held_out.texts, tokenizer, length, way),
        logits_of(reference, held_out.texts, tokenizer, length, way),
    )
    told = (
        f"int8: {found.sentence()}."
        if found.within(ROUNDED)
        else f"Warning: int8 changes this run's answers: {found.sentence()}; leave it out where that matters."
    )
    return {"told": told, "agreement": found.as_dict()}


def _content_name(run: Path, record: dict[str, Any]) -> str:
    """Of everything that the graph and its measurement depend on; weights of a base named by its revision."""
    settings = [FORMAT, OPSET, record["model"]["max_length"], long_texts_of(record), record["decision"]]
    digest = hashlib.sha256(json.dumps(settings).encode())
    folder = run / record["model"]["folder"]
    files = [*folder.glob("*.safetensors"), folder / "config.json", run / "predictions.parquet"]
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        digest.update(adapter.read_bytes())
        base = Path(str(json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")))
        files += base.glob("*.safetensors") if base.is_dir() else []
    for path in sorted(files):
        digest.update(file_digest(path).encode() if path.is_file() else b"-")
    return digest.hexdigest()[:16]
