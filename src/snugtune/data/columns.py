"""Which columns hold the text and the label: as named, or found where only one answer is possible."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import polars as pl

from snugtune.errors import UserInputError

# The narrative of the CFPB consumer complaint database, in the CSV export and in the search API:
# https://cfpb.github.io/api/ccdb/fields.html
_CFPB_TEXT = frozenset({"consumer complaint narrative", "complaint what happened"})
_TEXT_NAMES = frozenset(
    {"text", "texts", "narrative", "sentence", "message", "body", "description", "content", "comment"}
    | {"review", "complaint", "document", "utterance", "query", "question"}
)
# Not "tag": a CFPB export has a column "Tags", which is nobody's target.
_LABEL_NAMES = frozenset(["label", "labels", "category", "class", "target", "intent", "topic", "sentiment"])
_BY_FAR = 2.0  # the text column is at least this many times as long as the next
_MOST_CLASSES = 1_000  # a column with more distinct values has to be named
_LISTED = 40  # columns named in an error


@dataclass(frozen=True)
class Columns:
    """The columns a model reads (``text``, in order) and learns (``label``; None where none is needed)."""

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
    """The columns named by the user, and those left out where they are unambiguous.

    The text column is found by a known name, else as the string column with by far the longest cells; the
    label by a known name, else as the single other string column whose values repeat.

    Raises:
        UserInputError: a named column is missing, or what was left out has no or several candidates.
    """
    named = [*dict.fromkeys(text or ()), *([label] if label is not None else [])]
    for name in named:
        _check_exists(name, frame, source)
    if text and label in text:
        raise UserInputError(f"Column {label!r} of {source} is both text and label; name another --label.")
    texts = tuple(dict.fromkeys(text)) if text else (_find_text(frame, source, label),)
    if label is None and need_label:
        label = _find_label(frame, source, texts)
    return Columns(texts, label)


def join_texts(frame: pl.DataFrame, text: Sequence[str]) -> list[str]:
    """One text per row: the cell of one column, or "Name: value" lines of several without the empty ones."""
    columns = [_as_strings(frame, name) for name in text]
    if len(columns) == 1:
        return columns[0]
    return [
        "\n".join(f"{name}: {value}" for name, value in zip(text, row, strict=True) if value.strip())
        for row in zip(*columns, strict=True)
    ]


def _as_strings(frame: pl.DataFrame, name: str) -> list[str]:
    return frame[name].cast(pl.String).fill_null("").to_list()


def _check_exists(name: str, frame: pl.DataFrame, source: str) -> None:
    if name not in frame.columns:
        close = _closest(name, frame.columns)
        meant = f"; did you mean {close!r}?" if close else "."
        raise UserInputError(f"{source} has no column {name!r}{meant} It has {_listing(frame.columns)}.")
    if frame.schema[name].is_nested():
        raise UserInputError(f"Column {name!r} of {source} holds lists or structures, not plain values.")


def _closest(name: str, names: Sequence[str]) -> str | None:
    # The last of two names that differ by case only stands for both.
    folded = {_plain(candidate): candidate for candidate in names}
    found = difflib.get_close_matches(_plain(name), folded, n=1)
    return folded[found[0]] if found else None


def _find_text(frame: pl.DataFrame, source: str, label: str | None) -> str:
    taken = label or _only(_strings(frame), _LABEL_NAMES)
    strings = [name for name in _strings(frame) if name != taken]
    if not strings:
        raise UserInputError(f"{source} has no column of texts; it has {_listing(frame.columns)}.")
    known = _only(strings, _CFPB_TEXT) or _only(strings, _TEXT_NAMES)
    if known is not None:
        return known
    lengths = {name: _mean_length(frame[name]) for name in strings}
    first, *others = sorted(strings, key=lambda name: -lengths[name])
    if lengths[first] == 0 or (others and lengths[first] < _BY_FAR * lengths[others[0]]):
        raise UserInputError(
            f"Which column of {source} holds the text is not clear; name it with --text: {_listing(strings)}."
        )
    return first


def _find_label(frame: pl.DataFrame, source: str, texts: Sequence[str]) -> str:
    flat = [n for n in frame.columns if n not in texts and not frame.schema[n].is_nested()]
    known = _only(flat, _LABEL_NAMES)
    if known is not None:
        return known
    candidates = [name for name in _strings(frame) if name not in texts and _repeats(frame[name])]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise UserInputError(
            f"{source} has several columns that could be the label; name one with --label: "
            f"{_listing(candidates)}."
        )
    raise UserInputError(
        f"{source} has no column that looks like a label; name one with --label: {_listing(frame.columns)}."
    )


def _repeats(column: pl.Series) -> bool:
    """Whether the values look like classes: two or more, each on two rows or more on average."""
    filled = column.drop_nulls()
    filled = filled.filter(filled.str.strip_chars() != "")
    return 2 <= filled.n_unique() <= min(_MOST_CLASSES, filled.len() / 2)


def _mean_length(column: pl.Series) -> float:
    """Mean number of characters of the filled cells; a narrative given on few rows is still a narrative."""
    mean = column.drop_nulls().str.len_chars().mean()
    return float(mean) if isinstance(mean, (int, float)) else 0.0


def _strings(frame: pl.DataFrame) -> list[str]:
    return [name for name, dtype in frame.schema.items() if dtype == pl.String]


def _only(names: Iterable[str], known: frozenset[str]) -> str | None:
    matches = [name for name in names if _plain(name) in known]
    return matches[0] if len(matches) == 1 else None


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _listing(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_LISTED]))
    return shown if len(names) <= _LISTED else f"{shown} and {len(names) - _LISTED} more"
