"""One shard from its input to its output: what every engine's workers do.

A shard goes through ``predict_table``, as if it were predicted alone. What was written is read again before
it gets its name: as many rows as were predicted, and the same texts in the same order, by a checksum. Then
it appears under its name in one move, and its marker says that it is done.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snugtune.data.columns import choose_columns, join_texts
from snugtune.data.readers.delimited import csv_style, header_of
from snugtune.data.readers.parquet import parquet_frames
from snugtune.data.table import iter_tables
from snugtune.errors import NoRowsError, SnugtuneError, UserInputError, is_of_library, one_line
from snugtune.files import check_free_space, file_digest
from snugtune.predict.predictor import ROWS_PER_BATCH, Batch, Predictor, replace_columns
from snugtune.predict.table import predict_table
from snugtune.progress import Observer
from snugtune.scale.markers import JOB, PARTIAL, Marker, write_marker
from snugtune.scale.places import open_folder
from snugtune.scale.shards import Shard

if TYPE_CHECKING:
    import polars as pl

PARQUET = (".parquet", ".pq")
_JSON = (".jsonl", ".ndjson", ".json")
_TEXT = (".csv", ".tsv", ".txt", ".tab", *_JSON)

_HEADER_BYTES = 1 << 20
"""A text file that is larger has rows."""

_ROOM = 4
"""Disk that a shard takes on the worker, in times its size: input, columns, output."""


@dataclass(frozen=True)
class Options:
    """How shards are read and written, as ``snugtune predict`` has it for one file."""

    text: tuple[str, ...] | None = None
    dtype: str = "auto"
    csv_safe: bool = False
    summary: bool = True
    date: str | None = None
    sheet: str | None = None
    encoding: str | None = None
    delimiter: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        found = asdict(self)
        return found | {"text": None if self.text is None else list(self.text)}

    @property
    def reading(self) -> dict[str, Any]:
        """What ``iter_tables`` takes."""
        return {"sheet": self.sheet, "encoding": self.encoding, "delimiter": self.delimiter}


@dataclass(frozen=True)
class Task:
    """What all shards have in common; small enough to be sent to every worker."""

    source: str
    output: str
    run_fingerprint: str
    options: Options = field(default_factory=Options)


@dataclass(frozen=True)
class Outcome:
    """What became of a shard: its marker, or the reason why there is none. ``notes`` are worth a line."""

    shard: Shard
    marker: Marker | None
    reason: str | None = None
    notes: tuple[str, ...] = ()


class Worker:
    """A loaded run that does one shard after the other."""

    def __init__(self, predictor: Predictor, task: Task) -> None:
        self.predictor, self.task = predictor, task
        self.source, self.output = open_folder(task.source), open_folder(task.output)

    def check_place(self) -> None:
        """See that the output is where the command has begun it.

        Raises:
            UserInputError: it is not: this machine does not share that disk.
        """
        if self.output.entry(JOB) is None:
            raise UserInputError(
                f"{self.output.shown('')} on {socket.gethostname()} is not the folder that the command "
                "writes to; machines of a cluster need a disk that all of them share, or a bucket."
            )

    def do(self, shard: Shard, on_rows: Callable[[int], None] | None = None) -> Outcome:
        """Predict ``shard``; a fault in it is an outcome, so that the others go on."""
        listener = _Listener(on_rows)
        try:
            marker = self._done(shard, listener)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            if not is_of_library(error):
                raise
            return Outcome(shard, None, self._sentence(shard, error), tuple(listener.notes))
        return Outcome(shard, marker, None, tuple(listener.notes))

    def _sentence(self, shard: Shard, error: BaseException) -> str:
        if isinstance(error, SnugtuneError):
            return str(error)
        return f"{self.source.shown(shard.name)}: {type(error).__name__}: {one_line(error)}."

    def _done(self, shard: Shard, listener: _Listener) -> Marker:
        began = time.perf_counter()
        with self._desk(shard) as desk:
            path, made = self._input(shard, desk), desk / "out" / Path(shard.output).name
            made.parent.mkdir()
            with _naming(path, self.source.shown(shard.name), listener):
                empty = is_empty(path)
                rows, needs_review, read = self._predict(path, made, listener, empty=empty)
            self._check_unchanged(shard)
            written = self._read_again(path, made, empty=empty)
            if written != (rows, read):
                raise UserInputError(
                    f"{self.source.shown(shard.name)}: what was written is not what was read "
                    f"({written[0]:,} rows of {rows:,}); nothing was kept, run the same command again."
                )
            marker = Marker(
                name=shard.name, size=shard.size, modified=shard.modified, output=shard.output,
                output_bytes=made.stat().st_size, output_sha256=file_digest(made), rows=rows,
                needs_review=needs_review, texts_sha256=read, run=self.task.run_fingerprint,
                options=self.task.options.as_dict(), seconds=time.perf_counter() - began,
                version=version("snugtune"),
            )  # fmt: skip
            self.output.put(made, shard.output)
        write_marker(self.output, marker)
        return marker

    @contextmanager
    def _desk(self, shard: Shard) -> Iterator[Path]:
        """A folder for this attempt alone: beside the output if that is here, so that a rename ends it."""
        if self.output.local is not None:
            beside = self.output.local / PARTIAL
            beside.mkdir(parents=True, exist_ok=True)
        else:
            beside = _scratch()
        desk = Path(tempfile.mkdtemp(dir=beside, prefix="shard-"))
        try:
            check_free_space(desk, _ROOM * shard.size, what=f"the shard {shard.name}")
            yield desk
        finally:
            shutil.rmtree(desk, ignore_errors=True)

    def _input(self, shard: Shard, desk: Path) -> Path:
        if self.source.local is not None:
            return self.source.local / shard.name
        path = desk / "in" / Path(shard.name).name
        path.parent.mkdir()
        self.source.fetch(shard.name, path)
        if path.stat().st_size != shard.size:
            raise UserInputError(f"{self.source.shown(shard.name)} was changed while it was read; run again.")
        return path

    def _check_unchanged(self, shard: Shard) -> None:
        entry = self.source.entry(shard.name)
        if entry is None or (entry.size, entry.modified) != (shard.size, shard.modified):
            raise UserInputError(f"{self.source.shown(shard.name)} was changed while it was read; run again.")

    def _predict(self, path: Path, made: Path, listener: _Listener, *, empty: bool) -> tuple[int, int, str]:
        """Rows, those that need review, and the checksum of the texts that were predicted."""
        options, texts = self.task.options, TextsChecksum()
        if empty:
            self._write_empty(path, made)
            return 0, 0, texts.hexdigest()

        def on_batch(batch: Batch) -> None:
            texts.add(batch.texts)

        counts = predict_table(
            self.predictor, path, made, text=options.text, csv_safe=options.csv_safe, summary=options.summary,
            date=options.date, observer=listener, on_batch=on_batch, **options.reading,
        )  # fmt: skip
        return counts["rows"], counts["needs_review"], texts.hexdigest()

    def _write_empty(self, path: Path, made: Path) -> None:
        """Engines that write many parts leave some without rows; the outputs have the same columns."""
        frame = _without_rows(path, self.task.options)
        if frame is None:  # nor columns
            made.touch()
            return
        columns = self.task.options.text or self.predictor.text_columns
        choose_columns(frame, source=str(path), text=columns, label=None, need_label=False)
        whole = replace_columns(frame, self.predictor.columns([]))
        if made.suffix.lower() == ".parquet":
            whole.write_parquet(made)
        else:
            whole.write_csv(made, separator=_delimiter(path, made, self.task.options) or "\t")

    def _read_again(self, path: Path, made: Path, *, empty: bool) -> tuple[int, str]:
        """Rows of the output and the checksum of its texts."""
        columns = self.task.options.text or self.predictor.text_columns
        if not set(columns).isdisjoint(self.predictor.added_names):
            raise UserInputError(
                f"The text column {', '.join(columns)} would be replaced by the predictions; rename it."
            )
        texts, rows = TextsChecksum(), 0
        for frame in [] if empty else _frames(path, made, self.task.options):
            texts.add(join_texts(frame, columns))
            rows += frame.height
        return rows, texts.hexdigest()


class TextsChecksum:
    """SHA-256 of texts in their order; how they are cut into batches makes no difference."""

    def __init__(self) -> None:
        self._lengths, self._texts = hashlib.sha256(), hashlib.sha256()

    def add(self, texts: Sequence[str]) -> None:
        """Texts that follow those before."""
        # With the lengths beside them it is known where each one ends.
        self._lengths.update("".join(f"{len(text)}," for text in texts).encode())
        self._texts.update("".join(texts).encode("utf-8", "surrogatepass"))

    def hexdigest(self) -> str:
        """Of all texts so far."""
        return hashlib.sha256(self._lengths.digest() + self._texts.digest()).hexdigest()


class _Listener(Observer):
    """Passes on the rows of a shard that are done, and keeps what is said of it."""

    def __init__(self, on_rows: Callable[[int], None] | None) -> None:
        self._on_rows, self.notes = on_rows, list[str]()

    def say(self, sentence: str) -> None:
        """Kept."""
        self.notes.append(sentence)

    def advance(self, done: int) -> None:
        """Passed on."""
        if self._on_rows is not None:
            self._on_rows(done)


def _frames(path: Path, made: Path, options: Options) -> Iterator[Any]:
    """An output batch by batch; a Parquet file of our own needs no trial in another process."""
    if made.suffix.lower() == ".parquet":
        return parquet_frames(str(made), ROWS_PER_BATCH)
    # The encoding is that of the input; what is written is UTF-8.
    return iter_tables(
        made, rows_per_batch=ROWS_PER_BATCH, sheet=options.sheet, delimiter=_delimiter(path, made, options)
    )


def _delimiter(path: Path, made: Path, options: Options) -> str | None:
    """What separates the cells of an output; None where that is known by its name."""
    if made.suffix.lower() != ".csv":
        return None
    # One column may have become several, so it is not guessed at.
    if path.suffix.lower() in (".csv", ".txt"):
        return csv_style(path, encoding=options.encoding, delimiter=options.delimiter).delimiter
    return ","


def is_empty(path: Path) -> bool:
    """Whether ``path`` is a Parquet or text file without rows; False where that cannot be told."""
    if path.suffix.lower() in PARQUET:
        try:
            from pyarrow import parquet

            return bool(parquet.read_metadata(path).num_rows == 0)
        except Exception:
            return False
    if path.suffix.lower() not in _TEXT or path.stat().st_size > _HEADER_BYTES:
        return False
    try:
        next(iter_tables(path, rows_per_batch=1))
    except NoRowsError:
        return True
    except UserInputError:
        return False
    return False


def _without_rows(path: Path, options: Options) -> pl.DataFrame | None:
    """The columns of a file that ``is_empty``; None where it names none."""
    import polars as pl

    suffix = path.suffix.lower()
    if suffix in PARQUET:
        return pl.read_parquet(path, glob=False)
    if suffix in _JSON:
        return None
    names = header_of(path, encoding=options.encoding, delimiter=options.delimiter)
    return pl.DataFrame(schema=dict.fromkeys(names, pl.String)) if names else None


@contextmanager
def _naming(path: Path, shown: str, listener: _Listener) -> Iterator[None]:
    """Sentences name what the user named, not the copy that was read."""
    try:
        yield
    except UserInputError as error:
        raise UserInputError(str(error).replace(str(path), shown)) from None
    finally:
        listener.notes = [note.replace(str(path), shown) for note in listener.notes]


def _scratch() -> Path:
    """Where this process keeps copies of objects; those of processes that were killed are cleared away."""
    import psutil

    root = Path(tempfile.gettempdir(), f"snugtune-bulk-{os.getuid() if hasattr(os, 'getuid') else 0}")
    root.mkdir(mode=0o700, exist_ok=True)
    for other in root.iterdir():
        with suppress(ValueError):
            if not psutil.pid_exists(int(other.name)):
                shutil.rmtree(other, ignore_errors=True)
    own = root / str(os.getpid())
    own.mkdir(exist_ok=True)
    return own
