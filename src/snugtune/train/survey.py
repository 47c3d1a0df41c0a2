"""A first look at a table for planning: how many labels, and how long the texts are in tokens."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snugtune.config import FitConfig
from snugtune.data.cells import label_cells
from snugtune.data.columns import Columns, choose_columns, join_texts
from snugtune.data.label_sets import LabelNames, read_label_sets
from snugtune.data.labels import merge_variants
from snugtune.data.long_texts import LongTexts
from snugtune.data.table import Table, read_table
from snugtune.data.tokens import tokenize
from snugtune.errors import UserInputError
from snugtune.model.backbone import DEFAULT_MAX_LENGTH, resolve
from snugtune.model.known import hub_options

CHARACTERS_PER_TOKEN = 4.0
"""For a model whose tokenizer is not at hand: English text in common vocabularies has 4 to 4.5."""

SPECIAL_TOKENS = 2


@dataclass(frozen=True)
class Survey:
    """Number of labels, and lengths (R,) in tokens of the rows that are read of labelled texts.

    Spellings of a label are counted as a fit would merge them. Lengths are exact if a tokenizer was there;
    without one they are estimated from characters (``CHARACTERS_PER_TOKEN``).
    """

    labels: int
    lengths: NDArray[np.int64]
    exact: bool


def survey(config: FitConfig) -> Survey:
    """Read the table of ``config`` and measure its texts; those of the held-out parts are counted too.

    Raises:
        UserInputError: the table or a column cannot be used, or no row has both a text and a label.
    """
    table = read_table(config.train, sheet=config.sheet, encoding=config.encoding, delimiter=config.delimiter)
    columns = choose_columns(
        table.frame, source=table.source, text=config.text, label=config.label, several=config.is_multi_label
    )
    pairs = [
        (text, labels)
        for text, labels in zip(
            join_texts(table.frame, columns.text, source=table.source, row_of=table.row_of),
            _given(table, columns, config),
            strict=True,
        )
        if labels is not None and text.strip()
    ]
    if not pairs:
        raise UserInputError(f"The table {config.train} has no row with both a text and a label; check it.")
    texts = [text for text, _ in pairs]
    tokenizer = _tokenizer(config)
    if tokenizer is None:
        rough = np.array([len(text) / CHARACTERS_PER_TOKEN for text in texts])
        lengths = np.ceil(rough).astype(np.int64) + SPECIAL_TOKENS
    else:
        limit = min(config.max_length or DEFAULT_MAX_LENGTH, tokenizer.model_max_length)
        lengths = tokenize(texts, tokenizer, limit, dearest(config)).lengths
    counts = Counter(label for _, labels in pairs for label in labels)
    merged = merge_variants(counts) if config.merge_label_variants else {}
    return Survey(len(counts) - sum(map(len, merged.values())), lengths, tokenizer is not None)


def _given(table: Table, columns: Columns, config: FitConfig) -> list[LabelNames | None]:
    """The labels of each row; None for a row that has no label to learn from."""
    if config.is_multi_label:
        return read_label_sets(
            table.frame, columns, config.label_separator, source=table.source, row_of=table.row_of
        )
    (name,) = columns.labels
    cells = label_cells(table.frame[name], source=table.source, row_of=table.row_of)
    return [(cell,) if cell else None for cell in cells]


def dearest(config: FitConfig) -> LongTexts:
    """How long texts are read, or would be if the evidence of ``auto`` chose what takes most."""
    return "windows" if config.long_texts == "auto" else config.long_texts


def _tokenizer(config: FitConfig) -> Any:
    from transformers import AutoTokenizer

    try:
        name = resolve(config.model)
        return AutoTokenizer.from_pretrained(
            name, revision=config.revision, trust_remote_code=False, **hub_options(name)
        )
    except (OSError, ValueError):
        return None
