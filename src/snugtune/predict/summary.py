"""What was predicted, counted by label and by month: one worksheet with two charts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from snugtune.data.cells import column_text
from snugtune.data.label_sets import split_cell
from snugtune.errors import UserInputError

Cells = dict[tuple[int, int], tuple[str | float, str]]
"""Value and format by row and column, from 0."""

TITLE = "Summary"
NO_LABEL = "(none)"

_CHART_LABELS = 15
_MONTH_LABELS = 8  # the most frequent; the others are added up
_PARSED_SHARE = 0.9  # of the filled cells of a column of dates
_DATE_FORMATS = (
    "%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%d.%m.%y", "%m/%d/%y", "%d/%m/%y",
)  # fmt: skip
_FIRST_YEAR = 1000  # of four digits; "3/5/24" is no day of the year 24
_MONTH_COLUMN = 17  # R: at the right of the charts


@dataclass
class Summary:
    """Counts of the rows that have a text; memory grows with labels and months only.

    ``date`` names the column of the months; without it the first column is taken whose cells are dates.
    ``ignored`` are columns that were added. Where a text may carry several labels, ``separator`` stands
    between them, and a row counts for each of its labels.
    """

    text: Sequence[str]
    date: str | None = None
    ignored: Sequence[str] = ()
    separator: str | None = None
    rows: Counter[str] = field(default_factory=Counter)
    review: Counter[str] = field(default_factory=Counter)
    confidence: Counter[str] = field(default_factory=Counter)
    months: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Rows by month (2024-03, or "" without a date) and label."""
    of_month: Counter[str] = field(default_factory=Counter)
    with_text: int = 0
    for_review: int = 0
    without_text: int = 0
    _format: str | None = None
    _is_begun: bool = False

    def counted(self, frames: Iterable[pl.DataFrame]) -> Iterable[pl.DataFrame]:
        """Count the rows of ``frames`` and pass them on."""
        for frame in frames:
            self._add(frame)
            yield frame

    def _add(self, frame: pl.DataFrame) -> None:
        if not self._is_begun:
            self._choose_date(frame)
            self._is_begun = True
        texts = pl.DataFrame([column_text(frame[name]) for name in dict.fromkeys(self.text)])
        stripped = texts.select(pl.all().str.strip_chars().fill_null("") != "")
        filled = stripped.select(pl.any_horizontal(pl.all())).to_series()
        columns = {"label": "predicted_label", "review": "needs_review", "confidence": "confidence"}
        part = pl.DataFrame(
            {name: frame[column] for name, column in columns.items()} | {"month": self._months(frame)}
        ).filter(filled)
        self.without_text += frame.height - part.height
        counts = part.group_by("label", "month").agg(
            pl.len().alias("rows"), pl.col("review").sum(), pl.col("confidence").sum()
        )
        for cell, month, rows, review, confidence in counts.iter_rows():
            self.with_text += rows
            self.for_review += review
            self.of_month[month] += rows
            for label in self._labels_of(cell):
                self.rows[label] += rows
                self.review[label] += review
                self.confidence[label] += confidence
                self.months[month, label] += rows

    def _labels_of(self, cell: str | None) -> Sequence[str]:
        if self.separator is None:
            return (cell or "",)
        return split_cell(cell or "", self.separator) or (NO_LABEL,)

    # --- months ------------------------------------------------------------------------------------------

    def _choose_date(self, frame: pl.DataFrame) -> None:
        if self.date is not None:
            self._format = _known_dates(frame[self.date])
            if self._format is None:
                raise UserInputError(
                    f"Column {self.date!r} holds no dates such as 2024-03-01; name another --date, or none."
                )
            return
        for name in frame.columns:
            if name not in (*self.ignored, *self.text) and (found := _known_dates(frame[name])):
                self.date, self._format = name, found
                return

    def _months(self, frame: pl.DataFrame) -> pl.Series:
        if self.date is None:
            return pl.repeat("", frame.height, dtype=pl.String, eager=True)
        column = frame[self.date]
        days = _days(column, self._format) if column.dtype == pl.String else column
        return days.dt.strftime("%Y-%m").fill_null("")

    # --- the sheet ---------------------------------------------------------------------------------------

    def fill(self, book: Any, sheet: Any) -> dict[str, Any]:
        """Write tables and charts into an empty worksheet of xlsxwriter; returns the formats by name."""
        formats = {
            "bold": book.add_format({"bold": True}),
            "share": book.add_format({"num_format": 10}),  # 0.00%, built in: ECMA-376 part 1, 18.8.30
            "count": book.add_format({"num_format": 3}),  # #,##0
        }
        sheet.set_landscape()
        sheet.fit_to_pages(1, 0)
        sheet.set_column(0, 0, 36)
        sheet.set_column(1, 4, 16)
        cells = self._label_cells()
        if self.rows:
            self._label_chart(book, sheet, min(len(self.rows), _CHART_LABELS))
        if self.date is not None and self.rows:
            names, months = self._month_names(), self._month_keys()
            cells |= self._month_cells(names, months)
            sheet.set_column(_MONTH_COLUMN, _MONTH_COLUMN + len(names), 16)
            self._month_chart(book, sheet, rows=len(months), series=len(names) - 1)
        for (r, c), (value, of) in sorted(cells.items()):  # row by row: a streamed book takes no other order
            write = sheet.write_string if isinstance(value, str) else sheet.write_number
            write(r, c, value, formats.get(of))
        return formats

    def _label_cells(self) -> Cells:
        cells: Cells = {(0, 0): ("What was predicted", "bold"), (1, 0): (self._sentence(), "")}
        for c, name in enumerate(("Label", "Rows", "Share", "For review", "Mean confidence")):
            cells[3, c] = name, "bold"
        for r, label in enumerate(self._labels(), start=4):
            rows = self.rows[label]
            cells[r, 0] = label, ""
            cells[r, 1] = rows, "count"
            cells[r, 2] = rows / self.with_text, "share"
            cells[r, 3] = self.review[label], "count"
            cells[r, 4] = self.confidence[label] / rows, "share"
        return cells

    def _labels(self) -> list[str]:
        """The most frequent first; of equal ones in the order of the alphabet."""
        return sorted(self.rows, key=lambda label: (-self.rows[label], label))

    def _sentence(self) -> str:
        told = f"{self.with_text:,} rows with a text, {self.for_review:,} for a person to look at"
        return told + (f"; {self.without_text:,} without a text." if self.without_text else ".")

    def _label_chart(self, book: Any, sheet: Any, count: int) -> None:
        chart = book.add_chart({"type": "bar"})
        last = 3 + count
        chart.add_series({
            "name": "Rows",
            "categories": [sheet.name, 4, 0, last, 0],
            "values": [sheet.name, 4, 1, last, 1],
            "gap": 40,
        })  # fmt: skip
        many = len(self.rows) > count
        chart.set_title({"name": f"The {count} most frequent labels" if many else "Rows by label"})
        chart.set_legend({"none": True})
        chart.set_y_axis({"reverse": True})
        chart.set_size({"width": 620, "height": 140 + 22 * count})
        sheet.insert_chart(3, 6, chart)

    def _month_keys(self) -> list[str]:
        return sorted(self.of_month, key=lambda month: (not month, month))

    def _month_names(self) -> list[str]:
        """The columns behind that of the month."""
        others = ["other labels"] if len(self.rows) > _MONTH_LABELS else []
        return [*self._labels()[:_MONTH_LABELS], *others, "all rows"]

    def _month_cells(self, names: Sequence[str], months: Sequence[str]) -> Cells:
        cells: Cells = {(2, _MONTH_COLUMN): (f"By month of {self.date}", "bold")}
        for c, name in enumerate(("Month", *names), start=_MONTH_COLUMN):
            cells[3, c] = name, "bold"
        for r, month in enumerate(months, start=4):
            counts = [self.months[month, label] for label in self._labels()]
            if len(counts) > _MONTH_LABELS:
                counts = [*counts[:_MONTH_LABELS], sum(counts[_MONTH_LABELS:])]
            cells[r, _MONTH_COLUMN] = month or "no date", ""
            for c, count in enumerate((*counts, self.of_month[month]), start=_MONTH_COLUMN + 1):
                cells[r, c] = count, "count"
        return cells

    def _month_chart(self, book: Any, sheet: Any, *, rows: int, series: int) -> None:
        chart = book.add_chart({"type": "column", "subtype": "stacked"})
        for c in range(_MONTH_COLUMN + 1, _MONTH_COLUMN + 1 + series):
            chart.add_series({
                "name": [sheet.name, 3, c],
                "categories": [sheet.name, 4, _MONTH_COLUMN, 3 + rows, _MONTH_COLUMN],
                "values": [sheet.name, 4, c, 3 + rows, c],
                "gap": 40,
            })  # fmt: skip
        chart.set_title({"name": "Rows by month"})
        chart.set_legend({"position": "bottom"})
        chart.set_size({"width": 620, "height": 420})
        sheet.insert_chart(7 + (140 + 22 * min(len(self.rows), _CHART_LABELS)) // 20, 6, chart)


def _known_dates(column: pl.Series) -> str | None:
    """The format of which nearly all filled cells are dates, if there is just one; "dates" of real ones."""
    if column.dtype in (pl.Date, pl.Datetime):
        return "dates"
    if column.dtype != pl.String:
        return None
    filled = column.drop_nulls()
    filled = filled.filter(filled.str.strip_chars() != "")
    enough = _PARSED_SHARE * len(filled)
    found = [of for of in _DATE_FORMATS if len(filled) and _days(filled, of).count() >= enough]
    return found[0] if len(found) == 1 else None


def _days(column: pl.Series, of: str | None) -> pl.Series:
    """Days of cells such as "2024-03-01" and "2024-03-01 10:00"; null where a cell is none."""
    days = column.str.strip_chars().str.extract(r"^([^ T]+)(?:[ T].*)?$")
    found = days.str.to_date(of or _DATE_FORMATS[0], strict=False, exact=True)
    return pl.select(pl.when(found.dt.year() >= _FIRST_YEAR).then(found)).to_series()
