"""``snugtune predict`` and ``evaluate`` as processes: pipes, refusals, Ctrl-C."""

import json
import signal
import subprocess
import sys
import time

import polars as pl
import pytest

import tiny

ADDED = ["predicted_label", "confidence", "needs_review", "second_label", "third_label"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return tiny.write_run(folder / "run", tiny.write_model(folder / "model"))


@pytest.fixture
def source(tmp_path):
    texts, labels = tiny.texts_and_labels(30, seed=3)
    path = tmp_path / "in.csv"
    pl.DataFrame({"text": texts, "label": labels}).write_csv(path, separator=";")
    return path


def command(*arguments):
    return [sys.executable, "-m", "snugtune", *map(str, arguments)]


def snugtune(*arguments, code=0, stdin=None):
    done = subprocess.run(command(*arguments), input=stdin, capture_output=True, check=False)
    assert done.returncode == code, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    return done


def test_a_pipe_in_and_out(run, source):
    done = snugtune("predict", run, "-", "-o", "-", stdin=source.read_bytes())
    frame = pl.read_csv(done.stdout)
    assert frame.columns == ["text", "label", *ADDED]
    assert frame["predicted_label"].to_list() == frame["label"].to_list()
    assert b"30 rows" in done.stderr


def test_json_is_all_of_standard_output(run, source, tmp_path):
    done = snugtune("predict", run, source, "-o", tmp_path / "out.xlsx", "--json", "--dtype", "bfloat16")
    assert json.loads(done.stdout)["rows"] == 30
    done = snugtune("evaluate", run, source, "--json", "--delimiter", ";", "-o", tmp_path / "rows.csv")
    result = json.loads(done.stdout)
    assert result["metrics"]["accuracy"] == 1.0
    assert pl.read_csv(tmp_path / "rows.csv", separator=";")["correct"].all()


def test_evaluation_in_words(run, source):
    lines = source.read_text().splitlines()
    lines[1] = lines[1].replace("Card", "Fees")
    lines[2] = lines[2].replace(";Fees", ";Elsewhere [x]")
    lines[3] = lines[3].replace(";Loan", ";")
    done = snugtune("evaluate", run, "-", stdin="\n".join(lines).encode())
    told = done.stdout.decode()
    for words in (
        "1 rows have no label", "'Elsewhere [x]'", "95 % interval", "F1 macro", "macro", "weighted", "micro",
        "support", "most frequent mistakes", "need no review",
    ):  # fmt: skip
        assert words in told, told


def test_refusals_cost_no_model(run, source, tmp_path):
    there = tmp_path / "there.csv"
    there.write_text("mine")
    for arguments, words in (
        (["-o", there], "already exists; choose another --output or add --overwrite"),
        (["-o", tmp_path / "nowhere" / "out.csv"], "does not exist; create it first"),
        (["-o", "-", "--json"], "drop one"),
    ):
        done = snugtune("predict", tmp_path / "no-run", source, *arguments, code=2)
        assert words in done.stderr.decode()
        assert len(done.stderr.splitlines()) == 1
    assert there.read_text() == "mine"


def test_faults_of_a_pipe_are_named_as_such(run):
    done = snugtune("predict", run, "-", "-o", "-", stdin=b"text,label\n", code=2)
    assert done.stderr.decode().strip().startswith("Standard input has a header but no rows")


def test_ctrl_c_leaves_nothing(run, tmp_path):
    source = tmp_path / "in.parquet"
    texts, _ = tiny.texts_and_labels(3)
    pl.DataFrame({"text": texts}).select(pl.col("text").repeat_by(30_000).explode()).write_parquet(source)
    with subprocess.Popen(
        command("predict", run, source, "-o", tmp_path / "out.xlsx"), stderr=subprocess.PIPE
    ) as process:
        begun = time.monotonic()
        while not list(tmp_path.glob(".out-*")) and process.poll() is None:
            assert time.monotonic() - begun < 300
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 130, errors.decode()
    assert errors.decode().rstrip().endswith("Interrupted.")
    assert b"Traceback" not in errors
    assert list(tmp_path.iterdir()) == [source]


def test_a_reader_that_has_seen_enough(run, tmp_path):
    """As with ``| head``: no traceback."""
    source = tmp_path / "in.csv"
    source.write_text("text,notes\n" + f"card stolen,{'x' * 2000}\n" * 500)
    with subprocess.Popen(
        command("predict", run, source, "-o", "-"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 1
    assert b"Traceback" not in errors
    assert b"BrokenPipe" not in errors


def test_a_database_in_and_out(run, tmp_path):
    """The table by an option; a fault names the address."""
    import sqlite3

    texts, labels = tiny.texts_and_labels(9, seed=4)
    with sqlite3.connect(tmp_path / "a.db") as base:
        base.execute("CREATE TABLE may (text TEXT)")
        base.executemany("INSERT INTO may VALUES (?)", [(text,) for text in texts])
    base.close()
    address = f"sqlite:///{tmp_path / 'a.db'}"
    snugtune("predict", run, address, "--table", "may", "-o", f"{address}?table=done")
    with sqlite3.connect(tmp_path / "a.db") as base:
        assert [row[0] for row in base.execute("SELECT predicted_label FROM done")] == labels
    base.close()
    done = snugtune("predict", run, f"{address}?table=may", "-o", f"{address}?table=done", code=2)
    assert b"already exists; choose another table or add --overwrite" in done.stderr


def test_a_password_is_nowhere(run, tmp_path):
    pytest.importorskip("adbc_driver_postgresql")
    address = "postgresql://ana:s3cret@127.0.0.1:1/bank?table=may"
    for arguments in ([address, "-o", tmp_path / "a.csv"], [tmp_path / "no.csv", "-o", address]):
        done = snugtune("predict", run, *arguments, code=2)
        assert b"postgresql://ana@127.0.0.1:1/bank?table=may cannot be used" in done.stderr
        assert b"s3cret" not in done.stderr + done.stdout
