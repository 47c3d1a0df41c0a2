"""The saved folder: a stock PEFT adapter (or Transformers model) that loads with nothing of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from snugtune.errors import ArtifactError
from snugtune.files import system_errors
from snugtune.model.backbone import supported_attention

LOGIT_TOLERANCE = 1e-3
"""Largest difference of a logit between the trained model and the reloaded one, both in float32."""

_CHECK = """
import json, sys
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline

safe = {"trust_remote_code": False, "use_safetensors": True}

def load(folder, peft):
    if not peft:
        return AutoModelForSequenceClassification.from_pretrained(folder, **safe)
    from peft import AutoPeftModelForSequenceClassification
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return AutoPeftModelForSequenceClassification.from_pretrained(
        folder, id2label=config.id2label, label2id=config.label2id, pad_token_id=config.pad_token_id,
        ignore_mismatched_sizes=True, **safe)

def answer(folder, peft, texts, max_length):
    model = load(folder, peft).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    batch = tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**batch).logits.float().tolist()
    classify = pipeline(
        "text-classification", model=model.merge_and_unload() if peft else model, tokenizer=tokenizer)
    rows = classify(texts, truncation=True, max_length=max_length)
    return {"logits": logits, "labels": [row["label"] for row in rows]}

for request in json.load(sys.stdin):
    try:
        print(json.dumps(answer(**request)), flush=True)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
"""
"""The program of the check, free of anything of ours: requests in, one line of JSON for each out."""


@dataclass(frozen=True)
class Saved:
    """A saved folder and what it must do: logits (N, K) on ``texts`` and the labels they mean."""

    folder: Path
    texts: Sequence[str]
    logits: NDArray[np.float32]
    label_names: Sequence[str]
    max_length: int
    peft: bool


def save_model(model: nn.Module, tokenizer: Any, folder: Path, max_length: int) -> None:
    """Save adapter (or model), configuration with the user's labels, and tokenizer into ``folder``."""
    with system_errors():
        model.save_pretrained(folder)  # type: ignore[operator]
    # PEFT leaves out the model's configuration; with it the user's labels travel in the folder.
    model.config.save_pretrained(folder)  # type: ignore[union-attr, operator]
    tokenizer.save_pretrained(folder)
    text = json.dumps({"max_seq_length": max_length, "do_lower_case": False}) + "\n"
    (folder / "sentence_bert_config.json").write_text(text, encoding="utf-8")


def check_reload(
    folder: Path,
    texts: Sequence[str],
    expected_logits: NDArray[np.float32],
    label_names: Sequence[str],
    max_length: int,
    *,
    peft: bool,
) -> float:
    """Load ``folder`` in a new process with stock classes and compare logits (N, K) on ``texts``.

    Returns the largest difference of a logit.

    Raises:
        ArtifactError: the folder does not load, gives other logits, or gives other labels.
    """
    saved = Saved(folder, texts, expected_logits, label_names, max_length, peft)
    return check_reloads([saved])[0]


def check_reloads(saved: Sequence[Saved]) -> list[float]:
    """``check_reload`` of several folders in one new process; the largest difference of a logit of each.

    Raises:
        ArtifactError: as ``check_reload``, of the first folder at fault.
    """
    requests = [
        {"folder": str(s.folder), "peft": s.peft, "texts": list(s.texts), "max_length": s.max_length}
        for s in saved
    ]
    command = [sys.executable, "-W", "ignore", "-c", _CHECK]
    done = subprocess.run(command, input=json.dumps(requests), capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason was given"]
        raise ArtifactError(f"{saved[0].folder} cannot be checked in a new process: {reason[0]}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return [_compare(s, json.loads(line)) for s, line in zip(saved, lines, strict=True)]


def _compare(saved: Saved, answer: dict[str, Any]) -> float:
    if "error" in answer:
        reason = " ".join(answer["error"].split())[:300]
        raise ArtifactError(f"The saved model in {saved.folder} does not load in a new process: {reason}")
    logits = np.array(answer["logits"], dtype=np.float32)
    if logits.shape != saved.logits.shape:
        raise ArtifactError(
            f"The saved model in {saved.folder} gives logits of another shape, {logits.shape}."
        )
    difference = float(np.abs(logits - saved.logits).max())
    if not difference <= LOGIT_TOLERANCE:
        raise ArtifactError(
            f"The saved model in {saved.folder} gives other logits than trained (by {difference:.3g})."
        )
    _check_labels(answer["labels"], saved.logits, saved.label_names, saved.folder)
    return difference


def _check_labels(
    given: Sequence[str], logits: NDArray[np.float32], names: Sequence[str], folder: Path
) -> None:
    top = np.sort(logits, axis=1)
    clear = top[:, -1] - top[:, -2] > 2 * LOGIT_TOLERANCE
    for label, i, is_clear in zip(given, logits.argmax(1), clear, strict=True):
        if is_clear and label != names[i]:
            raise ArtifactError(f"The saved model in {folder} says {label!r} where {names[i]!r} was trained.")


def load_model(folder: Path, *, dtype: torch.dtype, attn_implementation: str) -> tuple[nn.Module, Any]:
    """Load what ``save_model`` wrote, an adapter merged into its model, and the tokenizer."""
    from peft import PeftConfig, PeftModel
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    # Left out, trust_remote_code makes Transformers ask on a terminal whether to run the folder's code.
    safe = {"trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
    config = AutoConfig.from_pretrained(folder, **safe)
    options = {
        "config": config,
        "attn_implementation": supported_attention(config, attn_implementation),
        "use_safetensors": True,
        **safe,
    }
    if not (folder / "adapter_config.json").exists():
        return AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, **options), tokenizer
    peft_config = PeftConfig.from_pretrained(folder)
    # The saved configuration has the labels and the pad token, which the published one has not. Merged in
    # float32, then rounded once: merging into rounded weights would round twice.
    base = AutoModelForSequenceClassification.from_pretrained(
        peft_config.base_model_name_or_path,
        revision=peft_config.revision,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        **options,
    )
    model: Any = PeftModel.from_pretrained(base, folder)
    return model.merge_and_unload().to(dtype), tokenizer
