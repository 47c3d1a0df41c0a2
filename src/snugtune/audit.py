"""The audit of a table before anything is spent on it: facts, wrong labels, what more rows would bring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snugtune.config import FitConfig
from snugtune.data.audit import audit_table, sentences, shortened, without_texts
from snugtune.data.corrections import Issue, write_issues
from snugtune.data.dataset import Usable, load_usable, overlapping_rows, read_test
from snugtune.data.tokens import Tokens, Truncation, tokenize
from snugtune.evaluate.baseline import TfidfBaseline
from snugtune.evaluate.label_quality import LabelQuality, judge_labels
from snugtune.evaluate.learning_curve import learning_curve
from snugtune.files import staged_folder, write_json
from snugtune.model.backbone import load_for_fit
from snugtune.model.head import find_head
from snugtune.model.precision import compute_dtype, pick_device
from snugtune.progress import Observer, PhaseClock
from snugtune.train.features import FrozenPass, frozen_pass

ISSUES_FILE = "label_issues.xlsx"
ISSUES_LISTED = 10_000
"""In the spreadsheet: more than anybody will look at, and Excel stays quick."""

ISSUES_TOLD = 20


def audit(
    config: FitConfig,
    out: str | Path,
    *,
    frozen_pass: bool = True,
    overwrite: bool = False,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Audit the table ``config`` names; write ``audit.json`` and ``label_issues.xlsx`` to ``out``.

    Returns what ``audit.json`` holds. Without the ``frozen_pass`` labels are judged by TF-IDF alone.

    Raises:
        UserInputError: the data, a setting or the folder cannot be used.
    """
    clock = PhaseClock(observer or Observer())
    with staged_folder(out, overwrite=overwrite, marker="audit.json") as folder:
        table = load_usable(config, clock)
        leaked = None
        if config.test is not None:
            leaked = overlapping_rows(table.texts, read_test(config, table, clock).texts)
        lengths, seen = _read_by_model(config, table, clock, asked=frozen_pass and not config.is_multi_label)
        found = examine(
            table, lengths, np.arange(len(table.y)), None if seen is None else seen.features,
            leaked_rows=leaked, seed=config.seed, folder=folder, observer=clock, texts=config.report_texts,
        )  # fmt: skip
        record = {
            "source": config.train, "test": config.test, "columns": _columns(table),
            "cleaning": table.cleaning, "corrections": table.corrections,
            "judged_by": _judges(config, seen),
            "frozen_pass": seen and seen.as_dict(), "audit": found, "time": clock.seconds(),
        }  # fmt: skip
        write_json(folder / "audit.json", record)
    return record


def _judges(config: FitConfig, seen: FrozenPass | None) -> str | None:
    if config.is_multi_label:
        return None
    return "TF-IDF + linear" + (f" and frozen {config.model}" if seen else "")


def examine(
    table: Usable,
    lengths: Lengths,
    judged: NDArray[np.int64],
    features: NDArray[np.floating[Any]] | None,
    *,
    leaked_rows: int | None,
    seed: int,
    folder: Path,
    observer: Observer,
    texts: bool = True,
) -> dict[str, Any]:
    """The block ``audit`` of N usable rows, and ``label_issues.xlsx`` in ``folder``.

    Labels are not judged where a text may have several.

    ``lengths`` are those of the table's texts in any order, ``judged`` (R,) the indices of the rows whose
    labels may be looked at (all but test rows), ``features`` (R, H) the frozen model's of those, None where
    it was not run. With ``texts=False`` the block holds no word of a text; the spreadsheet needs them.
    """
    observer.phase("audit")
    found = audit_table(table, lengths.whole, lengths.truncation, leaked_rows=leaked_rows, seed=seed)
    if table.y.ndim == 2:  # what follows is for one label a text
        for sentence in sentences(found):
            observer.say(sentence)
        return found | {"label_issues": None, "learning_curve": None}
    y, groups, K = table.y[judged], table.groups[judged], len(table.labels.names)
    words = TfidfBaseline().fit_features([table.texts[i] for i in judged.tolist()], K)
    quality = judge_labels(y, groups, K, words=words, features=features, seed=seed)
    found["label_issues"] = _write_issues(table, judged, quality, folder / ISSUES_FILE)
    curve = learning_curve(words, y, groups, K, seed=seed)
    found["learning_curve"] = curve and curve.as_dict(table.labels.names)
    if not texts:
        found = without_texts(found)
    for sentence in sentences(found):
        observer.say(sentence)
    return found


@dataclass(frozen=True)
class Lengths:
    """Tokens of N texts before the cut (N,), and what is cut."""

    whole: NDArray[np.int64]
    truncation: Truncation

    @classmethod
    def of(cls, tokens: Tokens) -> Lengths:
        """Those of tokenized texts."""
        assert tokens.whole is not None
        return cls(tokens.whole, tokens.truncation)

    @classmethod
    def of_parts(cls, tokens: Sequence[Tokens]) -> Lengths:
        """Those of a table that was split into parts; their order is that of the parts."""
        parts = [cls.of(one) for one in tokens]
        cuts = [part.truncation for part in parts]
        counts = (
            sum(getattr(cut, key) for cut in cuts) for key in ("rows", "rows_cut", "tokens", "tokens_cut")
        )
        return cls(np.concatenate([part.whole for part in parts]), Truncation(cuts[0].max_length, *counts))


def _read_by_model(
    config: FitConfig, table: Usable, clock: PhaseClock, *, asked: bool
) -> tuple[Lengths, FrozenPass | None]:
    """Lengths and what a fit would cut, and what the frozen model says of what is left: as in a fit."""
    device = pick_device()
    dtype = compute_dtype(config, device)
    backbone = load_for_fit(config, table.labels, dtype=dtype, device=device)
    # What would be cut, where only a fit could choose.
    way = "truncate" if config.long_texts == "auto" else config.long_texts
    tokens = tokenize(table.texts, backbone.tokenizer, backbone.max_length, way)
    lengths = Lengths.of(tokens)
    clock.say(tokens.sentence())
    if not asked:
        return lengths, None
    clock.phase("probe", tokens.rows)
    model = backbone.model.to(device)
    found = frozen_pass(
        model, find_head(model), [tokens], pad_token_id=int(backbone.tokenizer.pad_token_id), device=device,
        dtype=dtype, on_rows=clock.advance,
    )  # fmt: skip
    if found.rows_from_cache:
        clock.say(found.sentence())
    return lengths, replace(found, features=tokens.pooled(found.features))


def _write_issues(
    table: Usable, judged: NDArray[np.int64], quality: LabelQuality, path: Path
) -> dict[str, Any]:
    suspects = quality.suspects()
    names = table.labels.names
    issues = [
        Issue(row, table.texts[i], names[table.y[i]], names[quality.suggested[k]], float(quality.quality[k]))
        for k, i, row in zip(
            suspects[:ISSUES_LISTED].tolist(),
            judged[suspects[:ISSUES_LISTED]].tolist(),
            table.file_rows(judged[suspects[:ISSUES_LISTED]]),
            strict=True,
        )
    ]
    write_issues(issues, names, path)
    return {
        "suspected_rows": len(suspects),
        "share": len(suspects) / len(judged),
        "file": path.name,
        "top": [
            {"row": one.row, "text": shortened(one.text), "given": one.given, "suggested": one.suggested,
             "quality": one.quality}
            for one in issues[:ISSUES_TOLD]
        ],
    }  # fmt: skip


def _columns(table: Usable) -> dict[str, Any]:
    label = table.columns.label
    return {"text": list(table.columns.text), "label": list(label) if isinstance(label, tuple) else label}
