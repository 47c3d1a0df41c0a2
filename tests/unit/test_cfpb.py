"""The download against a local server that speaks the schema of the CFPB's search API."""

import json
import socket
import threading
from datetime import date
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import polars as pl
import pytest
from typer.testing import CliRunner

from snugtune.cli.data import app
from snugtune.data.cfpb import COLUMNS, download
from snugtune.data.table import read_table
from snugtune.errors import RunInterruptedError, UserInputError

SINCE = date(2024, 1, 1)


def complaint(number, **changes):
    """The ``number``-th hit of the database; two complaints share each day."""
    day = f"2024-03-{28 - number // 2:02d}"
    source = {
        "complaint_id": str(9000 - number),
        "complaint_what_happened": f'Text {number}, with "quotes"\nand ünïcode',
        "date_received": f"{day}T12:00:00-05:00",
        "date_sent_to_company": f"{day}T12:00:00-05:00",
        "product": "Mortgage",
        "issue": "Fees",
        "company": "Invented Bank",
        "state": "TX",
        "zip_code": "01234",
        "tags": None,
        "submitted_via": "Web",
        "timely": "Yes",
        "has_narrative": True,
    }
    return {
        "_id": str(9000 - number),
        "_source": source | changes,
        "sort": [10**12 - number // 2, 9000 - number],
    }


class Database:
    """A search API over ``hits``; ``faults`` are served, one per request, before anything else."""

    def __init__(self):
        self.hits = [complaint(number) for number in range(25)]
        self.faults = []
        self.queries = []
        self.served = []
        self.dies_after = None
        self.largest_page = 10_000
        self.ignores_cursor = False
        self.url = ""

    def answer(self, query):
        start = 0
        if "search_after" in query and not self.ignores_cursor:
            cursors = ["_".join(map(str, hit["sort"])) for hit in self.hits]
            start = cursors.index(query["search_after"]) + 1
        page = self.hits[start : start + min(int(query["size"]), self.largest_page)]
        self.served += [hit["_id"] for hit in page]
        return {"hits": {"total": {"value": len(self.hits), "relation": "eq"}, "hits": page}, "_meta": {}}

    def handle(self, handler):
        query = {key: values[0] for key, values in parse_qs(urlsplit(handler.path).query).items()}
        self.queries.append(query)
        if self.dies_after is not None and len(self.queries) > self.dies_after:
            handler.close_connection = True
            return
        status, headers, body = self.faults.pop(0) if self.faults else (200, {}, None)
        content = json.dumps(self.answer(query)).encode() if body is None else body
        handler.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)


@pytest.fixture
def database():
    database = Database()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            database.handle(self)

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        database.url = f"http://127.0.0.1:{server.server_port}/search/api/v1/"
        yield database
        server.shutdown()
        thread.join()


@pytest.fixture
def get(database, tmp_path):
    """``download`` from the database without pauses."""

    def call(rows=25, output=tmp_path / "complaints.parquet", **options):
        settings = {"since": SINCE, "page_rows": 10, "pause_s": 0.0, "base_url": database.url} | options
        return download(rows=rows, output=output, **settings)

    return call


@pytest.fixture
def waits(monkeypatch):
    """Seconds slept, which no longer take time."""
    seconds = []
    monkeypatch.setattr("snugtune.data.cfpb.time.sleep", seconds.append)
    return seconds


def ids(path):
    return read_table(path).frame["Complaint ID"].to_list()


def expected_ids(*numbers):
    return [str(9000 - number) for number in numbers]


def test_pages_are_put_together_in_order(database, get, tmp_path):
    seen = []
    result = get(rows=23, until=date(2024, 3, 28), on_progress=lambda *counts: seen.append(counts))
    assert (result.rows, result.available, result.requests, result.resumed_rows) == (23, 25, 3, 0)
    assert seen == [(10, 23), (20, 23), (23, 23)]
    assert ids(result.path) == expected_ids(*range(23))
    assert list(tmp_path.iterdir()) == [result.path]
    first, second, _ = database.queries
    assert first == {
        "date_received_min": "2024-01-01", "date_received_max": "2024-03-28", "has_narrative": "true",
        "sort": "created_date_desc", "size": "10", "no_aggs": "true", "no_highlight": "true",
    }  # fmt: skip
    assert second == first | {"search_after": "999999999996_8991"}


def test_columns_are_those_of_the_csv_export(get):
    frame = pl.read_parquet(get(rows=1).path)
    assert frame.columns == list(COLUMNS.values())
    assert set(frame.dtypes) == {pl.String}
    row = frame.row(0, named=True)
    assert row["Date received"] == row["Date sent to company"] == "2024-03-28"
    assert row["Consumer complaint narrative"] == 'Text 0, with "quotes"\nand ünïcode'
    assert (row["ZIP code"], row["Tags"], row["Sub-issue"]) == ("01234", None, None)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".xlsx"])
def test_every_format_holds_the_same_table(get, tmp_path, suffix):
    parquet = pl.read_parquet(get().path)
    path = get(output=tmp_path / f"complaints{suffix}").path
    frame = read_table(path).frame
    kept = [column for column in parquet.columns if column in frame.columns]
    assert frame.select(kept).equals(parquet.select(kept))
    assert all(parquet[column].null_count() == 25 for column in set(parquet.columns) - set(kept))


def test_a_workbook_says_what_it_cut_and_computes_nothing(database, get, tmp_path):
    database.hits[0]["_source"]["complaint_what_happened"] = "x" * 40_000
    database.hits[1]["_source"]["complaint_what_happened"] = "=1+1"
    database.hits[2]["_source"]["complaint_what_happened"] = "\N{PILE OF POO}" * 20_000  # two units each
    result = get(output=tmp_path / "a.xlsx")
    assert result.shortened == 2
    texts = read_table(result.path).frame["Consumer complaint narrative"]
    assert texts[0] == "x" * 32_767
    assert texts[1] == "=1+1"
    assert texts[2] == "\N{PILE OF POO}" * 16_383


def test_shorter_pages_than_asked_for_are_not_taken_for_the_end(database, get):
    database.largest_page = 4
    result = get(rows=1000)
    assert result.rows == 25
    assert ids(result.path) == expected_ids(*range(25))


def test_rows_without_a_narrative_are_left_out(database, get):
    for number, text in {0: None, 3: "", 12: " \n"}.items():
        database.hits[number] = complaint(number, complaint_what_happened=text)
    del database.hits[24]["_source"]["complaint_what_happened"]
    result = get()
    assert ids(result.path) == expected_ids(*(number for number in range(24) if number not in (0, 3, 12)))


def test_a_download_goes_on_where_a_killed_server_stopped_it(database, get, tmp_path):
    database.dies_after = 2
    with pytest.raises(UserInputError, match=r"cannot be reached .* goes on where it stopped"):
        get()
    assert [path.name for path in tmp_path.iterdir()] == ["complaints.parquet.part"]

    database.dies_after = None
    seen = []
    result = get(on_progress=lambda *counts: seen.append(counts))
    assert seen == [(20, 25), (25, 25)]
    assert (result.resumed_rows, result.requests) == (20, 1)
    assert ids(result.path) == expected_ids(*range(25)) == database.served
    assert list(tmp_path.iterdir()) == [result.path]


def test_pages_of_another_query_are_not_mixed_in(database, get):
    database.dies_after = 1
    with pytest.raises(UserInputError, match="cannot be reached"):
        get()
    database.dies_after = None
    with pytest.raises(UserInputError, match="holds pages of another query"):
        get(since=date(2024, 2, 1))
    assert get(since=date(2024, 2, 1), overwrite=True).resumed_rows == 0


def test_a_damaged_page_is_named(database, get, tmp_path):
    database.dies_after = 1
    with pytest.raises(UserInputError, match="cannot be reached"):
        get()
    page = tmp_path / "complaints.parquet.part" / "page-0000001.jsonl"
    page.write_text(page.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    with pytest.raises(UserInputError, match=r"page-0000001.jsonl is damaged; delete the folder"):
        get()


def test_unusual_line_separators_survive_a_resumed_download(database, get):
    text = "one\u2028two\x85three\x0bfour\r\nfive"
    database.hits[0]["_source"]["complaint_what_happened"] = text
    database.dies_after = 1
    with pytest.raises(UserInputError, match="cannot be reached"):
        get()
    database.dies_after = None
    assert pl.read_parquet(get().path)["Consumer complaint narrative"][0] == text


@pytest.mark.parametrize("status", [429, 503])
def test_the_server_is_given_the_time_it_asks_for(database, get, waits, status):
    database.faults = [(status, {"Retry-After": "7"}, b""), (status, {"Retry-After": formatdate(0)}, b"")]
    result = get(rows=10, pause_s=2.0)
    assert (result.rows, result.requests) == (10, 3)
    assert waits[0] == 7
    assert waits[1] == 4  # a date long past asks for nothing; the second failure waits twice the pause


def test_a_server_that_wants_an_hour_is_left_alone(database, get, waits):
    database.faults = [(429, {"Retry-After": "3600"}, b"")]
    with pytest.raises(UserInputError, match="left alone for 60 minutes"):
        get()
    assert waits == []


def test_requests_keep_their_distance(get, waits):
    get(pause_s=3.0)
    assert len(waits) == 2
    assert all(2.0 < wait <= 3.0 for wait in waits)


def test_failures_are_retried_ever_more_slowly_and_then_reported(database, get, waits):
    database.faults = [(500, {}, b"")] * 6
    with pytest.raises(UserInputError, match=r"cannot be reached \(HTTP 500"):
        get(pause_s=1.0)
    assert waits == [1, 2, 4, 8, 16]


def test_a_refusal_is_not_repeated(database, get):
    database.faults = [(403, {}, b"")]
    with pytest.raises(UserInputError, match=r"refuses the request \(HTTP 403 Forbidden\)"):
        get()
    assert len(database.queries) == 1


def test_an_unreachable_server_is_reported(get):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        with pytest.raises(UserInputError, match=r"cannot be reached \(.*refused"):
            get(base_url=url)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>Down for maintenance</html>",
        b'{"hits": {"total": 3, "hi',
        b"[]",
        b'{"hits": null}',
        b'{"hits": {"total": 1, "hits": [{"_source": {"complaint_id": "1"}}]}}',
        b'{"hits": {"total": 1, "hits": [{"_source": {}, "sort": [1, 2]}]}}',
        b'{"hits": {"total": 1, "hits": [{"_source": null, "sort": [1, 2]}]}}',
        b"\xff\xfe\x00",
    ],
)
def test_an_unknown_answer_is_shown(database, get, tmp_path, body):
    database.faults = [(200, {}, body)]
    with pytest.raises(UserInputError, match="answers in an unknown form"):
        get()
    assert not (tmp_path / "complaints.parquet").exists()


def test_a_server_that_repeats_itself_does_not_hold_us_for_ever(database, get):
    database.ignores_cursor = True
    with pytest.raises(UserInputError, match="same page again and again"):
        get()


def test_nothing_found_is_an_error_and_leaves_nothing(database, get, tmp_path):
    database.hits = []
    with pytest.raises(UserInputError, match="no complaints with a narrative since 2024-01-01"):
        get()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rows": 0}, "rows must be 1 or more"),
        ({"page_rows": 0}, "A page has 1 to 10,000 rows"),
        ({"pause_s": -1.0}, "pause between requests"),
        ({"pause_s": float("nan")}, "pause between requests"),
        ({"until": date(2023, 1, 1)}, "2024-01-01, is later than the last, 2023-01-01"),
        ({"base_url": "file:///etc/hostname"}, "must begin with https://"),
        ({"output": "a.pdf"}, r"one of \.parquet, \.csv"),
        ({"output": "nowhere/a.csv"}, "nowhere does not exist"),
        ({"output": "folder.csv"}, "is a folder"),
        ({"output": "a.xlsx", "rows": 2_000_000}, "A sheet holds 1,048,575"),
    ],
)
def test_bad_arguments_are_refused_before_any_request(database, get, tmp_path, options, words):
    (tmp_path / "folder.csv").mkdir()
    if "output" in options:
        options = options | {"output": tmp_path / options["output"]}
    with pytest.raises(UserInputError, match=words):
        get(**options)
    assert database.queries == []


def test_an_existing_file_is_replaced_only_if_told_so(database, get, tmp_path):
    path = tmp_path / "complaints.parquet"
    path.write_text("precious", encoding="utf-8")
    with pytest.raises(UserInputError, match="exists already"):
        get()
    assert path.read_text(encoding="utf-8") == "precious"
    assert database.queries == []
    get(overwrite=True)
    assert len(ids(path)) == 25


def test_the_command_prints_json_alone(database, tmp_path, waits):
    path = tmp_path / "a.csv"
    arguments = ["cfpb", "--since", "2024-01-01", "--rows", "30", "-o", str(path), "--base-url", database.url]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {
        "path": str(path), "rows": 25, "available": 25, "resumed_rows": 0, "requests": 2, "shortened": 0,
    }  # fmt: skip
    again = CliRunner().invoke(app, [*arguments, "--overwrite"])
    assert "25 complaints of 25 that match" in again.stdout
    assert "30 were asked for" in again.stdout


def test_the_command_refuses_a_wrong_day(database, tmp_path):
    arguments = ["cfpb", "--rows", "3", "-o", str(tmp_path / "a.csv"), "--base-url", database.url]
    for day in ("yesterday", "2024-02-30", "01/31/2024"):
        done = CliRunner().invoke(app, [*arguments, "--since", day])
        assert isinstance(done.exception, UserInputError)
        assert day in str(done.exception)
    assert database.queries == []


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(**options):
        raise KeyboardInterrupt

    monkeypatch.setattr("snugtune.data.cfpb.download", interrupted)
    arguments = ["cfpb", "--since", "2024-01-01", "--rows", "3", "-o", str(tmp_path / "a.csv")]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, RunInterruptedError)
    assert "the same command goes on" in str(done.exception)
