"""Which columns hold the text and the label: as named, or found where only one answer is possible."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import polars as pl

from snugtune.data.cells import RowOf, cell_texts, check_plain, column_text, is_text, label_cells
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
    """The columns a model reads (``text``, in order) and learns (``label``; None where none is needed).

    ``label`` is a tuple where each label has a column of its own, which says whether it applies.
    """

    text: tuple[str, ...]
    label: str | tuple[str, ...] | None

    @property
    def labels(self) -> tuple[str, ...]:
        """The label columns, none, one or several."""
        return (self.label,) if isinstance(self.label, str) else self.label or ()


def choose_columns(
    frame: pl.DataFrame,
    *,
    source: str,
    text: Sequence[str] | None,
    label: str | Sequence[str] | None,
    need_label: bool = True,
    several: bool = False,
) -> Columns:
    """The columns named by the user, and those left out where they are unambiguous.

    The text column is found by a known name, else as the string column with by far the longest cells; the
    label by a known name, else as the single other string column whose values repeat. Where a text may carry
    ``several`` labels, ``label`` may name several columns, also in one string with commas between, and a
    column of lists.

    Raises:
        UserInputError: a named column is missing, or what was left out has no or several candidates.
    """
    labels = _named_labels(label, frame, source, several=several)
    for name in dict.fromkeys(text or ()):
        _check_exists(name, frame, source)
    for name in labels:
        _check_exists(name, frame, source, lists=several)
        if text and name in text:
            raise UserInputError(f"Column {name!r} of {source} is both text and label; name another --label.")
    texts = tuple(dict.fromkeys(text)) if text else (_find_text(frame, source, labels),)
    if not labels and need_label:
        labels = (_find_label(frame, source, texts, lists=several),)
    return Columns(texts, labels if len(labels) > 1 else next(iter(labels), None))


def _named_labels(
    label: str | Sequence[str] | None, frame: pl.DataFrame, source: str, *, several: bool
) -> tuple[str, ...]:
    """The label columns that ``label`` names; commas part them only where no column has that very name."""
    names: list[str] = []
    for given in [label] if isinstance(label, str) else label or ():
        parts = [part.strip() for part in given.split(",") if part.strip()]
        if given in frame.columns or len(parts) < 2:
            names.append(given)
        elif several:
            names.extend(parts)
        elif all(part in frame.columns for part in parts):
            raise UserInputError(
                f"--label {given} names {len(parts)} columns of {source}; name one, or add --multi-label if "
                "each is a label of its own that may apply to a text or not."
            )
        else:
            names.append(given)
    return tuple(dict.fromkeys(names))


def level_cells(frame: pl.DataFrame, columns: Sequence[str], *, source: str) -> dict[str, list[str]]:
    """The cells of the label's levels, stripped, blank where they are null.

    Raises:
        UserInputError: a column is missing, or its bytes are no text.
    """
    for name in columns:
        _check_exists(name, frame, source)
    return {name: label_cells(frame[name], source=source) for name in columns}


def join_texts(
    frame: pl.DataFrame, text: Sequence[str], *, source: str = "the table", row_of: RowOf | None = None
) -> list[str]:
    """One text per row: the cell of one column, or "Name: value" lines of several without the empty ones.

    ``source`` and ``row_of`` (see `snugtune.data.cells`) are for messages.

    Raises:
        UserInputError: the bytes of a column are no text.
    """
    columns = [cell_texts(frame[name], source=source, row_of=row_of) for name in text]
    if len(columns) == 1:
        return columns[0]
    return [join_cells(text, row) for row in zip(*columns, strict=True)]


def join_cells(names: Sequence[str], cells: Sequence[str]) -> str:
    """The text of a row whose text columns ``names`` hold ``cells``, as `join_texts` makes it."""
    if len(names) == 1:
        return cells[0]
    return "\n".join(f"{name}: {cell}" for name, cell in zip(names, cells, strict=True) if cell.strip())


def _check_exists(name: str, frame: pl.DataFrame, source: str, *, lists: bool = False) -> None:
    if name not in frame.columns:
        close = _closest(name, frame.columns)
        meant = f"; did you mean {close!r}?" if close else "."
        raise UserInputError(f"{source} has no column {name!r}{meant} It has {_listing(frame.columns)}.")
    dtype = frame.schema[name]
    if not (lists and dtype == pl.List):
        check_plain(name, dtype, source)


def _closest(name: str, names: Sequence[str]) -> str | None:
    # The last of two names that differ by case only stands for both.
    folded = {_plain(candidate): candidate for candidate in names}
    found = difflib.get_close_matches(_plain(name), folded, n=1)
    return folded[found[0]] if found else None


def _find_text(frame: pl.DataFrame, source: str, labels: Sequence[str]) -> str:
    taken = labels or (_only(_strings(frame), _LABEL_NAMES),)
    strings = [name for name in _strings(frame) if name not in taken]
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


def _find_label(frame: pl.DataFrame, source: str, texts: Sequence[str], *, lists: bool) -> str:
    usable = [
        name
        for name, dtype in frame.schema.items()
        if name not in texts and (not dtype.is_nested() or (lists and dtype == pl.List))
    ]
    known = _only(usable, _LABEL_NAMES)
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
    filled = column_text(column).drop_nulls()
    filled = filled.filter(filled.str.strip_chars() != "")
    return 2 <= filled.n_unique() <= min(_MOST_CLASSES, filled.len() / 2)


def _mean_length(column: pl.Series) -> float:
    """Mean number of characters of the filled cells; a narrative given on few rows is still a narrative."""
    mean = column_text(column).drop_nulls().str.len_chars().mean()
    return float(mean) if isinstance(mean, (int, float)) else 0.0


def _strings(frame: pl.DataFrame) -> list[str]:
    return [name for name in frame.columns if is_text(frame[name])]


def is_text_name(name: str) -> bool:
    """Whether a column of this name is usually the one of the texts."""
    return _plain(name) in _CFPB_TEXT | _TEXT_NAMES


def _only(names: Iterable[str], known: frozenset[str]) -> str | None:
    matches = [name for name in names if _plain(name) in known]
    return matches[0] if len(matches) == 1 else None


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _listing(names: Sequence[str]) -> str:
    shown = ", ".join(f"{name!r:.80}" for name in names[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown} and {len(names) - _LISTED} more"
