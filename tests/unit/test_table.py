import polars as pl
import pytest

from snugtune.data.table import iter_tables, read_table
from snugtune.errors import UserInputError

FRAME = pl.DataFrame({"text": ["one, two", "drei\nvier", "ünf; =1+1"], "label": ["a", "b", "a"]})


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_delimiter_and_bom_are_found(tmp_path, separator, encoding):
    path = tmp_path / "a.csv"
    path.write_bytes(FRAME.write_csv(separator=separator).encode(encoding))
    assert read_table(path).frame.equals(FRAME)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".xlsx"])
def test_other_formats(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    {".parquet": FRAME.write_parquet, ".jsonl": FRAME.write_ndjson, ".xlsx": FRAME.write_excel}[suffix](path)
    assert read_table(path).frame.equals(FRAME)
    batches = list(iter_tables(path, rows_per_batch=2))
    assert [frame.height for frame in batches] == [2, 1]
    assert pl.concat(batches).equals(FRAME)


def test_a_named_encoding_is_used_and_an_unnamed_one_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\nGrüße,a\n".encode("cp1252"))
    with pytest.raises(UserInputError, match="--encoding cp1252"):
        read_table(path)
    assert read_table(path, encoding="cp1252").frame["text"].to_list() == ["Grüße"]
    with pytest.raises(UserInputError, match="no encoding 'klingon'"):
        read_table(path, encoding="klingon")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"text,label\n", "no rows"),
        ("a.csv", b"text,label\na,b\na,b,c\n", "Row 3 .* has 3 cells"),
        ("a.csv", b"text,text\na,b\n", "several columns named 'text'"),
        ("a.xlsx", b"text,label\na,b\n", "not a whole .xlsx workbook"),
        ("a.xlsx", b"\xd0\xcf\x11\xe0\xa1\xb1", "encrypted or an old .xls"),
        ("a.parquet", b"PAR1nonsense", "not a whole Parquet file"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "Line 2 .* is not valid JSON"),
        ("a.jsonl", b"[1]\n", "Line 1 .* is not a JSON object"),
        ("a.pdf", b"x", "no known kind"),
    ],
)
def test_broken_files_are_explained(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserInputError, match=words):
        read_table(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserInputError, match="no file"):
        read_table(tmp_path / "a.csv")
    with pytest.raises(UserInputError, match="is a folder"):
        read_table(tmp_path)


def test_titles_above_the_header_are_skipped_and_sheets_named(tmp_path):
    import openpyxl

    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Data"
    for row in (["Complaints of May"], [], ["text", "label"], ["hello", "a"], [None, None], ["bye", 7]):
        sheet.append(row)
    book.save(tmp_path / "a.xlsx")
    frame = read_table(tmp_path / "a.xlsx", sheet="Data").frame
    assert frame.to_dict(as_series=False) == {"text": ["hello", "bye"], "label": ["a", "7"]}
    with pytest.raises(UserInputError, match="no sheet 'Dat'; its sheets are: Data"):
        read_table(tmp_path / "a.xlsx", sheet="Dat")
