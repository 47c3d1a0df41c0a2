"""The user's workbook with columns added to one sheet: nothing else in it changes.

The archive is copied part by part. In the sheet's own XML, cells are put into rows and everything around
them is copied byte for byte, row after row, so memory does not grow with the rows. Decision 21 says why
this is not left to a library.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree
from xml.parsers import expat
from xml.sax.saxutils import escape

import polars as pl

from snugtune.data.readers.request import first_line
from snugtune.data.readers.workbook import SheetHeader, sheet_header
from snugtune.errors import UserInputError
from snugtune.predict.summary import Summary
from snugtune.predict.workbook.graft import summary_parts, touched
from snugtune.predict.workbook.package import Change, Package, told_of_damage
from snugtune.predict.workbook.sheet import (
    Layout,
    Placement,
    SheetReader,
    SheetWriter,
    Values,
    bounds,
)
from snugtune.predict.workbook.splice import Inserter, attribute

_MOST_COLUMNS = 16_384  # support.microsoft.com, "Excel specifications and limits"

Frames = Iterable[pl.DataFrame]


@dataclass(frozen=True)
class _Table:
    """A table (list object) of the sheet."""

    part: str
    range: str
    names: tuple[str, ...]
    next_id: int
    has_totals: bool
    is_of_query: bool


@dataclass(frozen=True)
class Roundtrip:
    """A workbook and where its new columns go."""

    package: Package
    part: str
    header: SheetHeader
    layout: Layout
    placement: Placement
    table: _Table | None
    """The table that grows by the new columns."""

    @classmethod
    def plan(cls, source: str | Path, names: Sequence[str], *, sheet: str | None = None) -> Roundtrip:
        """Read ``sheet`` of ``source`` once and find the columns for ``names``.

        A column of one of these names is written anew where it is; the others come at the right of all that
        stands in the header's row and below.

        Raises:
            UserInputError: the workbook is damaged or hostile, has no columns left, or has formulas where
                predictions of that name would go.
        """
        header, package = sheet_header(source, sheet), Package.read(source)
        where = f"{source}, sheet {header.sheet!r}"
        with told_of_damage(f"{where} is damaged"):
            return cls._planned(package, header, names, where)

    @classmethod
    def _planned(cls, package: Package, header: SheetHeader, names: Sequence[str], where: str) -> Roundtrip:
        part, layout = package.sheets[header.sheet], Layout(header.row)
        _run(layout, package, part, where)
        tables = [_read_table(package, package.related(part)[table][1]) for table in layout.table_ids]
        for table in tables:
            layout.cover(table.range)
        own = next((table for table in tables if _has_row(table, header)), None)
        new = [name for name in names if name not in header.columns]
        places = header.columns | {name: layout.last_column + i for i, name in enumerate(new, start=1)}
        columns = tuple(places[name] for name in names)
        if max(columns) > _MOST_COLUMNS:
            raise UserInputError(f"{where} has no room at its right; an Excel sheet has 16,384 columns.")
        if formulas := [name for name in names if places[name] in layout.formula_columns]:
            raise UserInputError(f"{where} has formulas in column {formulas[0]!r}; rename it to keep them.")
        placement = Placement(
            tuple(names), columns, header.row, tuple(places[name] for name in new),
            skipped_row=bounds(own.range)[3] if own is not None and own.has_totals else None,
            header_style=layout.header_styles.get(layout.last_column),
        )  # fmt: skip
        grows = own is not None and new and _can_grow(own, placement, layout)
        return cls(package, part, header, layout, placement, own if grows else None)

    def write(self, frames: Frames, output: Path, summary: Summary | None = None) -> None:
        """Write the workbook with the columns of ``frames`` to ``output``, and ``summary`` as one more sheet.

        Raises:
            UserInputError: the workbook was changed since it was planned.
            RuntimeError: what was written is not what was read, by checksum; never seen.
        """
        digests: list[str] = []
        frames = _Frames(frames)

        def sheet(old: BinaryIO, new: BinaryIO) -> None:
            writer = SheetWriter(new, self.layout, self.placement, self._values(frames))
            writer.run(old)
            writer.finish()
            digests.append(writer.digest.hexdigest())

        def finish() -> dict[str, bytes]:
            with told_of_damage(f"{self.package.path} is damaged"):
                workbook = self._workbook_part()
                return {part: workbook} if summary is None else summary_parts(self.package, summary, workbook)

        part = self.package.workbook
        late = frozenset({part}) if summary is None else touched(self.package)
        where = f"{self.package.path}, sheet {self.header.sheet!r}"
        changes: dict[str, Change] = {self.part: sheet}
        if self.table is not None:
            changes[self.table.part] = self._grow_table
        try:
            self.package.write(output, changes, late, finish)
        except UserInputError as error:
            raise error if error is frames.fault else _placed(error, where) from None
        except Exception as error:
            if error is frames.fault or isinstance(error, OSError):  # not of the workbook
                raise
            raise UserInputError(
                f"{where} is damaged ({first_line(error)}); save it in Excel again."
            ) from None
        self._check(output, digests, {*changes, *late}, where)

    def _values(self, frames: Frames) -> Iterator[tuple[int, Values | None]]:
        """The added cells by row; None for rows in which the table has nothing."""
        names, row = list(self.placement.names), self.header.row
        for frame in frames:
            blank = frame.select(pl.all_horizontal(pl.exclude(*names).is_null())).to_series()
            for is_blank, values in zip(blank, frame.select(names).iter_rows(), strict=True):
                row += 1
                yield row, None if is_blank else values

    def _grow_table(self, old: BinaryIO, new: BinaryIO) -> None:
        assert self.table is not None
        added = [name for name, column in self._by_column() if column in self.placement.appended]
        widened = self.placement.widened(self.table.range, self.layout.last_column)

        def columns(p: str) -> str:
            numbered = enumerate(added, start=self.table.next_id)  # type: ignore[union-attr]
            return "".join(f'<{p}tableColumn id="{i}" name={attribute(name)}/>' for i, name in numbered)

        attributes = {
            ("table", "ref"): widened,
            ("autoFilter", "ref"): self._filter_of(self.table, widened),
            ("tableColumns", "count"): str(len(self.table.names) + len(added)),
        }
        Inserter(new, {"tableColumns": columns}, attributes).run(old)

    def _filter_of(self, table: _Table, widened: str) -> str:
        """The range of a table's filter, which leaves out its totals."""
        if not table.has_totals:
            return widened
        first, last = widened.split(":")
        return f"{first}:{last.rstrip('0123456789')}{bounds(table.range)[3] - 1}"

    def _by_column(self) -> list[tuple[str, int]]:
        pairs = zip(self.placement.names, self.placement.columns, strict=True)
        return sorted(pairs, key=lambda pair: pair[1])

    def _workbook_part(self) -> bytes:
        """Excel keeps the range of a sheet's filter in a hidden name of the workbook as well."""
        content, reference = self.package.part(self.package.workbook), self.layout.filter
        if reference is None:
            return content
        widened = self.placement.widened(reference, self.layout.last_column)
        title = self.header.sheet.replace("'", "''")
        either = "|".join(re.escape(escape(name)) for name in (f"'{title}'!", f"{title}!"))
        pattern = re.compile(rf"(>(?:{either})){re.escape(_absolute(reference))}(<)".encode())

        def one(found: re.Match[bytes]) -> bytes:
            if b"_xlnm._FilterDatabase" not in found[0]:
                return found[0]
            return pattern.sub(rb"\g<1>" + _absolute(widened).encode() + rb"\2", found[0])

        return re.sub(rb"<(?:\w+:)?definedName\b[^>]*>[^<]*<", one, content)

    def _check(self, output: Path, digests: list[str], changed: set[str], where: str) -> None:
        """Read what was written: the user's cells by their bytes, every other part by its checksum."""
        placement = self.placement
        reader = SheetReader(header_row=placement.header_row, ignored=frozenset(placement.columns))
        written = Package.read(output)
        _run(reader, written, self.part, where)
        same = self.package.untouched(output, changed)
        if [reader.digest.hexdigest()] != digests or not same:
            raise RuntimeError(f"{where} would not be given back as it was; nothing is written.")


class _Frames:
    """``frames``, and what was raised while one was made: that is no fault of the workbook's."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self.fault: Exception | None = None

    def __iter__(self) -> Iterator[pl.DataFrame]:
        try:
            yield from self._frames
        except Exception as error:
            self.fault = error
            raise


def _run(reader: SheetReader, package: Package, part: str, where: str) -> None:
    try:
        package.stream(part, reader.run)
    except (expat.ExpatError, ValueError, KeyError) as error:
        raise UserInputError(f"{where} is damaged ({error}); save it in Excel again.") from None
    except UserInputError as error:
        raise _placed(error, where) from None


def _placed(error: UserInputError, where: str) -> UserInputError:
    """Faults found within a part do not know its name."""
    return error if where in str(error) else UserInputError(f"{where}: {error}")


def _read_table(package: Package, part: str) -> _Table:
    root = ElementTree.fromstring(package.part(part))
    columns = [element for element in root.iter() if element.tag.endswith("}tableColumn")]
    return _Table(
        part=part,
        range=root.attrib["ref"],
        names=tuple(column.attrib["name"] for column in columns),
        next_id=max(int(column.attrib["id"]) for column in columns) + 1,
        has_totals=int(root.attrib.get("totalsRowCount", 0)) > 0,
        is_of_query=root.attrib.get("tableType", "worksheet") != "worksheet",
    )


def _has_row(table: _Table, header: SheetHeader) -> bool:
    """Whether the header of what is read is that of ``table``."""
    first_column, first_row, last_column, _ = bounds(table.range)
    return first_row == header.row and any(first_column <= c <= last_column for c in header.columns.values())


def _can_grow(table: _Table, placement: Placement, layout: Layout) -> bool:
    """A table's columns lie side by side, and their names differ in more than case."""
    known = {name.casefold() for name in table.names}
    new = {name.casefold() for name, column in zip(placement.names, placement.columns, strict=True)
           if column in placement.appended}  # fmt: skip
    return bounds(table.range)[2] == layout.last_column and not known & new and not table.is_of_query


def _absolute(reference: str) -> str:
    return re.sub(r"([A-Z]+)(\d+)", r"$\1$\2", reference)
