"""Complaints of real consumers, downloaded from the public database of the CFPB, page by page.

The Consumer Financial Protection Bureau publishes its Consumer Complaint Database under CC0 behind a search
API that needs no key. Parameters, answers and limits below are those of the API's own source code,
https://github.com/cfpb/ccdb5-api, folder ``complaint_search``:

- ``es_interface.py``: an answer is Elasticsearch's own; ``search_after=DATE_ID``, made of the ``sort`` values
  of the last hit, continues behind that hit, and is silently ignored if malformed. ``frm`` moves nothing.
- ``es_builders.py``: both date bounds are inclusive; hits are sorted by date received, then by id.
- ``throttling.py``: 20 searches a minute for anonymous callers, then HTTP 429 with ``Retry-After``.
- ``defaults.py``: the columns of the CSV export and their names.

Every page is kept in ``OUTPUT.part/`` until the table is written, so an interrupted download goes on where it
stopped.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import math
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import polars as pl

from snugtune.data.form import EXCEL_ROWS, cell_text
from snugtune.errors import UserInputError
from snugtune.files import replacing, write_text

CFPB_SEARCH_URL = "https://www.consumerfinance.gov/data-research/consumer-complaints/search/api/v1/"
PAGE_ROWS = 1000  # what the API is known to grant: https://github.com/cfpb/ccdb5-api/pull/160
MAX_PAGE_ROWS = 10_000  # Elasticsearch's default index.max_result_window
PAUSE_S = 3.0  # 20 searches a minute

# The API's field: the column's name in the CSV export, in its order.
COLUMNS = {
    "date_received": "Date received",
    "product": "Product",
    "sub_product": "Sub-product",
    "issue": "Issue",
    "sub_issue": "Sub-issue",
    "complaint_what_happened": "Consumer complaint narrative",
    "company_public_response": "Company public response",
    "company": "Company",
    "state": "State",
    "zip_code": "ZIP code",
    "tags": "Tags",
    "consumer_consent_provided": "Consumer consent provided?",
    "submitted_via": "Submitted via",
    "date_sent_to_company": "Date sent to company",
    "company_response": "Company response to consumer",
    "timely": "Timely response?",
    "consumer_disputed": "Consumer disputed?",
    "complaint_id": "Complaint ID",
}
NARRATIVE, COMPLAINT_ID = "Consumer complaint narrative", "Complaint ID"

ATTEMPTS = 6  # per page; with the default pause they span a minute and a half
TIMEOUT_S = 120.0  # the API itself gives Elasticsearch 100 s
LONGEST_WAIT_S = 600.0  # a server that wants more than this is left for another day

Row = dict[str, str | None]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class DownloadResult:
    """What was written.

    ``available`` complaints match in the database; ``resumed_rows`` came from an earlier, interrupted run;
    ``shortened`` narratives were cut to what a cell of a workbook holds (always 0 for other formats).
    """

    path: Path
    rows: int
    available: int
    resumed_rows: int
    requests: int
    shortened: int


def download(
    *,
    since: date,
    rows: int,
    output: Path,
    until: date | None = None,
    base_url: str = CFPB_SEARCH_URL,
    page_rows: int = PAGE_ROWS,
    pause_s: float = PAUSE_S,
    on_progress: Progress | None = None,
    overwrite: bool = False,
) -> DownloadResult:
    """Write the newest ``rows`` complaints that have a narrative to ``output``, latest first.

    All columns are text, under the names of the CFPB's CSV export; dates as ``2024-05-31``. If there are
    fewer complaints than ``rows``, all of them are written.

    Args:
        since: first day of receipt.
        rows: how many complaints at most.
        output: ``.parquet``, ``.csv``, ``.jsonl`` or ``.xlsx``, written at once when all rows are there.
        until: last day of receipt; open if left out.
        base_url: address of the search API.
        page_rows: complaints asked for per request.
        pause_s: least time from request to request; failed requests wait this times 1, 2, 4, ...
        on_progress: called with the complaints there and the complaints expected, at the start and per page.
        overwrite: replace ``output``, and discard pages that another query left in ``OUTPUT.part``.

    Raises:
        UserInputError: an argument is out of range, ``output`` exists or cannot be written, nothing matches,
            or the server cannot be reached, refuses, or answers in an unknown form. What was downloaded is
            kept, and the same call goes on from there.
    """
    output = Path(output)
    query = _Query(base_url, since, until)
    _check(query, output, rows, page_rows, pause_s, overwrite)
    pages = _Pages.open(output.with_name(f"{output.name}.part"), query.fingerprint(), overwrite)
    resumed_rows = min(pages.rows, rows)
    server = _Server(base_url, pause_s)
    _fetch(query, server, pages, rows, page_rows, on_progress)
    if pages.rows == 0:
        pages.remove()
        raise UserInputError(f"The CFPB has no complaints with a narrative {query}; choose other days.")
    shortened = _write(pages, rows, output)
    pages.remove()
    return DownloadResult(
        output, min(pages.rows, rows), pages.available, resumed_rows, server.requests, shortened
    )


def _check(query: _Query, output: Path, rows: int, page_rows: int, pause_s: float, overwrite: bool) -> None:
    """Refuse what cannot work before the first request."""
    if rows < 1:
        raise UserInputError(f"The number of rows must be 1 or more, not {rows}.")
    if not 1 <= page_rows <= MAX_PAGE_ROWS:
        raise UserInputError(f"A page has 1 to {MAX_PAGE_ROWS:,} rows, not {page_rows}.")
    if not (math.isfinite(pause_s) and pause_s >= 0):
        raise UserInputError(f"The pause between requests must be 0 seconds or more, not {pause_s}.")
    if query.until is not None and query.since > query.until:
        raise UserInputError(f"The first day, {query.since}, is later than the last, {query.until}.")
    if urllib.parse.urlsplit(query.base_url).scheme not in ("http", "https"):
        raise UserInputError(f"The address must begin with https:// or http://, not be {query.base_url!r}.")
    _check_output(output, rows, overwrite)


def _check_output(output: Path, rows: int, overwrite: bool) -> None:
    suffix = output.suffix.lower()
    if suffix not in _WRITERS:
        raise UserInputError(f"Cannot write {output}: let its name end in one of {', '.join(_WRITERS)}.")
    if suffix == ".xlsx" and rows > EXCEL_ROWS:
        raise UserInputError(
            f"A sheet holds {EXCEL_ROWS:,} complaints, not {rows:,}; write a .parquet or .csv file instead."
        )
    if not output.parent.is_dir():
        raise UserInputError(
            f"Cannot write {output}: the folder {output.parent} does not exist; create it first."
        )
    if output.is_dir():
        raise UserInputError(f"{output} is a folder; name a file.")
    if output.exists() and not overwrite:
        raise UserInputError(f"{output} exists already; name another file or add --overwrite.")


def _fetch(
    query: _Query, server: _Server, pages: _Pages, rows: int, page_rows: int, on_progress: Progress | None
) -> None:
    """Add pages until there are ``rows`` or the server has no more.

    A page may be shorter than asked for, so only an empty one is taken for the end.
    """

    def report() -> None:
        if on_progress is not None and pages.files:
            on_progress(min(pages.rows, rows), min(pages.available, rows))

    report()
    while pages.rows < rows:
        page = _parse(server.get(query.url(min(page_rows, rows), pages.cursor)), query.base_url)
        if page is None:
            return
        if page.cursor == pages.cursor:
            raise UserInputError(f"{query.base_url} sends the same page again and again; try it another day.")
        pages.add(page)
        report()


# --- the question ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Query:
    base_url: str
    since: date
    until: date | None

    def __str__(self) -> str:
        return f"since {self.since}" + (f" until {self.until}" if self.until else "")

    def url(self, size: int, cursor: str | None) -> str:
        parameters = {
            "date_received_min": self.since.isoformat(),
            "has_narrative": "true",
            "sort": "created_date_desc",
            "size": str(size),
            "no_aggs": "true",
            "no_highlight": "true",
        }
        if self.until is not None:
            parameters["date_received_max"] = self.until.isoformat()
        if cursor is not None:
            parameters["search_after"] = cursor
        return f"{self.base_url}?{urllib.parse.urlencode(parameters)}"

    def fingerprint(self) -> str:
        """Same for queries whose pages fit together; the number of rows asked for may change between runs."""
        question = [self.url(0, None), list(COLUMNS.items())]
        return hashlib.sha256(json.dumps(question).encode()).hexdigest()


# --- the answer ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Page:
    """Complaints with a narrative, where the next page begins, and how many match in the whole database."""

    rows: list[Row]
    cursor: str
    available: int


def _parse(body: bytes, base_url: str) -> _Page | None:
    """The page in an answer; None if it has no hits."""
    try:
        found = json.loads(body)["hits"]
        total, hits = found["total"], found["hits"]
        if not hits:
            return None
        rows = [_row(hit["_source"]) for hit in hits]
        cursor = "_".join(str(value) for value in hits[-1]["sort"])
        available = int(total["value"] if isinstance(total, dict) else total)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        start = body[:80].decode("utf-8", "replace")
        raise UserInputError(
            f"{base_url} answers in an unknown form (it begins {start!r}); try again later: "
            "what was downloaded is kept."
        ) from None
    return _Page([row for row in rows if (row[NARRATIVE] or "").strip()], cursor, available)


def _row(source: dict[str, Any]) -> Row:
    row = {name: _text(source.get(key)) for key, name in COLUMNS.items()}
    for name in ("Date received", "Date sent to company"):
        row[name] = (row[name] or "")[:10] or None  # 2024-05-31T12:00:00-05:00
    if row[COMPLAINT_ID] is None:
        raise ValueError("a complaint without an id")
    return row


def _text(value: Any) -> str | None:
    """``value`` as text that every format can hold: no half surrogate pairs, no NUL; None if empty."""
    if value is None:
        return None
    return str(value).encode("utf-8", "replace").decode().replace("\0", "") or None


# --- the server ------------------------------------------------------------------------------------------


@dataclass
class _Server:
    """Asks politely: never faster than ``pause_s``, and as late as the server wishes."""

    base_url: str
    pause_s: float
    requests: int = 0
    last_s: float = -math.inf

    def get(self, url: str) -> bytes:
        """The body of a good answer, after at most ``ATTEMPTS`` attempts."""
        fault, wait_s = "", 0.0
        for attempt in range(ATTEMPTS):
            _sleep(max(wait_s, self.last_s + self.pause_s - time.monotonic()))
            wait_s = self.pause_s * 2**attempt
            try:
                return self._ask(url)
            except urllib.error.HTTPError as error:
                with error:
                    fault = self._fault(error)
                    wait_s = max(wait_s, self._asked_wait_s(error))
            except (OSError, http.client.HTTPException) as error:
                fault = str(getattr(error, "reason", error)) or type(error).__name__
        raise UserInputError(
            f"{self.base_url} cannot be reached ({fault}); check the network and run the same command again: "
            "it goes on where it stopped."
        )

    def _ask(self, url: str) -> bytes:
        self.last_s = time.monotonic()
        self.requests += 1
        # Whoever does not ask for JSON may get the same as a web page.
        request = urllib.request.Request(
            url, headers={"Accept": "application/json", "User-Agent": "snugtune"}
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            body: bytes = answer.read()
        return body

    def _fault(self, error: urllib.error.HTTPError) -> str:
        """What went wrong if asking again may help; an exception if not."""
        fault = f"HTTP {error.code} {error.reason}".strip()
        if error.code != http.HTTPStatus.TOO_MANY_REQUESTS and error.code < 500:
            raise UserInputError(
                f"{self.base_url} refuses the request ({fault}); what was downloaded is kept."
            )
        return fault

    def _asked_wait_s(self, error: urllib.error.HTTPError) -> float:
        wait_s = _retry_after_s(error.headers.get("Retry-After"))
        if wait_s > LONGEST_WAIT_S:
            raise UserInputError(
                f"{self.base_url} asks to be left alone for {wait_s / 60:.0f} minutes; run the same command "
                "again then: it goes on where it stopped."
            )
        return wait_s


def _retry_after_s(header: str | None) -> float:
    """Seconds in a ``Retry-After`` header, which names seconds or a date (RFC 9110, 10.2.3); else 0."""
    if header is None:
        return 0.0
    if header.strip().isdecimal():
        return float(header)
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return max(0.0, (moment - datetime.now(timezone.utc)).total_seconds())


def _sleep(seconds: float) -> None:
    if seconds > 0:
        time.sleep(seconds)


# --- the pages on disk -----------------------------------------------------------------------------------


@dataclass
class _Pages:
    """The pages of one query in a folder, each a JSON-lines file: a line about the page, then its rows."""

    folder: Path
    fingerprint: str
    files: list[Path] = field(default_factory=list)
    ids: set[str | None] = field(default_factory=set)
    cursor: str | None = None
    available: int = 0

    @classmethod
    def open(cls, folder: Path, fingerprint: str, discard_others: bool) -> _Pages:
        """Take up the pages of an earlier run of the same query."""
        pages = cls(folder, fingerprint)
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise UserInputError(
                f"Cannot write to {folder}: {error.strerror}; choose another output."
            ) from None
        for file in sorted(folder.glob("page-*.jsonl")):
            head, rows = _read_page(file)
            if head["query"] != fingerprint and discard_others:
                pages.remove()
                return cls.open(folder, fingerprint, discard_others)
            if head["query"] != fingerprint:
                raise UserInputError(
                    f"{folder} holds pages of another query; repeat that one to finish it, or discard them "
                    "with --overwrite."
                )
            pages._note(file, _Page(rows, head["cursor"], head["available"]))
        return pages

    @property
    def rows(self) -> int:
        """Complaints in all pages."""
        return len(self.ids)

    def add(self, page: _Page) -> None:
        """Keep ``page``, without complaints that an earlier page has."""
        fresh = [row for row in page.rows if row[COMPLAINT_ID] not in self.ids]
        head = {"query": self.fingerprint, "cursor": page.cursor, "available": page.available}
        file = self.folder / f"page-{len(self.files) + 1:07d}.jsonl"
        write_text(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in (head, *fresh)))
        self._note(file, _Page(fresh, page.cursor, page.available))

    def frames(self, rows: int) -> Iterator[pl.DataFrame]:
        """The first ``rows`` complaints, page by page, all columns text."""
        for file in self.files:
            page = _read_page(file)[1][:rows]
            rows -= len(page)
            yield pl.DataFrame(page, schema=dict.fromkeys(COLUMNS.values(), pl.String))

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder)

    def _note(self, file: Path, page: _Page) -> None:
        self.files.append(file)
        self.ids |= {row[COMPLAINT_ID] for row in page.rows}
        self.cursor, self.available = page.cursor, page.available


def _read_page(file: Path) -> tuple[dict[str, Any], list[Row]]:
    try:
        # Not splitlines(): it would also split at separators that JSON leaves as they are.
        head, *rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
        if not {"query", "cursor", "available"} <= head.keys() or any(
            COMPLAINT_ID not in row for row in rows
        ):
            raise ValueError("not a page")
    except (OSError, ValueError, AttributeError, TypeError):
        raise UserInputError(
            f"{file} is damaged; delete the folder {file.parent} to begin the download anew."
        ) from None
    return head, rows


# --- the table -------------------------------------------------------------------------------------------


def _write(pages: _Pages, rows: int, output: Path) -> int:
    """Write the first ``rows`` complaints; returns how many narratives were cut."""
    with replacing(output) as temporary:
        return _WRITERS[output.suffix.lower()](pages.frames(rows), temporary)


def _write_parquet(frames: Iterator[pl.DataFrame], path: Path) -> int:
    pl.concat(frames).write_parquet(path)
    return 0


def _write_csv(frames: Iterator[pl.DataFrame], path: Path) -> int:
    with path.open("wb") as file:
        for i, frame in enumerate(frames):
            frame.write_csv(file, include_header=i == 0)
    return 0


def _write_json_lines(frames: Iterator[pl.DataFrame], path: Path) -> int:
    with path.open("wb") as file:
        for frame in frames:
            frame.write_ndjson(file)
    return 0


def _write_xlsx(frames: Iterator[pl.DataFrame], path: Path) -> int:
    from xlsxwriter import Workbook

    shortened, line = 0, 1
    with Workbook(path, {"constant_memory": True}) as book:
        sheet = book.add_worksheet("Complaints")
        sheet.write_row(0, 0, list(COLUMNS.values()))
        for frame in frames:
            for row in frame.iter_rows():
                for column, cell in enumerate(row):
                    # Written as a string, a cell that begins with = never computes.
                    sheet.write_string(line, column, cell_text(cell or ""))
                shortened += any(cell_text(cell or "") != (cell or "") for cell in row)
                line += 1
    return shortened


_WRITERS: dict[str, Callable[[Iterator[pl.DataFrame], Path], int]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".jsonl": _write_json_lines,
    ".xlsx": _write_xlsx,
}
