"""The sample workbook holds what it promises: size, skew, faults, and a task neither easy nor hopeless."""

from __future__ import annotations

import csv
import datetime
import re
from collections import Counter
from contextlib import closing
from pathlib import Path

import openpyxl
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import train_test_split
from sklearn.svm import LinearSVC

from snugtune.data import sample as module
from snugtune.data.sample import COLUMNS, SampleRow, sample_rows, write_sample
from snugtune.errors import UserInputError


@pytest.fixture(scope="module")
def table() -> list[SampleRow]:
    return sample_rows()


def with_fault(table: list[SampleRow], fault: str) -> list[SampleRow]:
    return [row for row in table if row.fault == fault]


def folded(label: str) -> str:
    return " ".join(label.split()).casefold()


def test_size_and_skew(table: list[SampleRow]) -> None:
    counts = Counter(row.truth for row in table)
    assert len(table) == 3600
    assert len(counts) == 46
    assert counts.most_common(1)[0][1] > 0.2 * len(table)
    assert sorted(counts.values())[:8] == [
        *sorted(module.TAIL_COUNTS),
        min(counts[name] for name in module._head()),
    ]
    assert sum(count < 10 for count in counts.values()) == len(module.TAIL_COUNTS)


@pytest.mark.parametrize(
    ("fault", "count"),
    [("duplicate", 72), ("wrong label", 108), ("blank label", 36), ("empty text", 18), ("label variant", 36)],
)
def test_fault_counts(table: list[SampleRow], fault: str, count: int) -> None:
    assert len(with_fault(table, fault)) == count


def test_faults_are_what_they_are_called(table: list[SampleRow]) -> None:
    clean = Counter((row.text, row.issue) for row in with_fault(table, ""))
    assert all(clean[row.text, row.issue] >= 1 for row in with_fault(table, "duplicate"))
    assert all(
        row.issue != row.truth and row.issue in module._head() for row in with_fault(table, "wrong label")
    )
    assert {row.issue for row in with_fault(table, "blank label")} == {""}
    assert {row.text for row in with_fault(table, "empty text")} == {""}
    variants = with_fault(table, "label variant")
    assert all(row.issue != row.truth and folded(row.issue) == folded(row.truth) for row in variants)


def test_rows_without_a_fault_are_whole_and_differ(table: list[SampleRow]) -> None:
    clean = with_fault(table, "")
    assert all(row.issue == row.truth and row.text for row in clean)
    assert len({row.text for row in clean}) == len(clean)


def test_text_is_like_real_text(table: list[SampleRow]) -> None:
    texts = [row.text for row in table if row.text]
    words = [len(text.split()) for text in texts]
    assert 40 <= sum(words) / len(words) <= 70
    assert 200 <= max(words) <= 300
    for needle, share in {
        "\n": 0.2,
        "XXXX": 0.5,
        "€": 0.01,
        "£": 0.01,
        "¿": 0.003,
        "🙏": 0.01,
        "Ø": 0.01,
    }.items():
        assert sum(needle in text for text in texts) >= share * len(texts), needle


def test_no_notation_of_the_grammar_is_left(table: list[SampleRow]) -> None:
    assert [row.text for row in table if re.search(r"[\[\]{}|]", row.text)] == []


def test_grammar_is_consistent() -> None:
    grammar = module._grammar()
    specs = module._issue_specs()
    assert sorted(specs) == sorted(grammar["popularity"])
    assert all(4 <= len(spec["claims"]) <= 8 and spec["topics"] for spec in specs.values())
    claims = [claim for spec in specs.values() for claim in spec["claims"]]
    assert len(set(claims)) == len(claims)


@pytest.mark.parametrize("suffix", [".xlsx", ".csv"])
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    one, two, other = (tmp_path / f"{name}{suffix}" for name in ("one", "two", "other"))
    for path, seed in ((one, 3), (two, 3), (other, 4)):
        write_sample(path, rows=600, seed=seed)
    assert one.read_bytes() == two.read_bytes()
    assert one.read_bytes() != other.read_bytes()


def test_workbook_holds_the_table(tmp_path: Path, table: list[SampleRow]) -> None:
    path = tmp_path / "complaints.xlsx"
    summary = write_sample(path)
    with closing(openpyxl.load_workbook(path, read_only=True)) as book:
        header, *rows = book["Complaints"].iter_rows(values_only=True)
    assert header == COLUMNS
    assert len(rows) == summary.rows == 3600
    assert len({row[0] for row in rows}) == 3600
    assert all(isinstance(row[1], datetime.datetime) for row in rows)
    written = [(row.product, row.issue, row.text, row.state) for row in table]
    assert [tuple(cell or "" for cell in row[2:]) for row in rows] == written


def test_csv_holds_the_table(tmp_path: Path) -> None:
    path = tmp_path / "complaints.csv"
    write_sample(path, rows=500)
    with path.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["Consumer complaint narrative"] for row in rows] == [row.text for row in sample_rows(500)]
    assert all(datetime.date.fromisoformat(row["Date received"]) for row in rows)


def test_summary_counts_the_faults(tmp_path: Path) -> None:
    summary = write_sample(tmp_path / "complaints.csv")
    planted = (summary.duplicates, summary.wrong_labels, summary.blank_labels, summary.empty_texts)
    assert planted == (72, 108, 36, 18)
    assert (summary.label_variants, summary.categories) == (36, 46)


def test_words_alone_do_not_settle_it(table: list[SampleRow]) -> None:
    clean = with_fault(table, "")
    train, test = train_test_split(clean, test_size=0.2, random_state=0)
    bag = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = LinearSVC().fit(bag.fit_transform([row.text for row in train]), [row.issue for row in train])
    accuracy = model.score(bag.transform([row.text for row in test]), [row.issue for row in test])
    assert 0.5 < accuracy < 0.9


@pytest.mark.parametrize("rows", [0, 499, module.MAX_ROWS + 1])
def test_rows_out_of_range(tmp_path: Path, rows: int) -> None:
    with pytest.raises(UserInputError, match="--rows"):
        write_sample(tmp_path / "a.csv", rows=rows)
    assert list(tmp_path.iterdir()) == []


def test_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=r"\.xlsx or \.csv"):
        write_sample(tmp_path / "complaints.docx")
