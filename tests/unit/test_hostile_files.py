"""Files made to do harm: bombs, entities, names that lead elsewhere, pickles, and requests to run code.

Each is refused in one sentence; what it would have done leaves a mark that is looked for. The fuzz tests
(``tests/fuzz``) look for what nobody thought of; here is what is known, and what they found, made small.
"""

import contextlib
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import openpyxl
import polars as pl
import pytest
import xlsxwriter
from safetensors.torch import load_file, save_file

from snugtune.config import read_config
from snugtune.data import archive
from snugtune.data.readers import parquet, text
from snugtune.data.table import read_table
from snugtune.errors import ConfigError, SnugtuneError, UserInputError
from snugtune.predict.predictor import Predictor
from trained import write_run
from workbooks import predicted


def refused(call, *arguments):
    with pytest.raises(SnugtuneError) as caught:
        call(*arguments)
    told = str(caught.value)
    assert "\n" not in told
    assert len(told) < 800
    return told


# --- archives --------------------------------------------------------------------------------------------


@pytest.fixture
def book(tmp_path):
    made = openpyxl.Workbook()
    for row in (["text", "n"], ["a", 1], ["b", 2]):
        made.active.append(row)
    made.save(tmp_path / "in.xlsx")
    return tmp_path / "in.xlsx"


@pytest.fixture
def shared(tmp_path):
    """A workbook whose texts are in a list of their own."""
    with xlsxwriter.Workbook(tmp_path / "in.xlsx") as made:
        sheet = made.add_worksheet()
        sheet.write_row(0, 0, ["text", "n"])
        sheet.write_row(1, 0, ["a", 1])
    return tmp_path / "in.xlsx"


def rewritten(path, changes=(), **more):
    """The workbook with parts replaced or added, in the order of the archive."""
    with zipfile.ZipFile(path) as source:
        parts = {name: source.read(name) for name in source.namelist()} | dict(changes) | more
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, part in parts.items():
            target.writestr(name, part)
    return path


def overlapping(path, copies=40):
    """Parts that are each other's data: every entry of the directory points into one stretch of bytes."""
    kernel = zlib.compress(bytes(1 << 20), 9)[2:-4]
    crc, size = zlib.crc32(bytes(1 << 20)), 1 << 20
    local, directory = b"", b""
    for i in range(copies):
        name = b"xl/media/%02d.bin" % i
        fields = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, crc, len(kernel), size, len(name), 0)
        offset = len(local)
        local += b"PK\x03\x04" + fields + name
        directory += (
            b"PK\x01\x02" + struct.pack("<H", 20) + fields + struct.pack("<HHHII", 0, 0, 0, 0, offset) + name
        )
    local += kernel
    end = struct.pack("<HHHHIIH", 0, 0, copies, copies, len(directory), len(local), 0)
    path.write_bytes(local + directory + b"PK\x05\x06" + end)
    return path


def test_parts_that_share_bytes(tmp_path):
    assert "in the same bytes" in refused(read_table, overlapping(tmp_path / "bomb.xlsx"))


def declared(path, name, size):
    """The archive whose directory says that ``name`` unpacks to ``size`` bytes."""
    content = bytearray(path.read_bytes())
    at = content.rindex(name.encode()) - 46
    assert content[at : at + 4] == b"PK\x01\x02"
    content[at + 24 : at + 28] = struct.pack("<I", size)
    path.write_bytes(content)
    return path


def test_four_gigabytes_of_shared_texts(book):
    rewritten(book, {"xl/sharedStrings.xml": b"<sst/>"})
    assert "would unpack to" in refused(read_table, declared(book, "xl/sharedStrings.xml", 2**32 - 2))


def test_texts_that_need_more_memory_than_there_is(shared, monkeypatch):
    monkeypatch.setattr(archive, "_SMALL_BYTES", 64)
    monkeypatch.setattr(archive, "available_memory_bytes", lambda: 100)
    assert "of memory and" in refused(read_table, shared)


BOMBS = """
import resource, sys
from pathlib import Path
from snugtune.data.table import read_table
from snugtune.errors import SnugtuneError
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (192 << 20), resource.RLIM_INFINITY))
for path in sys.argv[1:]:
    try:
        read_table(path)
        print("read", path)
    except SnugtuneError as error:
        print("refused", error)
"""


def test_bombs_are_refused_under_a_limit_of_memory(tmp_path, book):
    """Half a gigabyte in parts that matter, declared truly or as ten bytes; in one cell; in another zip."""
    zeros = b"<sst>" + bytes(300 << 20)
    inner = tmp_path / "inner.zip"
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("zeros", zeros)
    paths = []
    for i, (part, content) in enumerate(
        [("xl/sharedStrings.xml", zeros), ("xl/worksheets/sheet1.xml", zeros), ("xl/styles.xml", zeros)]
    ):
        path = tmp_path / f"{i}.xlsx"
        shutil.copy(book, path)
        rewritten(path, {part: content})
        shutil.copy(path, tmp_path / f"lie{i}.xlsx")
        paths += [path, declared(tmp_path / f"lie{i}.xlsx", part, 10)]
    nested = tmp_path / "nested.xlsx"
    shutil.copy(inner, nested)
    paths.append(nested)
    paths += [tmp_path / "line.csv", tmp_path / "line.jsonl"]
    (tmp_path / "line.csv").write_bytes(b"text,label\n" + b"a" * (100 << 20))
    (tmp_path / "line.jsonl").write_bytes(b"[" * (100 << 20))
    done = subprocess.run([sys.executable, "-c", BOMBS, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    told = done.stdout.splitlines()
    assert len(told) == len(paths)
    assert all(line.startswith("refused") for line in told), told


def test_entities_under_any_name(shared):
    """Which part is XML is said in [Content_Types].xml and the relations, not by the name of its file."""
    book = shared
    secret = book.parent / "secret.txt"
    secret.write_text("secret", encoding="utf-8")
    with zipfile.ZipFile(book) as source:
        types = source.read("[Content_Types].xml").replace(b"sharedStrings.xml", b"texts.bin")
        relations = source.read("xl/_rels/workbook.xml.rels").replace(b"sharedStrings.xml", b"texts.bin")
        texts = source.read("xl/sharedStrings.xml")
    texts = texts.replace(b"<sst", f'<!DOCTYPE sst [<!ENTITY x SYSTEM "{secret.as_uri()}">]><sst'.encode(), 1)
    texts = texts.replace(b"<t>a</t>", b"<t>&x;</t>")
    rewritten(
        book, {"[Content_Types].xml": types, "xl/_rels/workbook.xml.rels": relations, "xl/texts.bin": texts}
    )
    assert "document type declaration" in refused(read_table, book)
    refused(predicted, book, book.parent / "out.xlsx")
    assert not (book.parent / "out.xlsx").exists()


def test_billion_laughs(book):
    laughs = '<!DOCTYPE sst [<!ENTITY a "ha">' + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True)
    )
    with zipfile.ZipFile(book) as source:
        sheet = source.read("xl/worksheets/sheet1.xml").replace(
            b"<worksheet", f"{laughs}]><worksheet".encode(), 1
        )
    started = time.process_time()
    assert "document type declaration" in refused(
        read_table, rewritten(book, {"xl/worksheets/sheet1.xml": sheet})
    )
    assert time.process_time() - started < 60  # expanded, it would not end


@pytest.mark.parametrize("name", ["../../CANARY", "/etc/CANARY", "xl/../../CANARY", "xl//CANARY"])
def test_part_names_that_lead_out(book, name):
    rewritten(book, {name: b"x"})
    assert "leads out of it" in refused(read_table, book)


# --- found by the fuzz tests, made small -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "old", "new"),
    [
        ("xl/workbook.xml", b'name="Sheet"', b'name="Other"'),
        ("xl/workbook.xml", b"sheetId=", b"sheetid="),
        ("xl/_rels/workbook.xml.rels", b" Id=", b" id="),
        ("xl/styles.xml", b"<fonts", b"<fonts <"),
        ("[Content_Types].xml", b"<Types", b"<types"),
    ],
)
def test_damage_of_a_workbook_is_told(book, part, old, new):
    with zipfile.ZipFile(book) as source:
        content = source.read(part)
    assert old in content
    rewritten(book, {part: content.replace(old, new)})
    with contextlib.suppress(UserInputError):  # some of it no reader minds
        predicted(book, book.parent / "out.xlsx")
        assert (book.parent / "out.xlsx").exists()
        return
    assert not (book.parent / "out.xlsx").exists()


def test_a_checksum_that_is_wrong_is_told_before_the_work(book):
    rewritten(book, {"xl/media/a.bin": os.urandom(100)})
    content = bytearray(book.read_bytes())
    content[content.index(b"xl/media/a.bin") + 20] ^= 1
    book.write_bytes(content)
    refused(predicted, book, book.parent / "out.xlsx")
    assert not (book.parent / "out.xlsx").exists()


def test_a_fault_of_the_model_is_no_damage_of_the_workbook(book):
    from functools import partial

    from snugtune.predict.predictor import ADDED_COLUMNS
    from snugtune.predict.workbook.roundtrip import Roundtrip
    from snugtune.predict.write import write_tables

    def frames():
        raise KeyError("a fault of ours")
        yield

    trip = Roundtrip.plan(book, ADDED_COLUMNS)
    with pytest.raises(KeyError, match="a fault of ours"):
        write_tables([], book.parent / "out.xlsx", writer=lambda _, path: partial(trip.write, frames())(path))


def test_a_reader_that_dies_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_TRIAL", "import os; os.abort()")
    path = tmp_path / "a.parquet"
    pl.DataFrame({"text": ["a"]}).write_parquet(path)
    assert "damaged Parquet file" in refused(read_table, path)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_line_without_end(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(text, "LONGEST_LINE", 100)
    path = tmp_path / f"a.{suffix}"
    path.write_text("text\n" + "a" * 101, encoding="utf-8")
    assert "more than 100 characters" in refused(read_table, path) or suffix == "jsonl"


def test_a_hundred_thousand_columns_of_one_name(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(",".join(f"c{i // 2}" for i in range(100_000)) + "\n", encoding="utf-8")
    assert "more than one column named" in refused(read_table, path)


# --- configurations --------------------------------------------------------------------------------------

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("r: 16\nlora_alpha: 2\nr: 8\n", "sets r twice, in lines 1 and 3"),
        ("{r: 1, r: 2}", "sets r twice"),
        ("text: [" * 3_000, "not valid YAML"),
        ("seed: " + "9" * 5_000, "not valid YAML"),
        ("seed: !!timestamp x", "not valid YAML"),
        ("r: !!python/object/apply:os.system ['touch CANARY']", "not valid YAML near line 1"),
        ("#" * (1 << 20) + "\n", "more than 1 MiB"),
    ],
)
def test_configurations(tmp_path, yaml, words):
    path = tmp_path / "c.yaml"
    path.write_text(yaml, encoding="utf-8")
    assert words in refused(read_config, path)


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        (BOMB + "text: *j\n", "text.0=[[[...]"),
        ("text: &t [*t]\n", "text"),
        ("trust_remote_code: true\n", "asks for a model's own code to be run, which snugtune never does"),
        ("text: [" + "1, " * 5_000 + "]\n", "and 4,980 more"),
        ("model: '" + "x" * 9_000 + "'\nr: '" + "x" * 9_000 + "'\n", "r='xxx"),
    ],
)
def test_settings(tmp_path, yaml, words):
    from snugtune.config import make_config

    path = tmp_path / "c.yaml"
    path.write_text(yaml, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        make_config({"train": "a.csv"} | read_config(path))
    assert words in str(caught.value)
    assert len(str(caught.value)) < 8_000


# --- runs and models -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with an adapter, and one without."""
    folder = tmp_path_factory.mktemp("runs")
    return write_run(folder / "a", "bert"), write_run(folder / "b", "roberta", method="full")


@pytest.fixture
def run(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(made[0], tmp_path / "run"))


@pytest.fixture
def full(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(made[1], tmp_path / "run"))


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


class Hostile:
    def __reduce__(self):
        return (exec, ("open('CANARY', 'w').close()",))


CODE = """
open("CANARY", "w").close()
from transformers import BertConfig as C, BertForSequenceClassification as M, BertTokenizerFast as T
"""
AUTO_MAP = {
    "AutoConfig": "code.C",
    "AutoModelForSequenceClassification": "code.M",
    "AutoTokenizer": ["code.T", "code.T"],
}


def test_pickled_adapters_are_not_opened(run):
    (run / "adapter" / "adapter_model.safetensors").unlink()
    (run / "adapter" / "adapter_model.bin").write_bytes(pickle.dumps(Hostile()))
    assert "only pickled weights, which snugtune never opens" in refused(Predictor.load, run)
    assert not Path("CANARY").exists()


def test_pickled_models_are_not_opened(full):
    (full / "model" / "model.safetensors").unlink()
    (full / "model" / "pytorch_model.bin").write_bytes(pickle.dumps(Hostile()))
    refused(Predictor.load, full)
    assert not Path("CANARY").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "adapter_config.json"])
@pytest.mark.parametrize("asks", [{"auto_map": AUTO_MAP}, {"trust_remote_code": True}])
def test_code_of_a_run_is_not_run(run, name, asks):
    (run / "adapter" / "code.py").write_text(CODE, encoding="utf-8")
    change(run / "adapter" / name, **asks)
    assert "asks to run its own code" in refused(Predictor.load, run)
    assert not Path("CANARY").exists()


def test_code_of_a_base_model_is_not_run(run):
    adapter = run / "adapter" / "adapter_config.json"
    base = Path(
        shutil.copytree(
            json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"], run / "base"
        )
    )
    (base / "code.py").write_text(CODE, encoding="utf-8")
    change(base / "config.json", auto_map=AUTO_MAP)
    change(adapter, base_model_name_or_path=str(base.resolve()))
    assert "asks to run its own code" in refused(Predictor.load, run)
    assert not Path("CANARY").exists()


def test_a_request_for_code_is_not_handed_on(made, tmp_path):
    """A run made from a model with such a request does not hold it: its code was never run."""
    from snugtune.model.artifact import load_model, save_model

    model, tokenizer = load_model(made[1] / "model", dtype=None, attn_implementation="sdpa")
    model.config.auto_map = AUTO_MAP
    save_model(model, tokenizer, tmp_path, 16)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))


def test_adapters_of_another_model(run, made):
    path = run / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    foreign = {name.replace("layer.0", "layer.7"): tensor for name, tensor in tensors.items()}
    save_file(foreign, path)
    assert "is not one of its base model" in refused(Predictor.load, run)
    save_file({name: tensor for name, tensor in tensors.items() if "lora_A" not in name}, path)
    assert "lacks" in refused(Predictor.load, run)
    save_file({name: tensor * float("nan") for name, tensor in tensors.items()}, path)
    assert "no numbers" in refused(Predictor.load(run).probabilities, ["card stolen"])


def test_models_that_lack_weights(full):
    path = full / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(name for name in tensors if "layer.1" in name))
    save_file(tensors, path, {"format": "pt"})
    assert "lacks 1 of its tensors" in refused(Predictor.load, full)


@pytest.mark.parametrize(
    "where", ["../elsewhere", "../../..", "relative/folder/deep", "//host/share", "a/../../b", "", None, 7]
)
def test_base_models_that_lead_elsewhere(run, where):
    change(run / "adapter" / "adapter_config.json", base_model_name_or_path=where)
    assert "base model" in refused(Predictor.load, run)


@pytest.mark.parametrize("folder", ["../other/adapter", "/etc", "adapter/..", "", None])
def test_a_model_outside_of_its_run(run, folder):
    change(run / "run.json", model={"folder": folder, "max_length": 10})
    assert "is not of a finished fit: model.folder" in refused(Predictor.load, run)


def decision(**mixture):
    return {"mixture": mixture, "confidence_threshold": 0.5, "precision_target": 0.9}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"labels": []}, "labels"),
        ({"labels": ["a", "a", "b"]}, "a label is there twice"),
        ({"labels": ["a", "b"]}, "knows 3 classes where its run.json names 2 labels"),
        ({"labels": "abc"}, "labels"),
        ({"labels": [1, 2, 3]}, "labels.0"),
        ({"label_aliases": {"x": "nowhere"}}, "which is no label"),
        ({"columns": {"text": "text", "label": "label"}}, "columns.text"),
        ({"label_levels": {"Product": ["a"]}}, "label_levels"),
        ({"long_texts": {"chosen": "gpt2"}}, "long_texts.chosen"),
        ({"decision": {}}, "its decision cannot be used"),
        ({"decision": decision(weight="a")}, "decision"),
        ({"decision": decision(temperature=0)}, "decision"),
        ({"decision": decision(weight=0.5)}, "baseline"),
    ],
)  # fmt: skip
def test_records(run, fields, words):
    change(run / "run.json", **fields)
    assert words in refused(Predictor.load, run)


@pytest.mark.parametrize("content", ["[]", "null", "1", "[" * 100_000, "{", "\x00"])
@pytest.mark.parametrize(
    "name", ["run.json", "adapter/config.json", "adapter/adapter_config.json", "adapter/tokenizer.json"]
)
def test_json_that_is_no_record(run, name, content):
    (run / name).write_text(content, encoding="utf-8")
    refused(Predictor.load, run)


def test_a_header_that_lies_about_its_size(run):
    path = run / "adapter" / "adapter_model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**63) + path.read_bytes()[8:])
    assert "cannot be loaded" in refused(Predictor.load, run)


def test_texts_without_a_token(tmp_path):
    """Of empty texts alone, a decoder's tokenizer makes no token at all."""
    predictor = Predictor.load(write_run(tmp_path, "gpt2"))
    assert predictor.probabilities(["", ""]).shape == (2, 3)


def test_a_terminal_is_shown_and_not_told(tmp_path):
    """A name of a column that would clear the screen, in the sentence that refuses it."""
    path = tmp_path / "a.csv"
    path.write_text("te\x1b[2Jxt,te\x1b[2Jxt\na,b\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "snugtune", "audit", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "\x1b" not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
