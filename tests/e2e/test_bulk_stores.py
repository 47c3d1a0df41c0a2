"""Many files in and out of object stores on this machine, S3's protocol and Google's, with both engines."""

import json
import subprocess
import sys

import polars as pl
import pytest

import stores
import tiny
from snugtune.errors import UserInputError
from snugtune.predict.predictor import Predictor
from snugtune.predict.table import predict_table
from snugtune.scale.bulk import predict_bulk

pytestmark = pytest.mark.long

KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
STORES = {"s3": (stores.s3, "AWS_ENDPOINT_URL"), "gs": (stores.google, "STORAGE_EMULATOR_HOST")}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return tiny.write_run(folder / "run", tiny.write_model(folder / "model"))


@pytest.fixture(params=STORES)
def store(request, monkeypatch):
    """A bucket called ``bucket``: its address, its file system, and the environment of a command."""
    fs = pytest.importorskip("pyarrow.fs")
    program, variable = STORES[request.param]
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with program() as address:
        monkeypatch.setenv(variable, address)
        if request.param == "s3":
            files = fs.S3FileSystem(endpoint_override=address, allow_bucket_creation=True)
        else:
            place = address.removeprefix("http://")
            files = fs.GcsFileSystem(
                anonymous=True, endpoint_override=place, scheme="http", project_id="test"
            )
        files.create_dir("bucket")
        yield f"{request.param}://bucket", files


@pytest.fixture
def shards(tmp_path, store):
    """Four shards of different sizes and formats in ``bucket/in``, and the same files here."""
    _, files = store
    folder = tmp_path / "in"
    folder.mkdir()
    for i, suffix in enumerate((".parquet", ".csv", ".jsonl", ".parquet")):
        texts, _ = tiny.texts_and_labels(300 + i, seed=i)
        frame = pl.DataFrame({"id": range(len(texts)), "text": texts})
        path = folder / f"part-{i}{suffix}"
        {".parquet": frame.write_parquet, ".csv": frame.write_csv, ".jsonl": frame.write_ndjson}[suffix](path)
        put(files, path, f"bucket/in/{path.name}")
    return folder


def put(files, path, name):
    with files.open_output_stream(name) as stream:
        stream.write(path.read_bytes())


def get(files, name):
    with files.open_input_stream(name) as stream:
        return stream.read()


@pytest.fixture(scope="module")
def predictor(run):
    return Predictor.load(run)


def check_outputs(files, shards, predictor, tmp_path):
    """Each object is what ``predict`` makes of that file alone."""
    for path in sorted(shards.iterdir()):
        alone = tmp_path / f"alone{path.suffix}"
        predict_table(predictor, path, alone, overwrite=True)
        assert get(files, f"bucket/out/{path.name}") == alone.read_bytes()


def test_from_a_store_into_it(run, predictor, store, shards, tmp_path):
    address, files = store
    where = (run, f"{address}/in/part-*", f"{address}/out/")
    result = predict_bulk(*where)
    assert (result.done, result.skipped, result.failed, result.rows) == (4, 0, {}, 1206)
    check_outputs(files, shards, predictor, tmp_path)
    manifest = json.loads(get(files, "bucket/out/_snugtune/manifest.json"))
    assert manifest["rows"] == 1206
    again = predict_bulk(*where)
    assert (again.done, again.skipped, again.rows) == (0, 4, 1206)
    # One that was changed is done again, the others are not.
    texts, _ = tiny.texts_and_labels(10)
    pl.DataFrame({"text": texts}).write_csv(shards / "part-1.csv")
    put(files, shards / "part-1.csv", "bucket/in/part-1.csv")
    third = predict_bulk(*where)
    assert (third.done, third.skipped) == (1, 3)
    assert len(get(files, "bucket/out/part-1.csv").splitlines()) == 11


def test_from_a_store_to_a_folder_and_back(run, store, shards, tmp_path):
    address, files = store
    predict_bulk(run, f"{address}/in/part-0.parquet", str(tmp_path / "out"))
    assert pl.read_parquet(tmp_path / "out/part-0.parquet")["predicted_label"].null_count() == 0
    predict_bulk(run, f"{shards}/*.csv", f"{address}/from-here")
    assert get(files, "bucket/from-here/part-1.csv").startswith(b"id,text,predicted_label")


def test_what_a_store_refuses_is_a_sentence(run, store, tmp_path):
    address, _ = store
    for source in (f"{address}/in/*.csv", f"{address.replace('bucket', 'no-bucket')}/in/*.csv"):
        with pytest.raises(UserInputError, match=r"cannot be found|No file matches"):
            predict_bulk(run, source, str(tmp_path / "out"))


def test_a_store_that_does_not_answer_is_a_sentence(run, tmp_path, monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{stores.free_port()}")
    with pytest.raises(UserInputError, match="cannot be reached"):
        predict_bulk(run, "s3://bucket/in/*.csv", str(tmp_path / "out"))


def test_workers_of_ray_find_the_store(run, predictor, store, shards, tmp_path):
    pytest.importorskip("ray")
    address, files = store
    done = subprocess.run(
        [
            sys.executable, "-m", "snugtune", "predict", str(run), f"{address}/in/part-*", "-o",
            f"{address}/out", "--engine", "ray", "--workers", "2", "--json",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 1206
    check_outputs(files, shards, predictor, tmp_path)
