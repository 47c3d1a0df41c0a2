"""An exported folder, asked in a new process with nothing of ours, must answer as the run does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from snugtune.data.tokens import Tokens
from snugtune.errors import ArtifactError
from snugtune.predict.agreement import Logits

_PIPELINE = """
import json, sys
from transformers import pipeline
from transformers.utils import logging

logging.set_verbosity_error()
request = json.load(sys.stdin)
classify = pipeline("text-classification", model=request["folder"], device=-1, trust_remote_code=False,
                    model_kwargs={"use_safetensors": True})
rows = classify(request["texts"], top_k=None, function_to_apply="none", batch_size=8, truncation=True)
print(json.dumps([{score["label"]: score["score"] for score in row} for row in rows]))
"""
"""Through ``pipeline``, in the number format the folder is saved in; ``truncation`` cuts at the length that
the folder itself states. By label, so that a wrong ``id2label`` shows."""

_ONNX = """
import json, sys
import numpy as np
import onnxruntime
from pathlib import Path
from tokenizers import Tokenizer

request = json.load(sys.stdin)
folder = Path(request["folder"])
read = lambda name: json.loads((folder / name).read_text(encoding="utf-8"))
config = read("config.json")
pad = (config.get("text_config") or config)["pad_token_id"]
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer.enable_truncation(read("sentence_bert_config.json")["max_seq_length"])
tokenizer.no_padding()
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
session = onnxruntime.InferenceSession(str(folder / request["graph"]), options, ["CPUExecutionProvider"])
ids = request["ids"] or [one.ids for text in request["texts"] for one in [tokenizer.encode(text)]]
rows = []
for start in range(0, len(ids), 8):
    batch = ids[start : start + 8]
    length = max(map(len, batch))
    short = [length - len(row) for row in batch]
    arrays = {"input_ids": [row + [pad] * n for row, n in zip(batch, short)],
              "attention_mask": [[1] * len(row) + [0] * n for row, n in zip(batch, short)]}
    arrays = {name: np.array(value, dtype=np.int64) for name, value in arrays.items()}
    for row in session.run(["logits"], arrays)[0].tolist():
        rows.append({config["id2label"][str(i)]: value for i, value in enumerate(row)})
print(json.dumps(rows))
"""
"""With ONNX Runtime and the tokenizer's own file, without torch or Transformers."""


def answers(
    folder: Path,
    texts: Sequence[str],
    label_names: Sequence[str],
    *,
    graph: str | None = None,
    tokens: Tokens | None = None,
) -> Logits:
    """Logits (N, K), in the order of ``label_names``, that a new process reads out of ``folder``.

    ``graph`` is the ONNX graph in it, None for a Transformers model. With ``tokens`` of the texts (ONNX
    alone) their rows are read instead of what ``tokenizer.json`` gives, cut off.

    Raises:
        ArtifactError: the folder does not load there, or knows other labels.
    """
    ids = None if tokens is None else [row.tolist() for row in tokens.ids]
    request = json.dumps({"folder": str(folder), "texts": list(texts), "graph": graph, "ids": ids})
    command = [sys.executable, "-W", "ignore", "-c", _ONNX if graph else _PIPELINE]
    done = subprocess.run(command, input=request, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["no reason was given"])[-1][:300]
        raise ArtifactError(f"The export in {folder} does not work in a new process: {reason}")
    rows = json.loads(lines[-1])
    if any(set(row) != set(label_names) for row in rows):
        raise ArtifactError(f"The export in {folder} knows other labels than the run.")
    logits = np.array([[row[name] for name in label_names] for row in rows], dtype=np.float32)
    return logits if tokens is None else tokens.pooled(logits)
