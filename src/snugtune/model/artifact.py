"""The saved folder: a stock PEFT adapter (or Transformers model) that loads with nothing of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from snugtune.errors import ArtifactError

LOGIT_TOLERANCE = 1e-3
"""Largest difference of a logit between the trained model and the reloaded one, both in float32."""

_CHECK = """
import json, sys, warnings
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline
folder, peft, request = sys.argv[1], sys.argv[2] == "peft", json.load(sys.stdin)
safe = {"trust_remote_code": False}
config = AutoConfig.from_pretrained(folder, **safe)
if peft:
    from peft import AutoPeftModelForSequenceClassification
    model = AutoPeftModelForSequenceClassification.from_pretrained(
        folder, id2label=config.id2label, label2id=config.label2id, use_safetensors=True, **safe)
else:
    model = AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=True, **safe)
model.eval()
tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
batch = tokenizer(request["texts"], padding=True, truncation=True,
                  max_length=request["max_length"], return_tensors="pt")
with torch.inference_mode():
    logits = model(**batch).logits.float().tolist()
merged = model.merge_and_unload() if peft else model
classify = pipeline("text-classification", model=merged, tokenizer=tokenizer)
rows = classify(request["texts"], truncation=True, max_length=request["max_length"])
labels = [row["label"] for row in rows]
print(json.dumps({"logits": logits, "labels": labels}))
"""


def save_model(model: nn.Module, tokenizer: Any, folder: Path, max_length: int) -> None:
    """Save adapter (or model), configuration with the user's labels, and tokenizer into ``folder``."""
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
    request = json.dumps({"texts": list(texts), "max_length": max_length})
    command = [sys.executable, "-W", "ignore", "-c", _CHECK, str(folder), "peft" if peft else "model"]
    done = subprocess.run(command, input=request, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason was given"]
        raise ArtifactError(f"The saved model in {folder} does not load in a new process: {reason[0]}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    difference = float(np.abs(np.array(answer["logits"], dtype=np.float32) - expected_logits).max())
    if not difference <= LOGIT_TOLERANCE:
        raise ArtifactError(
            f"The saved model in {folder} gives other logits than trained (by {difference:.3g})."
        )
    _check_labels(answer["labels"], expected_logits, label_names, folder)
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
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    # Left out, trust_remote_code makes Transformers ask on a terminal whether to run the folder's code.
    safe = {"trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
    options = {"attn_implementation": attn_implementation, "use_safetensors": True, **safe}
    if not (folder / "adapter_config.json").exists():
        return AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, **options), tokenizer
    config = AutoConfig.from_pretrained(folder, **safe)
    # Merged in float32, then rounded once: merging into rounded weights would round twice.
    model = AutoPeftModelForSequenceClassification.from_pretrained(
        folder, id2label=config.id2label, label2id=config.label2id, dtype=torch.float32, **options
    )
    return model.merge_and_unload().to(dtype), tokenizer
