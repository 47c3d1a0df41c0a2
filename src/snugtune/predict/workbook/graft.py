"""A summary sheet made by xlsxwriter, put into a workbook that xlsxwriter did not make."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Mapping
from xml.etree import ElementTree

from snugtune.predict.summary import TITLE, Summary
from snugtune.predict.workbook.package import CONTENT_TYPES, Package, relations_of
from snugtune.predict.workbook.splice import Inserter, attribute

_SHEET = "xl/worksheets/snugtune_summary.xml"
_DRAWING = "xl/drawings/snugtune_drawing.xml"
_CHART = "xl/charts/snugtune_chart"  # and a number

# ECMA-376 part 4 (transitional) and part 2: names of relations and types of content.
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_TYPE = "application/vnd.openxmlformats-officedocument."
_TYPES = {
    _SHEET: _TYPE + "spreadsheetml.worksheet+xml",
    _DRAWING: _TYPE + "drawing+xml",
    _CHART: _TYPE + "drawingml.chart+xml",
}
_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"

Addition = Callable[[str], str]


def touched(package: Package) -> frozenset[str]:
    """The parts that a summary sheet changes or adds to, if they are there."""
    relations = relations_of(package.workbook)
    styles = {_styles(package)} - {None}
    own = {name for name in package.names() if "snugtune_" in name}
    return frozenset({CONTENT_TYPES, package.workbook, relations, *own, *styles})  # type: ignore[arg-type]


def summary_parts(package: Package, summary: Summary, workbook: bytes) -> dict[str, bytes]:
    """New content of ``touched`` parts and of new ones; ``workbook`` is its part as it is by now.

    The summary sheet of an earlier prediction is made anew.
    """
    title = next((name for name, part in package.sheets.items() if part == _SHEET), None)
    is_new = title is None
    title = title or _free_title(package)
    rendered, used = _render(summary, title)
    changed = {package.workbook: workbook}
    changed |= _with_formats(package, rendered, used)
    changed |= {name: content for name, content in rendered.items() if name not in changed}
    changed |= _with_types(package, rendered)
    if is_new:
        changed |= _with_sheet(package, workbook, title)
    else:
        changed[relations_of(package.workbook)] = package.part(relations_of(package.workbook))
    return changed


def _free_title(package: Package) -> str:
    taken = {name.casefold() for name in _all_titles(package)}
    numbered = [TITLE, *(f"{TITLE} ({i})" for i in range(2, len(taken) + 3))]
    return next(name for name in numbered if name.casefold() not in taken)


def _all_titles(package: Package) -> list[str]:
    root = ElementTree.fromstring(package.part(package.workbook))
    return [element.attrib["name"] for element in root.iter() if element.tag.endswith("}sheet")]


# --- what xlsxwriter makes -------------------------------------------------------------------------------


def _render(summary: Summary, title: str) -> tuple[dict[str, bytes], dict[str, int]]:
    """Sheet, drawing, charts and their relations under our names; the formats' numbers by name."""
    from xlsxwriter import Workbook

    file = io.BytesIO()
    book = Workbook(file, {"in_memory": True})
    formats = summary.fill(book, book.add_worksheet(title))
    book.close()
    with zipfile.ZipFile(file) as made:
        parts = {_renamed(name): made.read(name) for name in made.namelist() if _is_wanted(name)}
        texts = re.findall(rb"<si>(.*?)</si>", made.read("xl/sharedStrings.xml"), re.DOTALL)
    sheet = parts[_SHEET].replace(b' tabSelected="1"', b"")  # two selected sheets would be edited as one
    sheet = re.sub(
        rb't="s"><v>(\d+)</v>', lambda m: b't="inlineStr"><is>' + texts[int(m[1])] + b"</is>", sheet
    )
    parts[_SHEET] = sheet
    for name in filter(lambda name: name.endswith(".rels"), list(parts)):
        parts[name] = _renamed(parts[name].decode()).encode()
    return parts, {name: format_.xf_index for name, format_ in formats.items()}


def _is_wanted(name: str) -> bool:
    return name.startswith(("xl/worksheets/", "xl/drawings/", "xl/charts/"))


def _renamed(name: str) -> str:
    return (
        name.replace("worksheets/sheet1.xml", "worksheets/snugtune_summary.xml")
        .replace("worksheets/_rels/sheet1.xml", "worksheets/_rels/snugtune_summary.xml")
        .replace("drawing1.xml", "snugtune_drawing.xml")
        .replace("charts/chart", "charts/snugtune_chart")
    )


# --- where the workbook has to know of it ----------------------------------------------------------------


def _with_types(package: Package, rendered: Mapping[str, bytes]) -> dict[str, bytes]:
    # Those of an earlier summary go: it may have had another number of charts.
    old = re.sub(rb'<(?:\w+:)?Override\b[^>]*"/xl/[^"]*snugtune_[^>]*/>', b"", package.part(CONTENT_TYPES))
    overrides = []
    for name in sorted(rendered):
        kind = next((kind for part, kind in _TYPES.items() if name.startswith(part)), None)
        if kind:
            overrides.append(f"PartName={attribute('/' + name)} ContentType={attribute(kind)}/>")
    return {
        CONTENT_TYPES: _inserted(
            old, {"Types": lambda p: "".join(f"<{p}Override {override}" for override in overrides)}
        )
    }


def _with_sheet(package: Package, workbook: bytes, title: str) -> dict[str, bytes]:
    relations = relations_of(package.workbook)
    ids = package.related_ids(package.workbook)
    own_id = next(f"rIdSnugtune{i}" for i in range(1, len(ids) + 2) if f"rIdSnugtune{i}" not in ids)
    sheet_id = max(package.sheet_ids) + 1
    sheet = f'name={attribute(title)} sheetId="{sheet_id}" xmlns:r="{_OFFICE}" r:id="{own_id}"/>'
    relation = f'Id="{own_id}" Type="{_OFFICE}/worksheet" Target="/{_SHEET}"/>'
    return {
        package.workbook: _inserted(workbook, {"sheets": lambda p: f"<{p}sheet {sheet}"}),
        relations: _inserted(
            package.part(relations), {"Relationships": lambda p: f"<{p}Relationship {relation}"}
        ),
    }


def _with_formats(package: Package, rendered: dict[str, bytes], used: dict[str, int]) -> dict[str, bytes]:
    """The workbook's formats with ours at their end, to which the summary's cells are made to point.

    Numbers of formats that are there do not change, so no cell of the user's looks different.
    """
    part = _styles(package)
    root = None if part is None else ElementTree.fromstring(package.part(part))
    fonts, formats = (
        (None, None) if root is None else (root.find(_MAIN + "fonts"), root.find(_MAIN + "cellXfs"))
    )
    numbers: dict[int, int] = {}
    changed: dict[str, bytes] = {}
    if part is not None and fonts is not None and formats is not None and len(fonts) and len(formats):
        bold, first = len(fonts), len(formats)
        changed[part] = _inserted(
            package.part(part),
            {
                "fonts": lambda p: _bold_font(fonts[0], p),
                "cellXfs": lambda p: _own_formats(p, bold),
            },
            {("fonts", "count"): str(bold + 1), ("cellXfs", "count"): str(first + 3)},
        )
        numbers = {used[name]: first + i for i, name in enumerate(("bold", "share", "count"))}
    rendered[_SHEET] = re.sub(
        rb' s="(\d+)"',
        lambda m: b' s="%d"' % numbers[int(m[1])] if int(m[1]) in numbers else b"",
        rendered[_SHEET],
    )
    return changed


def _bold_font(font: ElementTree.Element, p: str) -> str:
    """The workbook's first font, which its plain cells have, in bold."""
    size, name = font.find(_MAIN + "sz"), font.find(_MAIN + "name")
    values = [
        f"<{p}{tag} val={attribute(element.attrib.get('val', ''))}/>"
        for tag, element in (("sz", size), ("name", name))
        if element is not None
    ]
    return f"<{p}font><{p}b/>{''.join(values)}</{p}font>"


def _own_formats(p: str, bold: int) -> str:
    """Bold, a share with two decimals, a number with thousands: ECMA-376 part 1, 18.8.30 and 18.8.45."""
    plain = 'fillId="0" borderId="0" xfId="0"'
    return (
        f'<{p}xf numFmtId="0" fontId="{bold}" {plain} applyFont="1"/>'
        f'<{p}xf numFmtId="10" fontId="0" {plain} applyNumberFormat="1"/>'
        f'<{p}xf numFmtId="3" fontId="0" {plain} applyNumberFormat="1"/>'
    )


def _styles(package: Package) -> str | None:
    return next((part for kind, part in package.related(package.workbook).values() if kind == "styles"), None)


def _inserted(
    xml: bytes, additions: Mapping[str, Addition], attributes: Mapping[tuple[str, str], str] | None = None
) -> bytes:
    target = io.BytesIO()
    Inserter(target, additions, attributes).run(io.BytesIO(xml))
    return target.getvalue()
