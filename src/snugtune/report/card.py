"""The model card: what the run folder's ``README.md`` says, with the metadata model hubs read."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import yaml

from snugtune.files import write_text
from snugtune.report.headline import has_several_labels, headline
from snugtune.units import duration

_MOST_LABELS = 300  # listed by name; past it their number says more


def write_card(record: dict[str, Any], path: Path) -> None:
    """Write the card of the run whose ``run.json`` holds ``record``."""
    write_text(path, card(record))


def card(record: dict[str, Any]) -> str:
    """A model card in the Hub's format: YAML metadata with ``model-index``, then Markdown.

    The metadata keys are those of https://huggingface.co/docs/hub/model-cards.
    """
    return _card(record, _metadata(record), _use(record))


def export_card(record: dict[str, Any], to: str, name: str = "FOLDER") -> str:
    """The card of an export ``to`` merged, adapter, onnx, onnx-int8 or static, users find under ``name``."""
    metadata = _metadata(record)
    if to == "static":
        shown = "```\npython -m http.server\n```\n\nin this folder, and http://localhost:8000 in a browser."
        return _card(record, metadata | {"library_name": "onnx"}, shown)
    if to == "adapter":
        loader = _adapter_loader(name, quantized=_in_4bit(record))
    else:
        onnx = to.startswith("onnx")
        metadata |= {"library_name": "onnx" if onnx else "transformers"}
        loader = _onnx_loader(name) if onnx else _pipeline_loader(name)
    return _card(record, metadata, "\n\n".join([_python(loader), *_stock_difference(record)]))


def _card(record: dict[str, Any], metadata: dict[str, Any], use: str) -> str:
    head = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    # Runs made before there were verdicts have none.
    verdict = [_verdict(record)] if "verdict" in record else []
    sections = [_title(record), *verdict, _figures(record), _decision(record), use, _labels(record)]
    return f"---\n{head}---\n\n" + "\n\n".join(sections) + "\n"


def _metadata(record: dict[str, Any]) -> dict[str, Any]:
    part, metrics = _shown_part(record)
    first = (
        ("f1_micro", "f1", "Micro F1") if has_several_labels(record) else ("accuracy", "accuracy", "Accuracy")
    )
    results = [
        {"type": kind, "value": round(metrics[key], 4), "name": name}
        for key, kind, name in (first, ("f1_macro", "f1", "Macro F1"))
    ]
    task = {"type": "text-classification", "name": "Text classification"}
    dataset = {"type": "private", "name": "The user's own table", "split": part}
    entry = {"name": "classifier", "results": [{"task": task, "dataset": dataset, "metrics": results}]}
    return {
        "library_name": "peft" if record["model"]["folder"] == "adapter" else "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["snugtune", "text-classification"],
        "model-index": [entry],
    }


def _title(record: dict[str, Any]) -> str:
    rows = record["data"]["rows"]
    kind = "labels, any number of which a text may carry" if has_several_labels(record) else "classes"
    return (
        f"# Text classifier, {len(record['labels'])} {kind}\n\n"
        f"Trained with snugtune {record['versions']['snugtune']} on {record['created_at'][:10]} from "
        f"`{record['model']['source']}`, on {rows['train']:,} texts ({rows['validation']:,} held back for "
        f"validation, {rows['test']:,} for the test). Training took {duration(record['time']['train_s'])}; "
        f"{record['parameters']['trainable']:,} of {record['parameters']['all']:,} parameters "
        f"({record['parameters']['percent']:.2f} %) were trained."
    )


_LEVELS = {
    "ready": "Ready",
    "ready_with_review": "Ready, with review of {review:.0f} % of the texts",
    "not_ready": "Not ready",
}


def _verdict(record: dict[str, Any]) -> str:
    """The level, what can be automated and how that went on the test rows, and why."""
    verdict, promised = record["verdict"], record["automation"]["sentence"]
    level = _LEVELS[verdict["level"]].format(review=100 * verdict["review_share"])
    tested = record["automation"]["test"]
    kept = ""
    if tested and tested["precision"] is not None:
        low, high = (100 * end for end in tested["interval"])
        kept = (
            f" Of the test rows {100 * tested['coverage']:.1f} % needed no review, and "
            f"{100 * tested['precision']:.1f} % of these were right "
            f"(95 % interval {low:.1f} to {high:.1f} %)."
        )
    lines = ["## Verdict", f"**{level}.** {promised}{kept}"]
    listed = [reason for reason in verdict["reasons"] if reason != promised]
    if listed:
        lines.append("\n".join(f"- {_one_line(reason)}" for reason in listed))
    return "\n\n".join(lines)


def _one_line(sentence: str) -> str:
    """A sentence that may hold the user's labels, as text: no markup and no line of its own."""
    return escape(" ".join(sentence.split()), quote=False).replace("`", "&#96;")


def _figures(record: dict[str, Any]) -> str:
    part, metrics = _shown_part(record)
    baseline = record["baseline"]["metrics"][part]
    lines = [f"| on {part} | this model | {record['baseline']['name']} |", "|---|---|---|"]
    lines += [f"| {name} | {metrics[key]:.4f} | {baseline[key]:.4f} |" for key, name in headline(record)]
    return "\n".join(lines)


def _decision(record: dict[str, Any]) -> str:
    decision = record["decision"]
    share = decision["mixture"]["weight"]
    threshold, target = decision["confidence_threshold"], decision["precision_target"]
    several = has_several_labels(record)
    right = "exactly right" if several else "right"
    sentence = (
        f"Predictions with a confidence of {threshold:.3f} or more are {right} in {100 * target:.0f} % of "
        "cases or more, as far as the validation rows can promise (at 90 % confidence); the others are "
        "marked `needs_review`."
        if threshold <= 1
        else f"No confidence reaches the asked precision of {100 * target:.0f} % on the validation rows, so "
        "every prediction is marked `needs_review`."
    )
    mixed = (
        f" `snugtune predict` mixes in the TF-IDF baseline of the folder `baseline/` with a share of "
        f"{100 * share:.0f} %, as the figures above do; the model folder by itself leaves it out."
        if share
        else ""
    )
    given = (
        " A label is given if its calibrated probability reaches its own threshold (`decision.thresholds` in "
        "`run.json`)."
        if several
        else ""
    )
    return sentence + given + mixed


def _use(record: dict[str, Any]) -> str:
    folder = record["model"]["folder"]
    loader = (
        _adapter_loader(folder, quantized=_in_4bit(record))
        if folder == "adapter"
        else "from transformers import AutoModelForSequenceClassification\n\n"
        f'model = AutoModelForSequenceClassification.from_pretrained("{folder}")'
    )
    shown = f"```\nsnugtune predict RUN new.xlsx -o done.xlsx\n```\n\n{_python(loader)}"
    return "\n\n".join([shown, *_stock_difference(record)])


_READ = {
    "head_tail": "the beginning and the end of texts that are longer",
    "windows": "all of texts that are longer, in overlapping windows, and averages the logits",
}


def _stock_difference(record: dict[str, Any]) -> list[str]:
    """In what the model folder by itself differs from the figures: it knows no way but to cut texts off."""
    way = record.get("long_texts", {}).get("chosen", "truncate")
    if way == "truncate":
        return []
    return [
        f"The figures are those of `snugtune predict`, which reads {_READ[way]} than "
        f"{record['model']['max_length']} tokens. A stock `pipeline` with the model folder reads only their "
        "beginning, and will do worse where the end matters."
    ]


def _python(lines: str) -> str:
    return f"```python\n{lines}\n```"


def _in_4bit(record: dict[str, Any]) -> bool:
    return bool(record["config"].get("load_in_4bit", False))


def _pipeline_loader(name: str) -> str:
    return (
        "from transformers import pipeline\n\n"
        f'classify = pipeline("text-classification", model="{name}")\n'
        "classify(texts, truncation=True)"
    )


def _onnx_loader(name: str) -> str:
    """Python that computes the logits of one text, without torch."""
    return (
        "import numpy as np\nimport onnxruntime\nfrom tokenizers import Tokenizer\n\n"
        f'session = onnxruntime.InferenceSession("{name}/model.onnx")\n'
        f'encoding = Tokenizer.from_file("{name}/tokenizer.json").encode(text)\n'
        'arrays = {"input_ids": np.array([encoding.ids], dtype=np.int64)}\n'
        'arrays["attention_mask"] = np.ones_like(arrays["input_ids"])\n'
        '(logits,) = session.run(["logits"], arrays)'
    )


def _adapter_loader(folder: str, *, quantized: bool) -> str:
    """Python that loads the adapter as it was measured: in float32, on 4-bit weights if trained on such."""
    lines = [
        "from peft import AutoPeftModelForSequenceClassification",
        f"from transformers import AutoConfig{', BitsAndBytesConfig' if quantized else ''}",
        "",
        f'config = AutoConfig.from_pretrained("{folder}")',
    ]
    if quantized:
        text = f'Path("{folder}/quantization.json").read_text(encoding="utf-8")'
        lines = ["import json", "from pathlib import Path", "", *lines, f"quantization = json.loads({text})"]
    lines += [
        "model = AutoPeftModelForSequenceClassification.from_pretrained(",
        f'    "{folder}", id2label=config.id2label, label2id=config.label2id, dtype="float32",',
        "    pad_token_id=config.pad_token_id, ignore_mismatched_sizes=True,",
        *(["    quantization_config=BitsAndBytesConfig(**quantization),"] if quantized else []),
        ")",
    ]
    return "\n".join(lines)


def _labels(record: dict[str, Any]) -> str:
    labels = record["labels"]
    if len(labels) > _MOST_LABELS:
        return f"It knows {len(labels):,} labels; they are in `run.json`."
    return "Labels: " + ", ".join(f"`{label}`" for label in labels)


def _shown_part(record: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Test where there is one, else validation."""
    part = "test" if "test" in record["metrics"] else "validation"
    return part, record["metrics"][part]
