"""Do new texts look like the ones a run was trained and measured on? No labels needed.

A run keeps a reference: counts of rows by length, by share of unknown words, by confidence and by predicted
label. A table is counted in the same bins, and the two are compared by the population stability index
``PSI = sum((p - q) ln(p / q))``. Its customary limits are .1 (some change) and .25 (large change) (Siddiqi
2006, Credit Risk Scorecards, ch. 9). Few rows alone can pass them: without any change ``PSI / (1/n + 1/m)``
of n and m rows in B bins is about chi-squared with B - 1 degrees of freedom (Yurdakul & Naranjo 2020, Journal
of Risk Model Validation 14(4)), so a change counts only if that is unlikely, too.
"""

from __future__ import annotations

import base64
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

FORMAT = 1
SOME_CHANGE, LARGE_CHANGE = 0.1, 0.25
SIGNIFICANCE = 0.01
"""Of each of the four comparisons."""

MIN_ROWS = 30
"""Rows of a table below which nothing is compared."""

_BINS = 10
_LEAST_EXPECTED = 5  # rows of the reference in a bin: chi-squared's customary condition
_WORD = re.compile(r"[^\W\d_]+")  # numbers are new in every text and say nothing
_BITS_PER_WORD = 16  # of which each word sets two: 1.4 % of unknown words pass for known ones
_MAX_BITS = 2**21  # 350 kB as text in reference.json
_MAX_ASKED = 500_000  # answers kept, as most words come up again: some 50 MB
_MIN_WORD_ROWS = 2  # a word of a single text is no part of the vocabulary

Floats = NDArray[np.floating[Any]]


def reference(
    train_texts: Sequence[str],
    held_out_texts: Sequence[str],
    confidence: Floats,
    predicted: Sequence[str],
) -> dict[str, Any]:
    """What a run remembers of its texts, JSON-ready: counts of rows in bins, and no text or word.

    The vocabulary is that of ``train_texts``, as a Bloom filter (Bloom 1970). All counts are of
    ``held_out_texts``, of which ``confidence (N,)`` and ``predicted (N,)`` are what the run said: on its own
    training texts no word is unknown and every confidence too high.
    """
    vocabulary = Vocabulary.of(train_texts)
    lengths, unknown = _measure(held_out_texts, vocabulary)
    mix = Counter(predicted)
    return {
        "format": FORMAT,
        "vocabulary": vocabulary.as_dict(),
        "length": _histogram(lengths),
        "unknown_words": _histogram(unknown),
        "confidence": _histogram(np.asarray(confidence, np.float64)),
        "predicted": dict(mix.most_common()),
    }


@dataclass(frozen=True)
class Vocabulary:
    """Words that occur in at least two training texts, as a Bloom filter of ``len(bits)`` bits."""

    bits: NDArray[np.bool_]
    words: int
    _asked: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, texts: Iterable[str]) -> Vocabulary:
        """The vocabulary of ``texts``."""
        rows = Counter(word for text in texts for word in set(_words(text)))
        known = [word for word, count in rows.items() if count >= _MIN_WORD_ROWS]
        wanted = _BITS_PER_WORD * max(len(known), 64)
        bits = np.zeros(min(_MAX_BITS, 2 ** math.ceil(math.log2(wanted))), bool)
        for word in known:
            bits[_places(word, len(bits))] = True
        return cls(bits, len(known))

    def unknown_share(self, text: str) -> float:
        """Share of the words of ``text`` that the vocabulary lacks; 0 for a text without words."""
        words = _words(text)
        return sum(word not in self for word in words) / len(words) if words else 0.0

    def __contains__(self, word: str) -> bool:
        known = self._asked.get(word)
        if known is None:
            known = bool(self.bits[_places(word, len(self.bits))].all())
            if len(self._asked) < _MAX_ASKED:
                self._asked[word] = known
        return known

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; the bits are packed, deflated and in base64."""
        packed = zlib.compress(np.packbits(self.bits).tobytes(), 9)
        return {
            "words": self.words,
            "bits": len(self.bits),
            "filter": base64.b64encode(packed).decode("ascii"),
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Vocabulary:
        """The vocabulary that `as_dict` described."""
        packed = np.frombuffer(zlib.decompress(base64.b64decode(fields["filter"])), np.uint8)
        return cls(np.unpackbits(packed, count=fields["bits"]).astype(bool), fields["words"])


@dataclass
class DriftTally:
    """Counts new texts in the bins of a ``reference``, batch by batch.

    Raises:
        ValueError: the reference is of another format.
    """

    reference: dict[str, Any]
    rows: int = 0
    counts: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    predicted: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        if self.reference["format"] != FORMAT:
            raise ValueError(f"The reference is of format {self.reference['format']}, not {FORMAT}.")
        self._vocabulary = Vocabulary.from_dict(self.reference["vocabulary"])
        for name in _MEASURES:
            self.counts[name] = np.zeros(len(self.reference[name]["counts"]), np.int64)
            self.sums[name] = 0.0

    def add(self, texts: Sequence[str], confidence: Floats, predicted: Sequence[str]) -> None:
        """Count ``N`` texts with what the run said of them."""
        lengths, unknown = _measure(texts, self._vocabulary)
        self.rows += len(texts)
        self.predicted.update(predicted)
        for name, values in zip(_MEASURES, (lengths, unknown, confidence), strict=True):
            edges = np.array(self.reference[name]["edges"])
            self.counts[name] += _counts(values, edges)
            self.sums[name] += float(np.sum(values))

    def result(self) -> dict[str, Any]:
        """Each comparison and the warnings, JSON-ready; no comparison for fewer than 30 rows."""
        if self.rows < MIN_ROWS:
            return {
                "rows": self.rows,
                "checks": [],
                "warnings": [],
                "note": f"{self.rows:,} rows are too few to compare; {MIN_ROWS} are needed.",
            }
        checks = [self._check(name) for name in _MEASURES] + [self._check_mix()]
        warnings = [check["sentence"] for check in checks if check["level"] != "none"]
        return {"rows": self.rows, "checks": checks, "warnings": warnings, "note": None}

    def _check(self, name: str) -> dict[str, Any]:
        known = self.reference[name]
        found = _compared(np.array(known["counts"]), self.counts[name])
        before, now = known["mean"], self.sums[name] / self.rows
        told = f"{_MEASURES[name].format(_shown(name, before), _shown(name, now))} (PSI {found['psi']:.2f})."
        return {"name": name, **found, "reference_mean": before, "mean": now, "sentence": told}

    def _check_mix(self) -> dict[str, Any]:
        before = Counter(self.reference["predicted"])
        names = sorted(before | self.predicted)
        expected, counted = (
            np.array([counter[name] for name in names], np.int64) for counter in (before, self.predicted)
        )
        found = _compared(*_merged_rare(expected, counted))
        shift = counted / max(counted.sum(), 1) - expected / max(expected.sum(), 1)
        most = np.argsort(-np.abs(shift), kind="stable")[:3]
        changes = [
            {
                "label": names[i],
                "reference_share": float(expected[i] / max(expected.sum(), 1)),
                "share": float(counted[i] / max(counted.sum(), 1)),
            }
            for i in most.tolist()
        ]
        told = ", ".join(
            "{!r} from {:.1f} % to {:.1f} %".format(
                change["label"], 100 * change["reference_share"], 100 * change["share"]
            )
            for change in changes
        )
        sentence = f"The mix of predicted labels has changed, most of all {told} (PSI {found['psi']:.2f})."
        return {"name": "predicted", **found, "changes": changes, "sentence": sentence}


_MEASURES = {
    "length": "Texts have {1} words on average, where the held-out texts had {0}",
    "unknown_words": "{1} of the words are unknown to training, where it was {0}",
    "confidence": "The mean confidence is {1}, where it was {0} on held-out texts",
}


def psi(expected: NDArray[np.int64], counted: NDArray[np.int64]) -> float:
    """Population stability index of two vectors of counts ``(B,)``; half a row is added to each bin."""
    p, q = ((counts + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (expected, counted))
    return float(((q - p) * np.log(q / p)).sum())


def _compared(expected: NDArray[np.int64], counted: NDArray[np.int64]) -> dict[str, Any]:
    """PSI, its p-value and the level of change: none, some or large."""
    value = psi(expected, counted)
    n, m = int(expected.sum()), int(counted.sum())
    p_value = 1.0
    if n and m and len(expected) > 1:
        p_value = float(chi2.sf(value / (1 / n + 1 / m), len(expected) - 1))
    level = "none"
    if p_value < SIGNIFICANCE and value >= SOME_CHANGE:
        level = "large" if value >= LARGE_CHANGE else "some"
    return {"psi": value, "p_value": p_value, "level": level}


def _merged_rare(
    expected: NDArray[np.int64], counted: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The same counts, with the bins of fewer than five expected rows as one."""
    rare = expected < _LEAST_EXPECTED
    if rare.sum() < 2:
        return expected, counted
    merged = (np.append(counts[~rare], counts[rare].sum()) for counts in (expected, counted))
    first, second = merged
    return first, second


def _histogram(values: NDArray[np.float64]) -> dict[str, Any]:
    """Inner edges at the deciles of ``values (N,)`` (equal ones once), counts of rows, and the mean."""
    if not len(values):
        return {"edges": [], "counts": [0], "mean": 0.0}
    edges = np.unique(np.quantile(values, np.arange(1, _BINS) / _BINS))
    return {"edges": edges.tolist(), "counts": _counts(values, edges).tolist(), "mean": float(values.mean())}


def _counts(values: Floats, edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many values lie in each bin: up to and with the first edge, and so on."""
    return np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)


def _measure(texts: Sequence[str], vocabulary: Vocabulary) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Length in words and share of unknown words of each text: ``(N,)`` both."""
    lengths = np.array([len(text.split()) for text in texts], np.float64)
    return lengths, np.array([vocabulary.unknown_share(text) for text in texts], np.float64)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _places(word: str, bits: int) -> list[int]:
    """Where a word's bits are, the same in every process."""
    digest = blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return [int.from_bytes(digest[:4], "little") % bits, int.from_bytes(digest[4:], "little") % bits]


def _shown(name: str, value: float) -> str:
    return (
        f"{value:.0f}"
        if name == "length"
        else f"{100 * value:.1f} %"
        if name == "unknown_words"
        else f"{value:.2f}"
    )
