"""A folder that a plain file server shows as a page which runs the model in the visitor's browser.

The page's own files are in ``static/``; what they run on comes from npm (``npm.py``). Why these packages, and
what is checked: ``decisions/0024-static-page.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment

from snugtune.data.long_texts import HEAD_SHARE, WINDOW_OVERLAP, Frame
from snugtune.data.tokens import tokenize
from snugtune.errors import UserInputError
from snugtune.evaluate.decision import Decision
from snugtune.evaluate.multilabel.decision import LabelSetDecision, SigmoidMap
from snugtune.evaluate.scaling import Calibration
from snugtune.export.npm import copy_packages
from snugtune.export.serving import GRAPH_OF_PAGE
from snugtune.export.tables import normalizer_table, word_table
from snugtune.files import write_json, write_text
from snugtune.predict.agreement import Agreement
from snugtune.predict.int8 import logits_of, long_texts_of
from snugtune.predict.onnx import LARGEST_FILE_BYTES, OnnxModel, write_int8

POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'"
)
"""The page may connect to the server that it came from, and to nothing else (https://www.w3.org/TR/CSP3/)."""

OWN_FILES = ("demo.css", "demo.js", "worker.js", "answers.js", "tokens.js")
FETCHED = (GRAPH_OF_PAGE, "runtime/ort.wasm", "tokenizer.json", "tables.json")
"""What the page downloads before it is ready, besides its scripts."""

MODELS = ("WordPiece", "BPE", "Unigram")
SPLITTERS = ("BertPreTokenizer", "ByteLevel", "Metaspace", "Split", "WhitespaceSplit", "Sequence")
"""Parts of a ``tokenizer.json`` that the page splits texts by as the run did; others it would get wrong."""

CHECK_TEXTS = (
    "My card never arrived, and nobody answers the phone.",
    "ÀÉÎÕÜ ñ ç ß ẞ ŁÓDŹ İstanbul ΑΣ ΣΊΣΥΦΟΣ",
    "e\u0301 a\u0308 n\u0303 \u0130 \ufb01 \u00bd \u2460 \u2122",
    "银行卡丢了。カードが届きません。카드를 잃어버렸어요 𠀀",
    "لم تصل بطاقتي אבד לי הכרטיס नमस्ते สวัสดี",
    "😀 👩\u200d👩\u200d👧\u200d👦 🇩🇪 1\ufe0f\u20e3",
    "<script>alert('x')</script> & <b>bold</b> {{ 7 * 7 }} [CLS] [MASK] <s> </s>",
    "tab\there\u00a0and\u3000there\u200b\ufeff\u0085\u2028end\u0007",
    "$1,234.56 on 03/04/2026 -- see https://example.org/?q=1#x it's O'Brien's \u201cfee\u201d\u2026",
    "word " * 700,
    "x" * 300,
)
"""Ours, not the user's: the page reads them when it is opened and compares."""

CHECK_PROBABILITIES = 3
"""Of the first so many of them the probabilities are compared as well, which takes the page's time."""


def page_decision(record: dict[str, Any]) -> Decision | LabelSetDecision:
    """How the run decides, without the TF-IDF baseline, which is not on the page.

    Where the baseline has a share, the model keeps its own temperature (and offset), and what was fitted to
    both together goes.
    """
    if record.get("label_separator") is not None:
        sets = LabelSetDecision.from_dict(record["decision"])
        return replace(sets, pooled=SigmoidMap(), weight=0.0) if sets.uses_baseline else sets
    decision = Decision.from_dict(record["decision"])
    if not decision.uses_baseline:
        return decision
    alone = replace(decision.mixture, weight=0.0, temperature=1.0)
    return replace(decision, mixture=alone, calibration=Calibration())


def check_page(tokenizer: Any) -> None:
    """Refuse, before the work, what the page could not read as the run does.

    Raises:
        UserInputError: the tokenizer has a part that is not one of ``MODELS`` and ``SPLITTERS``.
    """
    Frame.of(tokenizer)
    backend = tokenizer.backend_tokenizer
    parts = [type(backend.model).__name__, type(backend.pre_tokenizer).__name__]
    unknown = [part for part in parts if part not in (*MODELS, *SPLITTERS, "NoneType")]
    if unknown:
        raise UserInputError(
            f"This model's tokenizer has a part ({unknown[0]}) by which a browser would not split texts as "
            "the run did; export it with --to onnx-int8."
        )


def write_page(
    folder: Path,
    record: dict[str, Any],
    model: Any,
    tokenizer: Any,
    *,
    examples: Sequence[str] = (),
    npm_package_dir: str | Path | None = None,
) -> None:
    """Write all of the page but ``demo.json``'s figures of the check, and ``index.html``.

    Raises:
        UserInputError: the model is larger than a browser can hold, or as ``copy_packages``.
        RegistryError: as ``copy_packages``.
    """
    copy_packages(folder, npm_package_dir)
    _copy_licences(folder / "licences")
    write_int8(model, folder / GRAPH_OF_PAGE, embeddings=True)
    if (folder / f"{GRAPH_OF_PAGE}.data").exists():
        raise UserInputError(
            f"In 8-bit integers the model still has more than {LARGEST_FILE_BYTES / 1e9:g} GB, which no "
            "browser holds; export a smaller one, or use --to onnx-int8 on a server."
        )
    for name in OWN_FILES:
        with as_file(files("snugtune.export") / "static" / name) as path:
            write_text(folder / name, path.read_text(encoding="utf-8"))
    backend = tokenizer.backend_tokenizer
    tables = {"normalizer": normalizer_table(backend, CHECK_TEXTS), "words": word_table(backend)}
    write_json(folder / "tables.json", tables)
    write_json(folder / "demo.json", _demo(folder, record, tokenizer, examples))


def write_index(folder: Path, record: dict[str, Any], found: Agreement, notes: Sequence[str]) -> None:
    """Write ``index.html``, with what the check ``found``."""
    several = record.get("label_separator") is not None
    labels = len(record["labels"])
    source = (files("snugtune.export") / "static" / "index.html").read_text(encoding="utf-8")
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    page = template.render(
        title=f"Text classifier, {labels:,} {'labels' if several else 'classes'}",
        policy=POLICY,
        version=version("snugtune"),
        source=Path(record["model"]["source"]).name,
        rows=f"{record['data']['rows']['train']:,}",
        date=record["created_at"][:10],
        labels=f"{labels:,}",
        sentences=[
            "The model runs in this browser. Texts are sent to nobody; nothing is loaded from elsewhere.",
            f"Its numbers are rounded to 8 bits: {found.sentence()}.",
            *notes,
        ],
    )
    write_text(folder / "index.html", page)


def page_notes(record: dict[str, Any]) -> list[str]:
    """What the page does otherwise than ``snugtune predict``, in sentences."""
    share = record["decision"]["mixture"].get("weight", 0.0)
    if not share:
        return ["Probabilities are calibrated as the run's are."]
    return [
        f"snugtune predict mixes in a TF-IDF baseline with a share of {100 * share:.0f} %, which is not on "
        "this page: the model is alone here, with its own calibration.",
        "So the page does not say which texts a person should look at: that was promised of both together.",
    ]


def _demo(folder: Path, record: dict[str, Any], tokenizer: Any, examples: Sequence[str]) -> dict[str, Any]:
    """The content of ``demo.json``."""
    length, way = int(record["model"]["max_length"]), long_texts_of(record)
    decision = page_decision(record)
    used = record["decision"]["mixture"].get("weight", 0.0) > 0
    tokens = tokenize(CHECK_TEXTS, tokenizer, length, way)
    frame = Frame.of(tokenizer)
    starts = np.arange(len(tokens) + 1) if tokens.starts is None else tokens.starts
    few = list(CHECK_TEXTS[:CHECK_PROBABILITIES])
    logits = logits_of(OnnxModel(folder / GRAPH_OF_PAGE), few, tokenizer, length, way)
    probabilities = decision.probabilities(logits).tolist()
    check = [
        {"text": text, "rows": [tokens.ids[row].tolist() for row in range(starts[i], starts[i + 1])]}
        | ({"probabilities": probabilities[i]} if i < len(probabilities) else {})
        for i, text in enumerate(CHECK_TEXTS)
    ]
    return {
        "labels": list(record["labels"]),
        "decision": decision.as_dict(),
        "confidence_threshold": None if used else decision.confidence_threshold,
        "precision_target": decision.precision_target,
        "reading": {
            "max_length": length,
            "long_texts": way,
            "before": list(frame.before),
            "after": list(frame.after),
            "head": round((length - frame.size) * HEAD_SHARE),
            "window_overlap": WINDOW_OVERLAP,
            "truncation_side": tokenizer.truncation_side,
        },
        "examples": list(examples),
        "files": {name: (folder / name).stat().st_size for name in FETCHED},
        "check": check,
    }


def _copy_licences(folder: Path) -> None:
    """ONNX Runtime's, from its Python package: the one on npm holds none."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    for name, target in (
        ("LICENSE", "onnxruntime.txt"),
        ("ThirdPartyNotices.txt", "onnxruntime-third-party.txt"),
    ):
        text = (Path(spec.origin).parent / name).read_text(encoding="utf-8", errors="replace")
        write_text(folder / target, text)
