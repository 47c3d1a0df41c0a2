"""Decisions of people who reviewed predictions, read from the file that the review page writes.

The file is a SQLite database (``serve/web/reviews.py`` writes it). Decisions are only ever appended; which of
them stand is told here: those that were not undone, of these the latest for each text, unless it is a skip.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from snugtune.data.duplicates import near_duplicate_groups
from snugtune.data.labels import LabelSet
from snugtune.data.part import Part
from snugtune.errors import UserInputError

APPLICATION_ID = 0x534E5547
"""SQLite's own mark of whose file it is (``PRAGMA application_id``): SNUG."""

FORMAT = 1
"""Of the tables (``PRAGMA user_version``); raised when what they hold changes its meaning."""

STANDING = """
SELECT max(id) AS id FROM decisions
WHERE kind != 'undo' AND id NOT IN (SELECT undoes FROM decisions WHERE undoes IS NOT NULL)
GROUP BY text_hash
"""
"""The decisions that stand, one for each text: its latest that was not undone."""


@dataclass(frozen=True)
class Reviewed:
    """A text and the labels a person gave it, one where texts have one each."""

    text: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Additions:
    """What a file of reviews did to the training rows.

    Of ``decisions`` that stand: texts ``added``, training rows ``relabelled`` (their text was reviewed) and
    ``unchanged`` (they had that label), texts ``like_held_out`` ones (left out) and ``of_unknown_labels``
    (left out: cleaning dropped their labels from the table).
    """

    file: str
    decisions: int
    added: int = 0
    relabelled: int = 0
    unchanged: int = 0
    like_held_out: int = 0
    of_unknown_labels: int = 0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def sentence(self) -> str:
        """One line for the person at the keyboard."""
        said = f"{self.added:,} reviewed texts added to the training rows from {self.file}"
        if self.relabelled:
            said += f", {self.relabelled:,} training rows relabelled"
        if self.unchanged:
            said += f"; {self.unchanged:,} had the reviewed label already"
        if self.like_held_out:
            said += f"; {self.like_held_out:,} are like validation or test rows and left out"
        if self.of_unknown_labels:
            said += f"; {self.of_unknown_labels:,} carry labels that cleaning dropped and are left out"
        return f"{said}."


def read_reviews(path: str | Path) -> list[Reviewed]:
    """The decisions of the file ``path`` that stand, in the order in which they were taken.

    Raises:
        UserInputError: it is no file of reviews, or of a later version.
    """
    query = (
        "SELECT items.text, decisions.labels FROM decisions JOIN items USING (text_hash) "
        f"WHERE decisions.id IN ({STANDING}) AND decisions.kind IN ('accept', 'change') ORDER BY decisions.id"
    )
    check_reviews(path)
    try:
        with closing(_open(path)) as database:
            return [Reviewed(text, tuple(json.loads(labels))) for text, labels in database.execute(query)]
    except (sqlite3.Error, ValueError, TypeError) as error:
        raise UserInputError(
            f"The reviews in {path} cannot be read ({error}); take a copy of them."
        ) from None


def check_reviews(path: str | Path) -> None:
    """Refuse what is no file of reviews.

    Raises:
        UserInputError: it is missing, no such file, or of a later version.
    """
    remedy = "name the file that the review page of snugtune app wrote"
    if not Path(path).is_file():
        raise UserInputError(f"There is no file {path} of reviews; {remedy}.")
    try:
        with closing(_open(path)) as database:
            (mark,), (version,) = (
                database.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
            )
    except sqlite3.Error:
        raise UserInputError(f"{path} is no file of reviews; {remedy}.") from None
    if mark != APPLICATION_ID:
        raise UserInputError(f"{path} is a database, but none of reviews; {remedy}.")
    if version > FORMAT:
        raise UserInputError(f"{path} was written by a later version of snugtune; use that one.")


def _open(path: str | Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(Path(path).resolve()))}?mode=ro", uri=True, timeout=10)


def add_reviews(
    path: str,
    reviewed: Sequence[Reviewed],
    parts: dict[str, Part],
    labels: LabelSet,
    *,
    may_lack_labels: bool = False,
) -> tuple[Part, Additions]:
    """The training part with what was ``reviewed`` (each text once), as the file ``path`` says, and a count.

    A text that is a training row's gives that row its label, any other becomes a row more. No text that is a
    near-duplicate of a validation or test row is taken: the model would be asked what it was told.
    ``may_lack_labels`` says that cleaning may have dropped labels of the table.

    Raises:
        UserInputError: a label is none of ``labels``; a text has several where it may have one.
    """
    found = Additions(path, len(reviewed))
    usable = unlike(
        reviewed, [text for name, part in parts.items() if name != "train" for text in part.texts]
    )
    known, unknown = _known(path, usable, labels, may_lack_labels)
    found = replace(found, of_unknown_labels=unknown, like_held_out=len(reviewed) - len(usable))
    return _merged(parts["train"], known, labels, found)


def last_word(reviewed: Iterable[Reviewed]) -> list[Reviewed]:
    """What was said last of each text; blanks around it make no other text."""
    said = {one.text.strip(): one for one in reviewed}
    return [replace(one, text=text) for text, one in said.items()]


def _known(
    path: str, reviewed: Sequence[Reviewed], labels: LabelSet, may_lack_labels: bool
) -> tuple[list[Reviewed], int]:
    """Reviews whose labels are all in ``labels``, and how many are not."""
    kept = []
    for one in reviewed:
        if labels.separator is None and len(one.labels) != 1:
            raise UserInputError(
                f"The reviews in {path} give a text {len(one.labels)} labels and here each text has one; "
                f"name "
                "the reviews of a run like this one."
            )
        unseen = list(labels.unseen(one.labels))
        if unseen and not may_lack_labels:
            raise UserInputError(
                f"The reviews in {path} give the label {unseen[0]!r}, which the training table does not "
                f"have; "
                "name the reviews of a run on this table."
            )
        if not unseen:
            kept.append(one)
    return kept, len(reviewed) - len(kept)


def unlike(reviewed: Sequence[Reviewed], held_out: Sequence[str]) -> list[Reviewed]:
    """Those whose text is no near-duplicate of a ``held_out`` one: the others are not trained on."""
    groups = near_duplicate_groups([*held_out, *(one.text for one in reviewed)])
    taken = np.isin(groups[len(held_out) :], groups[: len(held_out)])
    return [one for one, is_like in zip(reviewed, taken.tolist(), strict=True) if not is_like]


def _merged(
    train: Part, reviewed: Sequence[Reviewed], labels: LabelSet, found: Additions
) -> tuple[Part, Additions]:
    y, texts = train.y.copy(), list(train.texts)
    of_text: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        of_text.setdefault(text, []).append(i)
    new, relabelled, unchanged = [], 0, 0
    ids = _encoded(reviewed, labels)
    for one, label in zip(reviewed, ids, strict=True):
        rows = of_text.get(one.text.strip(), [])
        same = [bool(np.array_equal(y[i], label)) for i in rows]
        relabelled, unchanged = relabelled + same.count(False), unchanged + same.count(True)
        y[rows] = label
        if not rows:
            new.append((one.text.strip(), label))
    more = len(new)
    part = Part(
        np.concatenate([train.rows, np.full(more, -1, dtype=np.int64)]),
        texts + [text for text, _ in new],
        np.concatenate([y, np.array([label for _, label in new], dtype=y.dtype).reshape(more, *y.shape[1:])]),
        {name: [*cells, *[""] * more] for name, cells in train.levels.items()},
        more,
    )
    return part, replace(found, added=more, relabelled=relabelled, unchanged=unchanged)


def _encoded(reviewed: Sequence[Reviewed], labels: LabelSet) -> NDArray[Any]:
    """Class ids (N,), or sets of them (N, K), as in `Part`."""
    if labels.separator is None:
        return labels.encode([one.labels[0] for one in reviewed])
    return labels.encode_sets([one.labels for one in reviewed])
