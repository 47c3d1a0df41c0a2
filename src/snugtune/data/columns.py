"""Which column holds the text and which the label: as named, or found when there is no doubt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import polars as pl

from snugtune.errors import UserInputError

TEXT_NAMES = (
    "consumer complaint narrative",  # the CFPB's CSV export
    "complaint_what_happened",  # the CFPB's search API
    "text",
    "texts",
    "sentence",
    "narrative",
    "message",
    "body",
    "description",
    "content",
    "review",
    "utterance",
)
LABEL_NAMES = ("label", "labels", "category", "class", "target", "intent", "label_text")


@dataclass(frozen=True)
class Columns:
    """The chosen columns; ``label`` is None where none was needed."""

    text: tuple[str, ...]
    label: str | None


def choose_columns(
    frame: pl.DataFrame,
    *,
    source: str,
    text: Sequence[str] | None,
    label: str | None,
    need_label: bool = True,
) -> Columns:
    """Check the named columns, and find those left out when only one can be meant.

    Raises:
        UserInputError: a named column does not exist, or several could be meant; lists them.
    """
    for name in (*(text or ()), *((label,) if label else ())):
        _require(frame, name, source)
    if label is None and need_label:
        label = _find_label(frame, source, text)
    chosen = tuple(text) if text else (_find_text(frame, source, label),)
    if label in chosen:
        raise UserInputError(
            f"Column '{label}' of {source} is named as both text and label; name two columns."
        )
    return Columns(chosen, label)


def join_texts(frame: pl.DataFrame, text: Sequence[str]) -> list[str]:
    """One text per row: a single column as it is, several as ``Name: value`` lines without the empty ones."""
    columns = [_as_strings(frame[name]) for name in text]
    if len(columns) == 1:
        return columns[0]
    return [
        "\n".join(f"{name}: {value}" for name, value in zip(text, row, strict=True) if value.strip())
        for row in zip(*columns, strict=True)
    ]


def _as_strings(series: pl.Series) -> list[str]:
    return ["" if value is None else str(value) for value in series.to_list()]


def _require(frame: pl.DataFrame, name: str, source: str) -> None:
    if name not in frame.columns:
        close = get_close_matches(name, frame.columns, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise UserInputError(
            f"{source} has no column '{name}'.{hint} Its columns are: {_listed(frame.columns)}."
        )


def _find_text(frame: pl.DataFrame, source: str, label: str | None) -> str:
    candidates = [name for name in _string_columns(frame) if name != label]
    known = [name for wanted in TEXT_NAMES for name in candidates if name.strip().casefold() == wanted]
    if known:
        return known[0]
    if len(candidates) == 1:
        return candidates[0]
    lengths = {name: frame[name].str.len_chars().mean() or 0.0 for name in candidates}
    ranked = sorted(candidates, key=lambda name: -float(lengths[name]))  # type: ignore[arg-type]
    # One column much longer than all others is the text.
    if ranked and float(lengths[ranked[0]]) > 3 * float(lengths[ranked[1]]) + 20:  # type: ignore[arg-type]
        return ranked[0]
    raise UserInputError(
        f"Which column of {source} holds the text? Name it with --text; candidates: {_listed(candidates)}."
    )


def _find_label(frame: pl.DataFrame, source: str, text: Sequence[str] | None) -> str:
    candidates = [name for name in frame.columns if name not in (text or ())]
    known = [name for name in candidates if name.strip().casefold() in LABEL_NAMES]
    if len(known) == 1:
        return known[0]
    if not known:
        body = set(text or [_find_text(frame, source, None)])
        candidates = [name for name in candidates if name not in body]
        likely = [name for name in candidates if 2 <= frame[name].n_unique() <= max(2, frame.height // 3)]
        if len(likely) == 1:
            return likely[0]
        candidates = likely or candidates
    raise UserInputError(
        f"Which column of {source} holds the label? Name it with --label; candidates: "
        f"{_listed(known or candidates)}."
    )


def _string_columns(frame: pl.DataFrame) -> list[str]:
    return [name for name, kind in frame.schema.items() if kind == pl.String]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
