"""The sample workbook: invented consumer complaints with the faults that real tables have.

A seeded grammar (``sample_grammar.json``) writes the text. The words of an issue also occur in complaints
about its neighbours, denied or told as an old story, so a bag of words is often torn between two labels
while the sentence is not. Nothing in it is copied from a real data set; only the names of issues and
products follow the public taxonomy of the Consumer Financial Protection Bureau.
"""

from __future__ import annotations

import csv
import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from snugtune.errors import UserInputError
from snugtune.files import replacing

COLUMNS = ("Complaint ID", "Date received", "Product", "Issue", "Consumer complaint narrative", "State")
TAIL_COUNTS = (9, 8, 6, 5, 3, 2, 1)  # rows of the rarest issues, whatever the size of the table
MIN_ROWS = 500  # below this the commoner issues would be as rare as the tail
MAX_ROWS = 1_048_575  # an Excel sheet has 2**20 rows, one of them the header

DUPLICATES = 0.02
FAULTS = {"wrong label": 0.03, "blank label": 0.01, "empty text": 0.005, "label variant": 0.01}

CONTRAST = 0.8  # share of texts that mention a neighbouring issue which is not theirs
CONTRAST_BY_CLAIM = 0.75  # share of those that do so in that issue's own words
SECOND_CLAIM = 0.2
ASIDE = 0.3
LONG_TEXT = 0.05
SPANISH = 0.04
SYNONYM = 0.6  # share of the words with synonyms that are replaced by one
RARITY = 1.5  # the k-th claim of an issue is k**RARITY times as rare as the first

FIRST_DAY = date(2023, 1, 2)
DAYS = 730
FIRST_ID = 1_000_001


@dataclass(frozen=True)
class SampleRow:
    """One complaint; ``truth`` is the issue it was written for, ``fault`` what was done to it, or ''."""

    product: str
    issue: str
    text: str
    state: str
    truth: str
    fault: str = ""


@dataclass(frozen=True)
class SampleSummary:
    """What was written: rows in all, distinct issues, and how many rows carry each planted fault."""

    path: Path
    rows: int
    categories: int
    duplicates: int
    wrong_labels: int
    blank_labels: int
    empty_texts: int
    label_variants: int


def write_sample(path: str | Path, *, rows: int = 3600, seed: int = 0) -> SampleSummary:
    """Write the sample table to ``path``, an .xlsx workbook or a UTF-8 .csv; the same seed, the same bytes.

    Raises:
        UserInputError: the suffix is neither, ``rows`` is out of range, or the file cannot be written.
    """
    path = Path(path)
    writer = {".xlsx": _write_xlsx, ".csv": _write_csv}.get(path.suffix.lower())
    if writer is None:
        raise UserInputError(f"Cannot write a sample to {path}: name it with the ending .xlsx or .csv.")
    table = sample_rows(rows, seed)
    with replacing(path) as temporary:
        writer(temporary, table, _received(rows, seed))
    return _summary(path, table)


def sample_rows(rows: int = 3600, seed: int = 0) -> list[SampleRow]:
    """Make ``rows`` complaints in the order of the table.

    Raises:
        UserInputError: ``rows`` is below ``MIN_ROWS`` or above ``MAX_ROWS``.
    """
    if not MIN_ROWS <= rows <= MAX_ROWS:
        raise UserInputError(f"A sample has {MIN_ROWS:,} to {MAX_ROWS:,} rows, not {rows:,}; change --rows.")
    rng = random.Random(seed)
    duplicates = round(DUPLICATES * rows)
    table = _distinct_complaints(rng, _issues(rows - duplicates))
    rng.shuffle(table)
    untouched = _plant_faults(rng, table, rows)
    copies = [replace(table[place], fault="duplicate") for place in rng.sample(untouched, duplicates)]
    table += copies
    rng.shuffle(table)
    return table


def _issues(rows: int) -> list[str]:
    """One issue for each row: Zipf's law with exponent 1 over the head, fixed counts in the tail."""
    names: list[str] = _grammar()["popularity"]
    head = len(names) - len(TAIL_COUNTS)
    weights = [1 / rank for rank in range(1, head + 1)]
    free = rows - sum(TAIL_COUNTS) - head  # every issue of the head gets one row beforehand
    counts = [1 + int(free * weight / sum(weights)) for weight in weights]
    counts[0] += rows - sum(TAIL_COUNTS) - sum(counts)
    return [name for name, count in zip(names, (*counts, *TAIL_COUNTS), strict=True) for _ in range(count)]


def _distinct_complaints(rng: random.Random, issues: Sequence[str]) -> list[SampleRow]:
    """One complaint for each issue; a text that came before is drawn anew, so duplicates are planted ones."""
    table: dict[str, SampleRow] = {}
    for issue in issues:
        row = _complaint(rng, issue)
        while row.text in table:
            row = _complaint(rng, issue)
        table[row.text] = row
    return list(table.values())


def _complaint(rng: random.Random, issue: str) -> SampleRow:
    family = _family_of()[issue]
    spec = _grammar()["families"][family]
    state = rng.choice(_grammar()["states"])
    return SampleRow(rng.choice(spec["products"]), issue, _narrative(rng, issue, family), state, issue)


def _narrative(rng: random.Random, issue: str, family: str) -> str:
    """The claim, and around it what people also tell: old stories, other products, calls and waiting."""
    grammar = _grammar()
    opener = [rng.choice(grammar["families"][family]["openers"])] if rng.random() < 0.6 else []
    body = _claims(rng, issue) + _details(rng)
    if rng.random() < CONTRAST:
        body.append(_contrast(rng, issue, family))
    if rng.random() < ASIDE:
        body.append(_aside(rng, family))
    if rng.random() < SPANISH:
        body.append(rng.choice(grammar["spanish"]))
    rng.shuffle(body)
    closing = [rng.choice(grammar["closings"])] if rng.random() < 0.6 else []
    return _join(rng, [_expand(rng, sentence) for sentence in (*opener, *body, *closing)])


def _claims(rng: random.Random, issue: str) -> list[str]:
    """One claim, sometimes two; the later in the issue's list, the rarer."""
    claims: list[str] = _issue_specs()[issue]["claims"]
    wanted = 2 if rng.random() < SECOND_CLAIM else 1
    weights = [rank**-RARITY for rank in range(1, len(claims) + 1)]
    return list(dict.fromkeys(rng.choices(claims, weights, k=wanted)))


def _details(rng: random.Random) -> list[str]:
    wanted = rng.randint(8, 18) if rng.random() < LONG_TEXT else rng.randint(0, 3)
    return rng.sample(_grammar()["details"], wanted)


def _contrast(rng: random.Random, issue: str, family: str) -> str:
    """A sentence with the words of a neighbouring issue that says it is not this complaint's."""
    neighbours = [spec for spec in _grammar()["families"][family]["issues"] if spec["label"] != issue]
    other = rng.choice(neighbours)
    if rng.random() < CONTRAST_BY_CLAIM:
        frame: str = rng.choice(_grammar()["contrast_claims"])
        return frame.replace("{claim}", _claims(rng, other["label"])[0])
    frame = rng.choice(_grammar()["contrast_topics"])
    return frame.replace("{topic}", rng.choice(other["topics"]))


def _aside(rng: random.Random, family: str) -> str:
    """A sentence about another kind of product."""
    others = [spec for name, spec in _grammar()["families"].items() if name != family]
    sentence: str = rng.choice(rng.choice(others)["asides"])
    return sentence


def _expand(rng: random.Random, sentence: str) -> str:
    """Fill ``{slots}`` and pick from ``[a|b]`` until none is left; slots may hold slots."""
    slots = _grammar()["slots"]
    while "{" in sentence:
        sentence = re.sub(r"\{(\w+)\}", lambda found: rng.choice(slots[found[1]]), sentence)
    sentence = re.sub(r"\[([^\[\]]+)\]", lambda found: rng.choice(found[1].split("|")), sentence)
    sentence = _synonym_pattern().sub(lambda found: _in_other_words(rng, found[0]), sentence)
    return sentence[0].upper() + sentence[1:]


def _in_other_words(rng: random.Random, words: str) -> str:
    if rng.random() >= SYNONYM:
        return words
    choice: str = rng.choice(_grammar()["synonyms"][words])
    return choice


def _join(rng: random.Random, sentences: Sequence[str]) -> str:
    """Most people write one block, a third press Enter between some of their sentences."""
    if rng.random() < 0.65:
        return " ".join(sentences)
    gaps = [rng.choice((" ", "\n", "\n\n")) for _ in sentences[1:]]
    return "".join(part for pair in zip(sentences, (*gaps, ""), strict=True) for part in pair)


def _plant_faults(rng: random.Random, table: list[SampleRow], rows: int) -> list[int]:
    """Spoil disjoint rows of ``table`` in place, never a rare issue; return the places left alone."""
    head = _head()
    places = [place for place, row in enumerate(table) if row.issue in head]
    rng.shuffle(places)
    for fault, share in FAULTS.items():
        for _ in range(round(share * rows)):
            place = places.pop()
            table[place] = _spoil(rng, table[place], fault)
    return places


def _spoil(rng: random.Random, row: SampleRow, fault: str) -> SampleRow:
    if fault == "wrong label":
        return replace(row, issue=_wrong_issue(rng, row.issue), fault=fault)
    if fault == "blank label":
        return replace(row, issue="", fault=fault)
    if fault == "empty text":
        return replace(row, text="", fault=fault)
    return replace(row, issue=_variant(rng, row.issue), fault=fault)


def _wrong_issue(rng: random.Random, issue: str) -> str:
    """Another issue of the head, of the same family: the mistake that a tired clerk makes."""
    family = _family_of()[issue]
    return rng.choice([name for name in _head() if name != issue and _family_of()[name] == family])


def _variant(rng: random.Random, issue: str) -> str:
    """The same name in other letters or spaces."""
    return rng.choice((issue.lower(), issue.upper(), f"{issue} ", f"  {issue}", issue.replace(" ", "  ", 1)))


def _received(rows: int, seed: int) -> list[date]:
    """Days of receipt, rising, over two years."""
    rng = random.Random(f"dates {seed}")
    return sorted(FIRST_DAY + timedelta(days=rng.randrange(DAYS)) for _ in range(rows))


def _summary(path: Path, table: Sequence[SampleRow]) -> SampleSummary:
    faults = Counter(row.fault for row in table)
    return SampleSummary(
        path=path,
        rows=len(table),
        categories=len({row.truth for row in table}),
        duplicates=faults["duplicate"],
        wrong_labels=faults["wrong label"],
        blank_labels=faults["blank label"],
        empty_texts=faults["empty text"],
        label_variants=faults["label variant"],
    )


def _write_csv(path: Path, table: Sequence[SampleRow], received: Sequence[date]) -> None:
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(COLUMNS)
        for place, (row, day) in enumerate(zip(table, received, strict=True)):
            writer.writerow((FIRST_ID + place, day.isoformat(), row.product, row.issue, row.text, row.state))


def _write_xlsx(path: Path, table: Sequence[SampleRow], received: Sequence[date]) -> None:
    import xlsxwriter

    with xlsxwriter.Workbook(path) as book:
        # Without a fixed day the same rows would give other bytes each second.
        book.set_properties({"title": "Sample complaints", "created": datetime(2025, 1, 1)})
        sheet = book.add_worksheet("Complaints")
        bold, wrap = book.add_format({"bold": True}), book.add_format({"text_wrap": True, "valign": "top"})
        day_format = book.add_format({"num_format": "yyyy-mm-dd"})
        sheet.write_row(0, 0, COLUMNS, bold)
        for number, (row, day) in enumerate(zip(table, received, strict=True), start=1):
            sheet.write_number(number, 0, FIRST_ID + number - 1)
            sheet.write_datetime(number, 1, datetime(day.year, day.month, day.day), day_format)
            # An empty string makes a blank cell.
            sheet.write_string(number, 2, row.product)
            sheet.write_string(number, 3, row.issue)
            sheet.write_string(number, 4, row.text, wrap)
            sheet.write_string(number, 5, row.state)
        sheet.freeze_panes(1, 0)
        for column, width in enumerate((13, 13, 34, 44, 90, 7)):
            sheet.set_column(column, column, width)


@cache
def _grammar() -> dict[str, Any]:
    text = files("snugtune.data").joinpath("sample_grammar.json").read_text(encoding="utf-8")
    grammar: dict[str, Any] = json.loads(text)
    return grammar


@cache
def _issue_specs() -> dict[str, dict[str, Any]]:
    return {spec["label"]: spec for family in _grammar()["families"].values() for spec in family["issues"]}


@cache
def _synonym_pattern() -> re.Pattern[str]:
    """Any of the words with synonyms; the longest first, for 'late fee' holds 'fee'."""
    words = sorted(_grammar()["synonyms"], key=len, reverse=True)
    return re.compile(rf"\b({'|'.join(map(re.escape, words))})\b")


@cache
def _family_of() -> dict[str, str]:
    families = _grammar()["families"]
    return {spec["label"]: name for name, family in families.items() for spec in family["issues"]}


@cache
def _head() -> tuple[str, ...]:
    return tuple(_grammar()["popularity"][: -len(TAIL_COUNTS)])
