"""Many files in, as many out: which they are, what is skipped, what is done again, what is refused."""

import errno
import json
import os
import shutil
import time
from dataclasses import replace

import polars as pl
import pytest
from typer.testing import CliRunner

import tiny
from snugtune.cli import app
from snugtune.cost.prices import as_dict, price_of
from snugtune.errors import UserInputError
from snugtune.memory.devices import this_device
from snugtune.predict.predictor import Predictor
from snugtune.predict.table import predict_table
from snugtune.progress import Observer
from snugtune.scale import bulk, places, shards, shipping, work
from snugtune.scale import bulk_forecast as forecast
from snugtune.scale.bulk import predict_bulk, refuse_failed
from snugtune.scale.markers import DONE, MANIFEST, PARTIAL, run_fingerprint
from snugtune.scale.places import matches, open_folder, split_pattern
from snugtune.scale.shards import find_shards, is_bulk
from snugtune.scale.work import Options, TextsChecksum

ADDED = ["predicted_label", "confidence", "needs_review", "second_label", "third_label"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return tiny.write_run(folder / "run", tiny.write_model(folder / "model"))


@pytest.fixture(scope="module")
def predictor(run):
    return Predictor.load(run)


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch, predictor):
    """The model is loaded once for all tests."""
    monkeypatch.setattr(bulk.Predictor, "load", lambda *_args, **_options: predictor)


@pytest.fixture(autouse=True)
def no_trials(monkeypatch):
    """Files of our own are not read in another process first, which takes half a second each."""
    monkeypatch.setattr("snugtune.data.readers.parquet._tried", lambda *_args: None)


def write_shard(path, n=20, seed=0, column="text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    texts, _ = tiny.texts_and_labels(n, seed=seed)
    frame = pl.DataFrame({"id": range(n), column: texts})
    write = {
        ".parquet": frame.write_parquet, ".pq": frame.write_parquet, ".csv": frame.write_csv,
        ".jsonl": frame.write_ndjson, ".xlsx": frame.write_excel,
        ".tsv": lambda path: frame.write_csv(path, separator="\t"),
    }[path.suffix]  # fmt: skip
    write(path)
    return path


@pytest.fixture
def source(tmp_path):
    for i, suffix in enumerate((".parquet", ".csv")):
        write_shard(tmp_path / "in" / f"part-{i}{suffix}", n=20 + i, seed=i)
    return tmp_path / "in"


class Notes(Observer):
    def __init__(self):
        self.said, self.rows, self.totals = [], 0, []

    def say(self, sentence):
        self.said.append(sentence)

    def phase(self, name, total=None):
        self.rows = 0
        self.totals.append(total)

    def advance(self, done):
        self.rows += done


# Patterns and names


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("in/*.csv", ("in", "*.csv")),
        ("in/2024-*/part.csv", ("in", "2024-*/part.csv")),
        ("in/part.csv", ("in", "part.csv")),
        ("part.csv", (".", "part.csv")),
        ("in/", ("in", "*")),
        ("/*.csv", ("/", "*.csv")),
        ("s3://b/*.parquet", ("s3://b", "*.parquet")),
        ("s3://b", ("s3://b", "*")),
        ("s3://b/in/**/*.csv?region=eu-west-1", ("s3://b/in?region=eu-west-1", "**/*.csv")),
        ("gs://b/in/a.csv", ("gs://b/in", "a.csv")),
        ("s3://b/in/part-?.csv", ("s3://b/in", "part-?.csv")),
        ("s3://b/in/?-*.csv?region=eu&scheme=http", ("s3://b/in?region=eu&scheme=http", "?-*.csv")),
    ],
)
def test_a_pattern_is_a_folder_and_the_rest(pattern, expected):
    assert split_pattern(pattern) == expected


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("a.csv", "*.csv", True),
        ("x/a.csv", "*.csv", False),
        ("x/a.csv", "*/*.csv", True),
        ("x/y/a.csv", "**/*.csv", True),
        ("a.csv", "**/*.csv", True),
        ("a.csv", "[!b]*", True),
        ("_SUCCESS", "*", False),
        (".hidden.csv", "*.csv", False),
        ("_tmp/a.csv", "**/*.csv", False),
        ("_tmp/a.csv", "_tmp/*.csv", True),
        ("A.csv", "a.csv", False),
    ],
)
def test_what_a_pattern_matches(name, pattern, expected):
    assert matches(name, pattern) is expected


def test_what_means_many_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd[1].csv").touch()
    assert is_bulk("in/*.csv")
    assert is_bulk("s3://b/a.csv")
    assert not is_bulk("odd[1].csv")
    assert not is_bulk("in.csv")
    assert not is_bulk("sqlite:///a.db?table=t")
    assert not is_bulk("hf://owner/name")


def test_names_are_kept_below_the_fixed_part_of_the_pattern(tmp_path):
    for name in ("2024-01/a.csv", "2024-02/a.csv", "2024-02/b.pq", "2024-02/notes.md", "_old/a.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text\nx\n")
    _, found, unknown = find_shards(f"{tmp_path}/*/*", open_folder(str(tmp_path / "out")))
    assert [shard.output for shard in found] == ["2024-01/a.csv", "2024-02/a.csv", "2024-02/b.parquet"]
    assert unknown == ["2024-02/notes.md"]
    (tmp_path / "2024-02/b.parquet").touch()
    with pytest.raises(UserInputError, match=r"would both be written as 2024-02/b\.parquet"):
        find_shards(f"{tmp_path}/*/*", open_folder(str(tmp_path / "out")))


def test_names_of_objects_do_not_lead_out_of_the_output(monkeypatch):
    entries = [places.Entry("a/../x.csv", 1, "")]
    monkeypatch.setattr(places.LocalFolder, "entries", lambda *_args, **_options: iter(entries))
    with pytest.raises(UserInputError, match="cannot be the name of a file everywhere"):
        find_shards("in/*/../x.csv", open_folder("out"))


def test_nothing_found_is_a_sentence(tmp_path):
    with pytest.raises(UserInputError, match=r"No file matches .*nowhere/\*\.csv; check"):
        find_shards(f"{tmp_path}/nowhere/*.csv", open_folder(str(tmp_path / "out")))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ftp://host/a", "of no known kind"),
        ("s3:///a", "names no bucket"),
        ("s3://key:secret@bucket/a", "credentials do not belong into an address"),
        ("s3://bucket/a?speed=fast", "the option 'speed'"),
    ],
)
def test_an_address_that_cannot_be_is_a_sentence_without_secrets(address, words):
    with pytest.raises(UserInputError, match=words) as caught:
        open_folder(address)
    assert "secret" not in str(caught.value)


def test_an_endpoint_of_the_environment_goes_to_the_workers_in_the_address(monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    folder = open_folder("s3://bucket/a b/ü?region=us-east-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert "endpoint_override=127.0.0.1%3A9" in folder.address
    again = open_folder(folder.address)
    assert (again.address, again.path) == (folder.address, "bucket/a b/ü")
    assert folder.shown("x.csv") == "s3://bucket/a b/ü/x.csv"


# The work


def test_shards_come_out_as_if_predicted_alone_and_are_skipped_then(run, predictor, source, tmp_path):
    """Every format: the same bytes, no second time, nothing left behind."""
    for name in ("deep/c.jsonl", "d.xlsx", "e.tsv"):
        write_shard(source / name, n=7, seed=3)
    notes = Notes()
    result = predict_bulk(run, f"{source}/**/*", str(tmp_path / "out"), observer=notes)
    assert (result.done, result.skipped, result.failed, result.rows) == (5, 0, {}, 62)
    assert notes.rows == 62
    for name in ("part-0.parquet", "part-1.csv", "deep/c.jsonl", "e.tsv"):
        alone = tmp_path / f"alone{(source / name).suffix}"
        predict_table(predictor, source / name, alone)
        assert (tmp_path / "out" / name).read_bytes() == alone.read_bytes()
    assert pl.read_excel(tmp_path / "out/d.xlsx").columns == ["id", "text", *ADDED]
    assert not (tmp_path / "out" / PARTIAL).exists()
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert (manifest["rows"], manifest["shards"]) == (62, 5)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*") if path.is_file()}
    again = predict_bulk(run, f"{source}/**/*", str(tmp_path / "out"))
    assert (again.done, again.skipped, again.rows) == (0, 5, 62)
    assert all(
        path.stat().st_mtime_ns == when for path, when in before.items() if "_snugtune/" not in str(path)
    )


def change_input(source, _out, _run):
    write_shard(source / "part-0.parquet", n=5)


def change_output(_source, out, _run):
    with (out / "part-0.parquet").open("ab") as file:
        file.write(b"more")


def lose_output(_source, out, _run):
    (out / "part-0.parquet").unlink()


def damage_marker(_source, out, _run):
    (out / DONE / "part-0.parquet.json").write_text('{"rows": 20}')


def lose_marker(_source, out, _run):
    """As when the machine went off between the output and its marker."""
    (out / DONE / "part-0.parquet.json").unlink()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_input, "their input was changed since: part-0.parquet"),
        (change_output, "their output was changed since: part-0.parquet"),
        (lose_output, "their output is gone: part-0.parquet"),
        (damage_marker, None),
        (lose_marker, None),
    ],
)
def test_what_is_not_as_it_was_is_done_again(run, source, tmp_path, change, words):
    predict_bulk(run, f"{source}/*", str(tmp_path / "out"))
    change(source, tmp_path / "out", run)
    notes = Notes()
    result = predict_bulk(run, f"{source}/*", str(tmp_path / "out"), observer=notes)
    assert (result.done, result.skipped) == (1, 1)
    rows = pl.read_parquet(source / "part-0.parquet").height
    assert pl.read_parquet(tmp_path / "out/part-0.parquet").height == rows
    told = [sentence for sentence in notes.said if sentence.startswith("Done again")]
    assert told == ([] if words is None else [f"Done again, as {words}."])


def test_another_run_or_other_options_do_all_again(run, source, tmp_path):
    predict_bulk(run, f"{source}/*", str(tmp_path / "out"))
    other = shutil.copytree(run, tmp_path / "other")
    record = json.loads((other / "run.json").read_text())
    record["decision"]["confidence_threshold"] = 0.9
    (other / "run.json").write_text(json.dumps(record))
    for run_now, options, words in (
        (other, Options(), "they are of another run"),
        (other, Options(dtype="bfloat16"), "they were made with other options"),
    ):
        notes = Notes()
        result = predict_bulk(run_now, f"{source}/*", str(tmp_path / "out"), options=options, observer=notes)
        assert (result.done, result.skipped) == (2, 0)
        assert any(words in sentence for sentence in notes.said)


def test_a_faulty_shard_lets_the_others_go_on(run, source, tmp_path):
    write_shard(source / "a.csv", column="words")
    (source / "b.parquet").write_bytes(b"PAR1 and nothing more")
    (source / "c.csv").write_text("text,text\nx,y\n")
    result = predict_bulk(run, f"{source}/*", str(tmp_path / "out"))
    assert (result.done, list(result.failed)) == (2, ["a.csv", "b.parquet", "c.csv"])
    for name, words in (
        ("a.csv", "no column"),
        ("b.parquet", "not a whole Parquet"),
        ("c.csv", "more than one"),
    ):
        assert words in result.failed[name]
        assert str(source / name) in result.failed[name]
    with pytest.raises(
        UserInputError, match=r"3 of 5 files could not be predicted: a\.csv, b\.parquet, c\.csv"
    ):
        refuse_failed(result)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "_snugtune", "part-0.parquet", "part-1.csv",
    ]  # fmt: skip
    write_shard(source / "a.csv")
    assert predict_bulk(run, f"{source}/*", str(tmp_path / "out")).done == 1


def test_a_part_without_rows_becomes_one_with_the_columns(run, tmp_path):
    pytest.importorskip("pyarrow")
    empty = tmp_path / "in/part.parquet"
    empty.parent.mkdir()
    pl.DataFrame(schema={"text": pl.String, "n": pl.Int32}).write_parquet(empty)
    assert predict_bulk(run, f"{tmp_path}/in/*", str(tmp_path / "out")).failed == {}
    assert pl.read_parquet(tmp_path / "out/part.parquet").schema == {
        "text": pl.String, "n": pl.Int32, "predicted_label": pl.String, "confidence": pl.Float64,
        "needs_review": pl.Boolean, "second_label": pl.String, "third_label": pl.String,
    }  # fmt: skip


def test_text_parts_without_rows_are_finished_too(run, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    for name, content in (
        ("a.csv", ""), ("b.csv", "id;text\n"), ("c.tsv", "id\ttext\n"), ("d.jsonl", ""), ("e.CSV", "text\n"),
    ):  # fmt: skip
        source.mkdir(exist_ok=True)
        (source / name).write_text(content)
    write_shard(source / "f.csv", n=5)
    result = predict_bulk(run, f"{source}/*", str(out))
    assert (result.done, result.failed, result.rows) == (6, {}, 5)
    added = ADDED
    assert (out / "a.csv").read_bytes() == (out / "d.jsonl").read_bytes() == b""
    assert (out / "b.csv").read_text() == ";".join(["id", "text", *added]) + "\n"
    assert (out / "c.tsv").read_text() == "\t".join(["id", "text", *added]) + "\n"
    assert (out / "e.CSV").read_text() == ",".join(["text", *added]) + "\n"
    assert predict_bulk(run, f"{source}/*", str(out)).skipped == 6


def test_a_plan_looks_at_a_part_that_has_rows(run, predictor, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.csv").write_text("text\n")
    job = bulk.prepare(run, f"{tmp_path}/in/*", str(tmp_path / "out"))
    found = forecast.forecast(predictor, job.source, job.standing, job.amount, Options())
    assert (found.rows, found.seconds) == (0, 0.0)
    write_shard(tmp_path / "in/b.csv", n=50)
    job = bulk.prepare(run, f"{tmp_path}/in/*", str(tmp_path / "out"))
    found = forecast.forecast(predictor, job.source, job.standing, job.amount, Options())
    assert found.sample_rows == 50
    assert 45 <= found.rows <= 55


# Whose files they are


def test_what_was_written_is_not_read_the_next_time(run, source, tmp_path):
    write_shard(source / "deep/c.csv", n=4)
    for out in (source / "classified", source / "deep/classified"):
        for done, skipped in ((3, 0), (0, 3)):
            result = predict_bulk(run, f"{source}/**/*", str(out))
            assert (result.done, result.skipped, result.rows) == (done, skipped, 45)
        shutil.rmtree(out)


def test_another_folder_of_files_with_the_same_names_is_refused(run, source, tmp_path):
    out = tmp_path / "out"
    predict_bulk(run, f"{source}/*", str(out))
    before = (out / "part-1.csv").read_bytes()
    other = tmp_path / "other"
    write_shard(other / "part-1.csv", n=3)
    with pytest.raises(UserInputError, match=r"holds what was made from .*in, not from .*other"):
        predict_bulk(run, f"{other}/*", str(out))
    assert (out / "part-1.csv").read_bytes() == before
    assert predict_bulk(run, f"{other}/*", str(out), overwrite=True).rows == 3
    assert json.loads((out / MANIFEST).read_text())["rows"] == 3


def test_files_of_others_are_not_replaced_after_the_first_time_either(run, source, tmp_path):
    out = tmp_path / "out"
    predict_bulk(run, f"{source}/*.csv", str(out))
    (out / "part-0.parquet").write_bytes(b"mine")
    with pytest.raises(UserInputError, match=r"part-0\.parquet already exists and was not written by"):
        predict_bulk(run, f"{source}/*", str(out))
    assert (out / "part-0.parquet").read_bytes() == b"mine"


def test_the_manifest_has_what_all_patterns_have_finished(run, source, tmp_path):
    out = tmp_path / "out"
    for pattern, rows in (("*.csv", 21), ("*.parquet", 41)):
        result = predict_bulk(run, f"{source}/{pattern}", str(out))
        assert result.shards == 1
        assert json.loads((out / MANIFEST).read_text())["rows"] == rows


def test_folders_behind_links_are_read_and_lead_nowhere_twice(run, source, tmp_path):
    elsewhere = tmp_path / "disk"
    write_shard(elsewhere / "c.csv", n=4)
    (source / "linked").symlink_to(elsewhere, target_is_directory=True)
    (elsewhere / "back").symlink_to(source, target_is_directory=True)
    _, found, _ = find_shards(f"{source}/**/*", open_folder(str(tmp_path / "out")))
    assert [shard.name for shard in found] == ["linked/c.csv", "part-0.parquet", "part-1.csv"]


def test_a_disk_without_locks_is_no_other_process(run, source, tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert predict_bulk(run, f"{source}/*", str(tmp_path / "out")).done == 2


def test_a_worker_of_another_disk_says_so(predictor, source, tmp_path):
    worker = work.Worker(predictor, work.Task(str(source), str(tmp_path / "out"), "x"))
    with pytest.raises(UserInputError, match="need a disk that all of them share"):
        worker.check_place()


def test_what_many_files_have_in_common_is_told_three_times(run, tmp_path):
    for i in range(5):
        frame = pl.DataFrame({"text": ["my card", "a fee"], "confidence": [1, 2]})
        (tmp_path / "in").mkdir(exist_ok=True)
        frame.write_csv(tmp_path / f"in/{i}.csv")
    notes = Notes()
    predict_bulk(run, f"{tmp_path}/in/*", str(tmp_path / "out"), observer=notes)
    told = [sentence for sentence in notes.said if "confidence" in sentence]
    assert [sum(f"{i}.csv" in sentence for sentence in told) for i in range(5)] == [1, 1, 2, 0, 0]
    assert told[-1].startswith("The same of 2 more files: ")


def test_runs_that_nobody_asks_for_any_more_are_removed(run, tmp_path, monkeypatch):
    monkeypatch.setattr(shipping.tempfile, "tempdir", str(tmp_path))
    fingerprint = run_fingerprint(run)
    there = shipping.unpacked(tmp_path / "no", fingerprint, lambda: shipping.pack(run))
    old = there.with_name("old")
    old.mkdir()
    new = there.with_name("new")
    new.mkdir()
    long_ago = time.time() - shipping.KEPT_S - 10
    for folder in (old, there):
        os.utime(folder, (long_ago, long_ago))
    assert shipping.unpacked(tmp_path / "no", fingerprint, lambda: b"") == there
    assert sorted(path.name for path in there.parent.iterdir()) == sorted(["new", fingerprint])
    assert time.time() - there.stat().st_mtime < 60


def test_rows_that_were_lost_or_moved_on_the_way_are_noticed(run, source, tmp_path, monkeypatch):
    """What is written is read again: here a writer that swaps rows, one that drops one."""
    plain = work.predict_table

    def swapping(predictor, path, made, **options):
        counts = plain(predictor, path, made, **options)
        frame = pl.read_parquet(made)
        pl.concat([frame[1:2], frame[:1], frame[2:]]).write_parquet(made)
        return counts

    def dropping(predictor, path, made, **options):
        counts = plain(predictor, path, made, **options)
        pl.read_parquet(made)[1:].write_parquet(made)
        return counts

    for faulty in (swapping, dropping):
        monkeypatch.setattr(work, "predict_table", faulty)
        result = predict_bulk(run, f"{source}/*.parquet", str(tmp_path / "out"))
        assert "what was written is not what was read" in result.failed["part-0.parquet"]
        assert not (tmp_path / "out/part-0.parquet").exists()


def test_an_input_that_changes_meanwhile_is_noticed(run, source, tmp_path, monkeypatch):
    plain = work.predict_table

    def changing(predictor, path, made, **options):
        counts = plain(predictor, path, made, **options)
        write_shard(source / "part-0.parquet", n=3)
        return counts

    monkeypatch.setattr(work, "predict_table", changing)
    result = predict_bulk(run, f"{source}/*.parquet", str(tmp_path / "out"))
    assert "was changed while it was read" in result.failed["part-0.parquet"]


def test_the_checksum_sees_order_and_ends_but_no_batches():
    def checksum(*batches):
        found = TextsChecksum()
        for batch in batches:
            found.add(batch)
        return found.hexdigest()

    whole = checksum(["a", "bc", ""])
    assert checksum(["a"], ["bc", ""]) == whole
    assert len({whole, checksum(["bc", "a", ""]), checksum(["ab", "c", ""]), checksum(["a", "bc"])}) == 4
    assert checksum(["\ud800"]) != checksum(["?"])


# What is refused


def test_files_of_others_are_not_replaced(run, source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "part-1.csv").write_text("mine")
    with pytest.raises(UserInputError, match=r"part-1\.csv already exists and was not written by this"):
        predict_bulk(run, f"{source}/*", str(out))
    assert list(out.iterdir()) == [out / "part-1.csv"]
    assert predict_bulk(run, f"{source}/*", str(out), overwrite=True).done == 2


def test_two_at_a_time_are_refused(run, source, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    out = tmp_path / "out"
    predict_bulk(run, f"{source}/*", str(out))
    with (out / "_snugtune/lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserInputError, match="Another process is writing"):
            predict_bulk(run, f"{source}/*", str(out))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"output": "in"}, "is the folder of the input"),
        ({"output": "in/part-1.csv"}, "is a file; name a folder"),
        ({"engine": "spark"}, "must be one of local, ray"),
        ({"workers": 2}, "are for --engine ray"),
        ({"engine": "ray", "workers": 0}, "must be 1 or more"),
        ({"options": Options(csv_safe=True)}, "--csv-safe is for CSV and TSV, not for part-0.parquet"),
    ],
)
def test_refusals(run, source, tmp_path, monkeypatch, given, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserInputError, match=words):
        predict_bulk(run, "in/*", **{"output": "out", **given})
    assert not (tmp_path / "out").exists()


# Forecast, shipping, command line


def test_time_is_of_rounds_of_shards():
    assert forecast.work_seconds(1000, 10, 4, 8) == pytest.approx(25)
    assert forecast.work_seconds(1000, 10, 4, 9) == pytest.approx(3 * 1000 / 9 / 10)
    assert forecast.work_seconds(0, 10, 4, 0) == 0


def test_rows_are_counted_where_footers_tell_and_estimated_elsewhere(run, predictor, source):
    pytest.importorskip("pyarrow")
    job = bulk.prepare(run, f"{source}/*.parquet", str(source.parent / "out"))
    assert (job.amount.shards, job.amount.rows) == (1, 20)
    write_shard(source / "part-2.csv", n=2000)
    job = bulk.prepare(run, f"{source}/*.csv", str(source.parent / "out"))
    assert job.amount.rows is None
    found = forecast.forecast(
        predictor, job.source, job.standing, job.amount, Options(), workers=2, price=price_of("", 3.6)
    )
    assert 1600 < found.rows < 2400
    assert found.usd == pytest.approx(found.seconds * 2 * 0.001)


def test_a_run_is_sent_to_where_it_is_not(run, tmp_path, monkeypatch):
    monkeypatch.setattr(shipping.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(shipping.tempfile, "tempdir", str(tmp_path))
    fingerprint = run_fingerprint(run)
    assert shipping.unpacked(run, fingerprint, None) == run
    elsewhere = tmp_path / "not-here"
    with pytest.raises(UserInputError, match="is not there, or is another run"):
        shipping.unpacked(elsewhere, fingerprint, None)
    there = shipping.unpacked(elsewhere, fingerprint, lambda: shipping.pack(run))
    assert run_fingerprint(there) == fingerprint
    assert shipping.unpacked(elsewhere, fingerprint, lambda: b"not asked for again") == there


def test_the_command(run, source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    (source / "c.csv").write_text("words\nx\n")
    given = ["predict", str(run), f"{source}/*", "-o", str(out)]
    done = CliRunner().invoke(app, [*given, "--json"])
    assert isinstance(done.exception, UserInputError)
    assert json.loads(done.stdout)["failed"].keys() == {"c.csv"}
    (source / "c.csv").unlink()
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0
    assert "2 files (2 were finished before), 41 rows" in done.stdout
    write_shard(source / "new.parquet", n=9)
    done = CliRunner().invoke(app, [*given, "--plan", "--price", "0.5"])
    assert "2 are finished and skipped; to do: 1, 9 rows" in done.stdout
    assert "USD at 0.5 USD an hour of each worker's machine (your own price)" in done.stdout
    card = replace(this_device(), card="t4")
    monkeypatch.setattr("snugtune.memory.devices.this_device", lambda: card)
    told = json.loads(CliRunner().invoke(app, [*given, "--plan", "--json"]).stdout)
    assert told["price"] == as_dict(price_of("t4"))
    assert told["usd"] == pytest.approx(told["seconds"] / 3600 * price_of("t4").usd_per_hour)
    assert not (out / "new.parquet").exists()
    for more, words in (
        (["--price", "1"], "--price is for --plan"),
        (["--table", "t"], "neither pipes nor databases"),
    ):
        assert words in str(CliRunner().invoke(app, [*given, *more]).exception)
    single = ["predict", str(run), str(source / "new.parquet"), "-o", str(tmp_path / "a.csv")]
    assert "are for many files" in str(CliRunner().invoke(app, [*single, "--workers", "2"]).exception)
    assert shards.is_bulk(f"{source}/*")
