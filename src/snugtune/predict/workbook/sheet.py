"""One worksheet: where things stand in it, and the same sheet with cells added."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from openpyxl.utils import column_index_from_string, get_column_letter, range_boundaries

from snugtune.errors import UserInputError
from snugtune.predict.workbook.splice import Splicer, cell_text

Values = tuple[Any, ...]

_WIDTHS = {"confidence": 12.0, "needs_review": 14.0, "correct": 10.0}  # in characters; labels are longer
_LABEL_WIDTH = 28.0


class SheetReader(Splicer):
    """Reads a sheet from row to row; numbers of rows and columns begin at 1.

    ``digest`` grows with every cell, its bytes as they are, but for those of ``ignored`` columns in the
    header and below: two sheets of the same digest hold the same cells, formulas and formats.
    """

    def __init__(
        self, target: BinaryIO | None = None, *, header_row: int = 1, ignored: frozenset[int] = frozenset()
    ) -> None:
        super().__init__(target)
        self.digest = hashlib.sha256()
        self.row = self.column = 0
        self._header_row, self._ignored = header_row, ignored
        self._cell_at: int | None = None

    def _start(self, name: str, attributes: dict[str, str], at: int) -> None:
        if name == "c" and self.path[-2:-1] == ["row"]:
            reference = attributes.get("r")
            self.column = _column(reference) if reference else self.column + 1
            self._cell_at = at
            self._cell_start(attributes, at)
        elif name == "row" and self.path[-2:-1] == ["sheetData"]:
            row = int(attributes.get("r", self.row + 1))
            if row <= self.row:
                raise UserInputError(f"row {row} comes after row {self.row}; save the workbook in Excel.")
            self.row, self.column = row, 0
            self._row_start(attributes, at)
        elif self._cell_at is not None:
            self._inside_cell(name)
        else:
            self._other_start(name, attributes, at)

    def _end(self, name: str, at: int) -> None:
        if name == "c" and self._cell_at is not None:
            end = self.element_end(self._cell_at, at)
            if not (self.row >= self._header_row and self.column in self._ignored):
                self.digest.update(b"%d,%d:" % (self.row, self.column) + self.raw(self._cell_at, end))
            self._cell_end(self._cell_at, end)
            self._cell_at = None
        elif name == "row" and self.path[-2:-1] == ["sheetData"]:
            self._row_end(at)
        elif self._cell_at is None:
            self._other_end(name, at)

    def _settled(self) -> int:
        return super()._settled() if self._cell_at is None else self._cell_at

    # --- for subclasses ----------------------------------------------------------------------------------

    def _row_start(self, attributes: dict[str, str], at: int) -> None: ...

    def _row_end(self, at: int) -> None: ...

    def _cell_start(self, attributes: dict[str, str], at: int) -> None: ...

    def _inside_cell(self, name: str) -> None: ...

    def _cell_end(self, at: int, end: int) -> None: ...

    def _other_start(self, name: str, attributes: dict[str, str], at: int) -> None: ...

    def _other_end(self, name: str, at: int) -> None: ...


class Layout(SheetReader):
    """What has to be known of a sheet before columns are added to it."""

    def __init__(self, header_row: int) -> None:
        super().__init__(header_row=header_row)
        self.last_column = 0
        """The last one that holds anything in the header or below."""
        self.last_row = 0
        self.header_styles: dict[int, str] = {}
        self.formula_columns: set[int] = set()
        """Those with a formula in the header or below."""
        self.column_spans: list[tuple[int, int]] = []
        """Of the ``col`` elements."""
        self.filter: str | None = None
        """The range of the sheet's own filter."""
        self.table_ids: list[str] = []

    @property
    def has_columns(self) -> bool:
        """Whether the sheet says anything about columns."""
        return bool(self.column_spans)

    def _cell_start(self, attributes: dict[str, str], at: int) -> None:  # noqa: ARG002
        if self.row == self._header_row and "s" in attributes:
            self.header_styles[self.column] = attributes["s"]

    def _inside_cell(self, name: str) -> None:
        if self.row >= self._header_row and name in ("v", "is", "f"):
            self.last_column = max(self.last_column, self.column)
            self.last_row = max(self.last_row, self.row)
            if name == "f":
                self.formula_columns.add(self.column)

    def _other_start(self, name: str, attributes: dict[str, str], at: int) -> None:  # noqa: ARG002
        if name == "col":
            self.column_spans.append((int(attributes["min"]), int(attributes["max"])))
        elif name == "autoFilter" and len(self.path) == 2:  # not one of a kept view
            self.filter = attributes.get("ref")
        elif name == "mergeCell":
            self.cover(attributes["ref"])
        elif name == "tablePart":
            self.table_ids += [value for key, value in attributes.items() if key.endswith(":id")]

    def cover(self, reference: str) -> None:
        """New columns stand at the right of ``reference``, if that reaches the header or below."""
        _, _, last_column, last_row = bounds(reference)
        if last_row >= self._header_row:
            self.last_column = max(self.last_column, last_column)


@dataclass(frozen=True)
class Placement:
    """Which added value goes to which column, of which rows."""

    names: tuple[str, ...]
    columns: tuple[int, ...]
    header_row: int
    appended: tuple[int, ...]
    """Those of ``columns`` that are new."""
    skipped_row: int | None = None
    """A table's row of totals, which is no row of data."""
    header_style: str | None = None

    def widened(self, reference: str, last_column: int) -> str:
        """``reference`` with the new columns, if it has the header and ends at ``last_column``."""
        first_column, first_row, end_column, end_row = bounds(reference)
        if not self.appended or end_column != last_column or not first_row <= self.header_row <= end_row:
            return reference
        return _reference(first_column, first_row, self.appended[-1], end_row)


@dataclass
class _Row:
    """The cells still to be written of a row, by column, in order."""

    values: dict[int, Any] = field(default_factory=dict)
    style: str | None = None


class SheetWriter(SheetReader):
    """Copies a sheet and writes ``values`` into the columns of ``placement``.

    ``values`` has, in order and with its number, every row from the one below the header on; None is a row
    in which nothing is to be written.
    """

    def __init__(
        self,
        target: BinaryIO,
        layout: Layout,
        placement: Placement,
        values: Iterator[tuple[int, Values | None]],
    ) -> None:
        super().__init__(target, header_row=placement.header_row, ignored=frozenset(placement.columns))
        self._layout, self._placement, self._values = layout, placement, values
        self._order = sorted(range(len(placement.columns)), key=placement.columns.__getitem__)
        self._next: tuple[int, Values | None] | None = None
        self._row: _Row | None = None
        self._replaced: tuple[Any, str | None] | None = None
        self._widths = self._new_widths()

    def finish(self) -> None:
        """Make sure that all values have been written.

        Raises:
            UserInputError: a row with values is not in the sheet.
        """
        for row, values in self._values:
            if values is not None:
                raise _misread(row)

    # --- rows and cells ----------------------------------------------------------------------------------

    def _row_start(self, attributes: dict[str, str], at: int) -> None:
        values = self._row_values()
        if values is None:
            return
        if self.is_empty(at):
            raise _misread(self.row)
        style = attributes.get("s") if attributes.get("customFormat") in ("1", "true") else None
        if self.row == self._placement.header_row:
            style = self._placement.header_style or style
        self._row = _Row({self._placement.columns[i]: values[i] for i in self._order}, style)
        if "spans" in attributes:
            numbers = [int(n) for span in attributes["spans"].split() for n in span.split(":")]
            numbers += self._placement.columns
            self.replace_attribute(at, "spans", f"{min(numbers)}:{max(numbers)}")

    def _cell_start(self, attributes: dict[str, str], at: int) -> None:
        if self._row is None:
            return
        self._write_cells(at, before=self.column)
        if self.column in self._row.values:
            self._replaced = self._row.values.pop(self.column), attributes.get("s", self._row.style)

    def _cell_end(self, at: int, end: int) -> None:
        if self._replaced is None:
            return
        value, style = self._replaced
        self._replaced = None
        self.copy_to(at)
        self.drop_to(end)
        self._write_cell(self.column, value, style)

    def _row_end(self, at: int) -> None:
        if self._row is not None:
            self._write_cells(at)
            self._row = None

    def _row_values(self) -> Values | None:
        if self.row == self._placement.header_row:
            return self._placement.names
        if self.row < self._placement.header_row:
            return None
        while self._next is None or self._next[0] < self.row:
            if self._next is not None and self._next[1] is not None:
                raise _misread(self._next[0])
            self._next = next(self._values, None)
            if self._next is None:
                return None
        row, values = self._next
        if row != self.row:
            return None
        self._next = None
        return None if row == self._placement.skipped_row else values

    def _write_cells(self, at: int, before: int | None = None) -> None:
        """The row's cells that stand left of column ``before`` (None: all of them), at byte ``at``."""
        assert self._row is not None
        due = [column for column in self._row.values if before is None or column < before]
        if due:
            self.copy_to(at)
        for column in due:
            self._write_cell(column, self._row.values.pop(column), self._row.style)

    def _write_cell(self, column: int, value: Any, style: str | None) -> None:
        """Text is text, also where it begins like a formula."""
        p, styled = self.prefix, "" if style is None else f' s="{int(style)}"'
        begin = f'<{p}c r="{get_column_letter(column)}{self.row}"{styled}'
        if value is None:
            self.write(f"{begin}/>" if styled else "")
        elif isinstance(value, str):
            text = f'<{p}t xml:space="preserve">{cell_text(value)}</{p}t>'
            self.write(f'{begin} t="inlineStr"><{p}is>{text}</{p}is></{p}c>')
        elif isinstance(value, bool):
            self.write(f'{begin} t="b"><{p}v>{int(value)}</{p}v></{p}c>')
        else:
            self.write(f"{begin}><{p}v>{float(value)!r}</{p}v></{p}c>")

    # --- around the cells --------------------------------------------------------------------------------

    def _other_start(self, name: str, attributes: dict[str, str], at: int) -> None:
        if name == "dimension" and "ref" in attributes:
            reference = attributes["ref"]
            self.replace_attribute(at, "ref", _with_columns(reference, self._placement))
        elif name == "autoFilter" and len(self.path) == 2 and "ref" in attributes:
            widened = self._placement.widened(attributes["ref"], self._layout.last_column)
            self.replace_attribute(at, "ref", widened)
        elif name == "col":
            self._write_widths(at, before=int(attributes["min"]))
        elif name == "sheetData" and not self._layout.has_columns and self._widths:
            self.copy_to(at)
            self.write(f"<{self.prefix}cols>")
            self._write_widths(at)
            self.write(f"</{self.prefix}cols>")

    def _other_end(self, name: str, at: int) -> None:
        if name == "cols":
            self._write_widths(at)

    def _new_widths(self) -> dict[int, float]:
        """Of new columns about which the sheet says nothing yet."""
        placement, spans = self._placement, self._layout.column_spans
        return {
            column: _WIDTHS.get(name, _LABEL_WIDTH)
            for name, column in sorted(
                zip(placement.names, placement.columns, strict=True), key=lambda x: x[1]
            )
            if column in placement.appended and not any(low <= column <= high for low, high in spans)
        }

    def _write_widths(self, at: int, before: int | None = None) -> None:
        due = [column for column in self._widths if before is None or column < before]
        if due:
            self.copy_to(at)
        for column in due:
            width = self._widths.pop(column)
            span = f'min="{column}" max="{column}"'
            self.write(f'<{self.prefix}col {span} width="{width}" customWidth="1"/>')


def bounds(reference: str) -> tuple[int, int, int, int]:
    """First column, first row, last column, last row of a range such as "A1:C9" or "A1"."""
    found: Sequence[int | None] = range_boundaries(reference)
    if None in found:
        raise UserInputError(f"the range {reference} is not one of cells; save the workbook in Excel.")
    first_column, first_row, last_column, last_row = (int(value or 0) for value in found)
    return first_column, first_row, last_column, last_row


def _reference(first_column: int, first_row: int, last_column: int, last_row: int) -> str:
    return f"{get_column_letter(first_column)}{first_row}:{get_column_letter(last_column)}{last_row}"


def _with_columns(reference: str, placement: Placement) -> str:
    first_column, first_row, last_column, last_row = bounds(reference)
    last = max(last_column, *placement.columns)
    return _reference(
        min(first_column, *placement.columns), min(first_row, placement.header_row), last, last_row
    )


def _column(reference: str) -> int:
    return int(column_index_from_string(reference.rstrip("0123456789")))


def _misread(row: int) -> UserInputError:
    return UserInputError(
        f"row {row} was read and is not found again: the workbook was changed meanwhile, or is damaged; "
        "save it in Excel and run this again."
    )
