"""Labels from keyword rules: a table in, the same table with weak labels out, and the worth of each rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from snugtune.config import FitConfig
from snugtune.data.cells import label_cells
from snugtune.data.columns import choose_columns, join_texts
from snugtune.data.labels import LabelSet
from snugtune.data.rules import Rule, read_rules, votes
from snugtune.data.table import Table, read_table
from snugtune.errors import UserInputError
from snugtune.evaluate.label_model import Combine, Combined, combine
from snugtune.predict.write import check_fits, check_output, write_frame

ADDED_COLUMNS = WEAK_LABEL, PROBABILITY, RULES = (
    "weak_label", "weak_label_probability", "weak_label_rules",
)  # fmt: skip
"""Blank, empty and blank where the rules say nothing, or not enough."""

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class RuleReport:
    """What a rule did: ``texts`` it spoke on, of these ``conflicts`` with a rule of another label.

    ``accuracy`` is how often it is likely right, as the other rules (and known labels) say; None if it never
    speaks. Of its texts ``known`` have a label already, ``agree`` of them the rule's.
    """

    rule: str
    label: str
    texts: int
    conflicts: int
    accuracy: float | None
    known: int
    agree: int


def weak_label(
    source: str,
    rules: str | Path,
    out: str | Path,
    config: FitConfig,
    *,
    how: Combine = "accuracy",
    min_probability: float = 0.5,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Label the texts of the table ``source`` by the file of ``rules`` and write it, with three columns more.

    Where ``config.label`` names a column, its labels are compared with those of the rules and tell how often
    each rule is right; no cell of it is changed. Returns counts, JSON-ready.

    Raises:
        UserInputError: the table, the rules or ``out`` cannot be used, or no rule matches any text.
    """
    check_output(out, overwrite=overwrite)
    if how not in get_args(Combine):
        raise UserInputError(f"Rules are combined by {' or '.join(get_args(Combine))}, not {how!r}.")
    if not 0.0 <= min_probability <= 1.0:
        raise UserInputError(f"The least probability must lie in 0..1, not {min_probability}.")
    read_from = read_rules(rules)
    read = read_table(source, sheet=config.sheet, encoding=config.encoding, delimiter=config.delimiter)
    label = config.label if isinstance(config.label, str) else None
    columns = choose_columns(
        read.frame, source=read.source, text=config.text, label=label, need_label=label is not None
    )
    texts = join_texts(read.frame, columns.text, source=read.source, row_of=read.row_of)
    given = _given(read, label)
    # A known label that no rule gives says of each rule that speaks there that it is wrong.
    names = tuple(sorted({rule.label for rule in read_from} | {cell for cell in given if cell}))
    said = votes(read_from, texts, names)
    if (said < 0).all():
        raise UserInputError(f"No rule of {rules} matches a text of {read.source}; check words and columns.")
    known = LabelSet(names).encode(given)
    combined = combine(said, len(names), how, known if label else None)
    weak = combined.labels(min_probability)
    frame = read.frame.drop(ADDED_COLUMNS, strict=False)
    frame = frame.hstack(_columns(read_from, said, combined, weak, names))
    check_fits(frame, out)
    write_frame(frame, out)
    return _record(read_from, said, combined, weak, known, given, names) | {
        "source": read.source, "file": str(out), "how": how, "min_probability": min_probability,
        "text": list(columns.text), "label": label,
    }  # fmt: skip


def _given(read: Table, label: str | None) -> list[str]:
    if label is None:
        return [""] * read.frame.height
    return label_cells(read.frame[label], source=read.source, row_of=read.row_of)


def _columns(
    rules: Sequence[Rule], said: Ids, combined: Combined, weak: Ids, names: Sequence[str]
) -> pl.DataFrame:
    fired = [[rules[r].name for r in np.flatnonzero(row >= 0).tolist()] for row in said]
    best = combined.probabilities.max(axis=1, initial=0.0)
    values = (
        [names[k] if k >= 0 else None for k in weak.tolist()],
        [float(p) if k >= 0 else None for p, k in zip(best, weak.tolist(), strict=True)],
        ["; ".join(of) or None for of in fired],
    )
    types = (pl.String, pl.Float64, pl.String)
    return pl.DataFrame(
        dict(zip(ADDED_COLUMNS, values, strict=True)), schema=dict(zip(ADDED_COLUMNS, types, strict=True))
    )


def _record(
    rules: Sequence[Rule], said: Ids, combined: Combined, weak: Ids, known: Ids, given: Sequence[str],
    names: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    low = np.where(said >= 0, said, len(names)).min(axis=1)
    disagree = (said >= 0).any(axis=1) & (said.max(axis=1) != low)
    has_label = np.array([bool(cell) for cell in given], dtype=bool)
    both = has_label & (weak >= 0)
    right = both & (weak == known)
    return {
        "rows": len(said),
        "labelled": int((weak >= 0).sum()),
        "spoken": int((said >= 0).any(axis=1).sum()),
        "conflicts": int(disagree.sum()),
        "classes": {
            name: int((weak == names.index(name)).sum()) for name in sorted({r.label for r in rules})
        },
        "compared": int(both.sum()),
        "agree": int(right.sum()),
        "rules": [
            asdict(_report(rule, said[:, r], disagree, combined.accuracy[r], known, has_label))
            for r, rule in enumerate(rules)
        ],
    }


def _report(
    rule: Rule, votes_of: Ids, disagree: NDArray[np.bool_], accuracy: float, known: Ids,
    has_label: NDArray[np.bool_],
) -> RuleReport:  # fmt: skip
    fires = votes_of >= 0
    return RuleReport(
        rule.name, rule.label, int(fires.sum()), int((fires & disagree).sum()),
        None if np.isnan(accuracy) else float(accuracy), int((fires & has_label).sum()),
        int((fires & has_label & (votes_of == known)).sum()),
    )  # fmt: skip
