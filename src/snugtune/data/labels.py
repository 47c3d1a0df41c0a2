"""Labels and rows as found in the wild: counted, reported, and treated by a stated default."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from snugtune.config import MULTI_LABEL, SINGLE_LABEL
from snugtune.errors import UserInputError


@dataclass(frozen=True)
class CleaningPolicy:
    """What is done with rows that are doubtful; blank labels and empty texts are always left out."""

    duplicates: Literal["keep", "drop"] = "drop"
    conflicts: Literal["keep", "drop"] = "keep"
    merge_label_variants: bool = True
    min_class_count: int = 1


@dataclass(frozen=True)
class CleaningReport:
    """Counts of everything found; ``merged_labels`` maps the kept spelling to the merged ones."""

    rows_in: int
    empty_texts: int
    blank_labels: int
    exact_duplicates: int
    conflicting_rows: int
    merged_labels: dict[str, list[str]]
    rare_classes: dict[str, int]
    dropped_rare_rows: int
    rows_kept: int
    classes: int
    policy: CleaningPolicy

    @property
    def aliases(self) -> dict[str, str]:
        """The kept spelling of each merged one."""
        return {other: kept for kept, others in self.merged_labels.items() for other in others}

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def sentences(self) -> list[str]:
        """What was found and done, one line each; nothing found says nothing."""
        merged = sum(len(others) for others in self.merged_labels.values())
        lines = [
            (self.empty_texts, "rows without a text left out"),
            (self.blank_labels, "rows without a label left out"),
            (self.exact_duplicates, f"exact duplicates: {self.policy.duplicates} (--duplicates)"),
            (
                self.conflicting_rows,
                f"rows share their text with another label: {self.policy.conflicts} (--conflicts)",
            ),
            (
                merged,
                "label spellings that differ only by case or spacing merged into the most frequent "
                "(--keep-label-variants)",
            ),
            (len(self.rare_classes), "classes have one or two examples (--min-class-count drops them)"),
            (
                self.dropped_rare_rows,
                f"rows of classes below {self.policy.min_class_count} examples left out",
            ),
        ]
        head = f"{self.rows_kept:,} of {self.rows_in:,} rows kept, {self.classes} classes."
        return [head, *(f"{count:,} {what}." for count, what in lines if count)]


@dataclass(frozen=True)
class CleanResult:
    """Kept rows: their indices in the input, texts and labels, and the report."""

    row: NDArray[np.int64]
    texts: list[str]
    labels: list[str]
    report: CleaningReport


@dataclass(frozen=True)
class LabelSet:
    """The classes of a model: ``names[i]`` is the user's text of class ``i``.

    ``aliases`` maps spellings that were merged in training to the name that was kept. ``separator`` parts the
    labels of a text that are written into one cell; None where each text has exactly one.
    """

    names: tuple[str, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    separator: str | None = None

    @property
    def problem_type(self) -> str:
        """Transformers' name for one label a text, or any number."""
        return SINGLE_LABEL if self.separator is None else MULTI_LABEL

    @cached_property
    def label2id(self) -> dict[str, int]:
        """Class id of each label text."""
        return {name: i for i, name in enumerate(self.names)}

    @cached_property
    def id2label(self) -> dict[int, str]:
        """Label text of each class id."""
        return dict(enumerate(self.names))

    def encode(self, labels: Sequence[str]) -> NDArray[np.int64]:
        """Class ids (N,); -1 marks a label that is not in the set."""
        return np.array([self._id(label) for label in labels], dtype=np.int64)

    def encode_sets(self, label_sets: Sequence[Sequence[str]]) -> NDArray[np.int8]:
        """1 where a label applies, else 0: (N, K). A row that has only labels outside the set is all -1."""
        y = np.zeros((len(label_sets), len(self.names)), dtype=np.int8)
        for i, labels in enumerate(label_sets):
            ids = [k for k in map(self._id, labels) if k >= 0]
            y[i, ids] = 1
            if labels and not ids:
                y[i] = -1
        return y

    def encode_given(self, given: Sequence[Any]) -> tuple[NDArray[Any], dict[str, int]]:
        """``y`` of labels, or of sets of them where there is a ``separator``; the unseen ones, counted."""
        if self.separator is None:
            return self.encode(given), self.unseen(given)
        return self.encode_sets(given), self.unseen([label for labels in given for label in labels])

    def decode_sets(self, y: NDArray[Any]) -> list[tuple[str, ...]]:
        """The labels of each row of ``y`` (N, K), in the order of ``names``."""
        return [tuple(self.names[k] for k in np.flatnonzero(row > 0).tolist()) for row in y]

    def unseen(self, labels: Sequence[str]) -> dict[str, int]:
        """How often each label outside the set occurs."""
        return dict(Counter(label for label in labels if self._id(label) < 0))

    @cached_property
    def _folded(self) -> dict[str, int]:
        """Class ids by what is left of a name without case and spaces, where that is one class's alone."""
        folded = [fold(name) for name in self.names]
        counts = Counter(folded)
        return {name: i for i, name in enumerate(folded) if counts[name] == 1}

    def _id(self, label: str) -> int:
        known = self.label2id.get(self.aliases.get(label, label))
        # A spelling that training did not have, as it would have been merged there.
        return self._folded.get(fold(label), -1) if known is None else known


def clean(
    texts: Sequence[str | None], labels: Sequence[str | None], policy: CleaningPolicy, *, source: str
) -> CleanResult:
    """Clean N rows as ``policy`` says.

    Raises:
        UserInputError: no text is left, all rows carry one class, or every row has a class of its own.
    """
    stripped = [(text or "").strip() for text in texts]
    shared: dict[str, str] = {}  # one string for each label, not one for each row
    given = [shared.setdefault(label, label) for label in ((label or "").strip() for label in labels)]
    filled = [i for i, text in enumerate(stripped) if text]
    rows = [i for i in filled if given[i]]
    merged = merge_variants(Counter(given[i] for i in rows)) if policy.merge_label_variants else {}
    spelling = {other: kept for kept, others in merged.items() for other in others}
    final = [spelling.get(label, label) for label in given]

    duplicates, conflicts = repeats(rows, stripped, final)
    left_out = set(duplicates if policy.duplicates == "drop" else ())
    left_out |= set(conflicts if policy.conflicts == "drop" else ())
    rows = [i for i in rows if i not in left_out]
    counts = Counter(final[i] for i in rows)
    kept = [i for i in rows if counts[final[i]] >= policy.min_class_count]
    report = CleaningReport(
        rows_in=len(stripped),
        empty_texts=len(stripped) - len(filled),
        blank_labels=sum(not given[i] for i in filled),
        exact_duplicates=len(duplicates),
        conflicting_rows=len(conflicts),
        merged_labels=merged,
        rare_classes={label: n for label, n in sorted(counts.items()) if n <= 2},
        dropped_rare_rows=len(rows) - len(kept),
        rows_kept=len(kept),
        classes=len({final[i] for i in kept}),
        policy=policy,
    )
    _check(report, source)
    return CleanResult(
        np.array(kept, dtype=np.int64), [stripped[i] for i in kept], [final[i] for i in kept], report
    )


def fold(label: str) -> str:
    """What spellings of one label have in common: all but case and spacing."""
    return " ".join(label.split()).casefold()


def merge_variants(counts: Counter[str]) -> dict[str, list[str]]:
    """The spellings to merge into each kept one: those that differ from it by case or spacing only."""
    variants: dict[str, list[str]] = defaultdict(list)
    for label in counts:  # in the order first seen
        variants[fold(label)].append(label)
    merged = {}
    for spellings in variants.values():
        kept = max(spellings, key=lambda label: counts[label])
        if len(spellings) > 1:
            merged[kept] = [label for label in spellings if label != kept]
    return merged


def merge_variants_of(labels: Sequence[str]) -> list[str]:
    """``labels`` with spellings that differ by case or spacing only replaced by the most frequent one."""
    merged = merge_variants(Counter(labels))
    kept = {other: name for name, others in merged.items() for other in others}
    return [kept.get(label, label) for label in labels]


def repeats(
    rows: Sequence[int], texts: Sequence[str], labels: Sequence[Hashable]
) -> tuple[list[int], list[int]]:
    """Rows that repeat an earlier one's text and label, and rows whose text occurs with another label, too.

    Most texts occur once, so the labels of a text become a set only with its second label.
    """
    first: dict[str, Hashable] = {}
    more: dict[str, set[Hashable]] = {}
    repeated = []
    for i in rows:
        text, label = texts[i], labels[i]
        if text not in first:
            first[text] = label
        elif label == first[text] or label in more.get(text, ()):
            repeated.append(i)
        else:
            more.setdefault(text, set()).add(label)
    return repeated, [i for i in rows if texts[i] in more]


def _check(report: CleaningReport, source: str) -> None:
    if report.rows_in == report.empty_texts + report.blank_labels:
        raise UserInputError(f"{source} has no row with both a text and a label; check --text and --label.")
    if report.classes < 2 and (remedies := _remedies(report)):
        left = "one class" if report.classes else "no row"
        raise UserInputError(
            f"Cleaning leaves {left} of {source} where a classifier needs two or more classes; {remedies}."
        )
    if report.classes == 1:
        raise UserInputError(
            f"All rows of {source} carry the same label; a classifier needs two or more, so check --label."
        )
    if report.rows_kept < 2 * report.classes and len(report.rare_classes) == report.classes:
        raise UserInputError(
            f"{source} has {report.classes} classes for {report.rows_kept} rows, too few to learn from; "
            "the label column looks like an identifier or free text, so check --label."
        )


def _remedies(report: CleaningReport) -> str:
    """The options that would bring back classes which the policy, not the file, took away."""
    taken = [
        (report.dropped_rare_rows, "lower --min-class-count"),
        (report.policy.conflicts == "drop" and report.conflicting_rows, "use --conflicts keep"),
        (report.merged_labels, "use --keep-label-variants"),
    ]
    return " or ".join(remedy for happened, remedy in taken if happened)
