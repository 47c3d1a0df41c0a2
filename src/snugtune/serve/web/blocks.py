"""The Gradio pages: try one text, predict a table."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from snugtune.data.readers.workbook import sheet_names
from snugtune.data.table import iter_tables
from snugtune.errors import UserInputError
from snugtune.predict.predictor import Batch, Predictor
from snugtune.predict.table import predict_table
from snugtune.progress import Observer
from snugtune.serve.web import shown
from snugtune.serve.web.pages import Title
from snugtune.serve.web.queue import AUDIT_SHARE, QueueFiller
from snugtune.serve.web.reviews import ReviewStore
from snugtune.serve.web.words import word_weights

MOST_CHARACTERS = 20_000
"""Of a text to try; a table may have longer ones."""

TRY_SAYS = "Here come its label, how sure the model is of it, and which words weighed most."

KEPT_S = 3600
"""After an hour uploads and results are deleted."""

LABELS_SHOWN = 8

OUTPUTS = {
    ".csv": ".csv", ".txt": ".csv", ".tsv": ".tsv", ".xlsx": ".xlsx", ".xlsm": ".xlsm",
    ".parquet": ".parquet",
    ".pq": ".parquet", ".jsonl": ".jsonl", ".ndjson": ".ndjson", ".json": ".jsonl",
}  # fmt: skip
"""In what a table comes back, by what it came in."""


@dataclass(frozen=True)
class Desk:
    """What the pages work with. ``busy``: one prediction at a time, as each takes all cores."""

    predictor: Predictor
    title: Title
    store: ReviewStore | None
    says: str
    most_rows: int
    audit_share: float = AUDIT_SHARE
    busy: threading.Lock = field(default_factory=threading.Lock)


def build(desk: Desk) -> gr.Blocks:
    """The page with its two tabs."""
    with gr.Blocks(title=desk.title.name, analytics_enabled=False, delete_cache=(KEPT_S, KEPT_S)) as blocks:
        header = gr.HTML(_header(desk, "try"), elem_id="top", apply_default_css=False)
        with gr.Tabs() as tabs:
            with gr.Tab("Try", id="try"):
                _try_tab(desk)
            with gr.Tab("Batch", id="batch"):
                _batch_tab(desk)

        def opened(request: gr.Request) -> tuple[Any, str]:
            """The tab that the address asks for."""
            tab = "batch" if request.query_params.get("tab") == "batch" else "try"
            return gr.Tabs(selected=tab), _header(desk, tab)

        blocks.load(opened, outputs=[tabs, header], api_visibility="private", show_progress="hidden")
    return blocks


def _header(desk: Desk, tab: str) -> str:
    return shown.header_html(desk.title.name, desk.says, review=desk.store is not None, tab=tab)


# --- try ---------------------------------------------------------------------------------------------------


def _try_tab(desk: Desk) -> None:
    with gr.Row(elem_classes="sn-row"):
        with gr.Column(scale=6, min_width=300):
            text = gr.Textbox(
                label="Text", lines=9, max_lines=18, max_length=MOST_CHARACTERS,
                placeholder="Paste a text here", elem_id="try-text", submit_btn=False,
            )  # fmt: skip
            button = gr.Button("Classify", variant="primary", elem_id="try-button")
        with gr.Column(scale=5, min_width=300):
            result = gr.HTML(shown.note_html(TRY_SAYS), elem_id="try-result", apply_default_css=False)
            words = gr.HTML(elem_id="try-words", apply_default_css=False)
    gr.on(
        [button.click, text.submit], _trier(desk), inputs=text, outputs=[result, words],
        show_progress="minimal", concurrency_limit=1, concurrency_id="model", api_visibility="private",
    )  # fmt: skip


def _trier(desk: Desk) -> Callable[[str], Iterator[tuple[str, str]]]:
    def tried(text: str) -> Iterator[tuple[str, str]]:
        """First the label, then, as it takes a pass for each word, what weighed most."""
        text = text or ""
        if not text.strip():
            yield shown.note_html("Paste a text first."), ""
            return
        if len(text) > MOST_CHARACTERS:
            yield shown.note_html(f"A text may have {MOST_CHARACTERS:,} characters here.", "bad"), ""
            return
        with desk.busy:
            found = shown.Tried.of(desk.predictor, text)
        result = shown.result_html(found)
        yield result, shown.note_html("Weighing the words …")
        with desk.busy:
            pieces = word_weights(desk.predictor, text, found.explained)
        yield result, shown.words_html(pieces, desk.predictor.labels.names[found.explained])

    return tried


# --- batch -------------------------------------------------------------------------------------------------


def _batch_tab(desk: Desk) -> None:
    with gr.Row(elem_classes="sn-row"):
        with gr.Column(scale=6, min_width=300):
            file = gr.File(
                label="Table", file_types=list(OUTPUTS), type="filepath", elem_id="batch-file", height=150
            )
            sheet = gr.Dropdown(label="Sheet", visible=False, interactive=True, elem_id="batch-sheet")
            columns = gr.Dropdown(
                label="Text column", info="Several are read one under the other.", multiselect=True,
                visible=False, interactive=True, elem_id="batch-columns",
            )  # fmt: skip
            queue = gr.Checkbox(
                label="Put the uncertain ones, and a few others drawn at random, into the review queue",
                visible=desk.store is not None, container=False, elem_id="batch-queue",
            )  # fmt: skip
            button = gr.Button("Predict", variant="primary", interactive=False, elem_id="batch-button")
        with gr.Column(scale=5, min_width=300):
            result = gr.HTML(
                shown.note_html(_batch_says(desk)), elem_id="batch-result", apply_default_css=False
            )
            output = gr.DownloadButton("Download", visible=False, variant="primary", elem_id="batch-output")
    private: dict[str, Any] = {"api_visibility": "private"}
    file.change(_looker(desk), [file], [sheet, columns, button, result, output], **private)
    sheet.input(_sheet_looker(desk), [file, sheet], [columns, button, result], **private)
    button.click(
        _batcher(desk), [file, sheet, columns, queue], [result, output],
        concurrency_limit=1, concurrency_id="model", show_progress_on=result, **private,
    )  # fmt: skip


def _batch_says(desk: Desk) -> str:
    return (
        f"A table of up to {desk.most_rows:,} rows: Excel, CSV, Parquet or JSON lines. It comes back as "
        f"it is, "
        f"with {len(desk.predictor.added_names)} columns more."
    )


def _looker(desk: Desk) -> Callable[[str | None], tuple[Any, ...]]:
    def look(path: str | None) -> tuple[Any, ...]:
        """A file was chosen, or taken away: which sheets and columns has it?"""
        hidden = gr.DownloadButton(visible=False)
        none = gr.Dropdown(visible=False, choices=[], value=None)
        if path is None:
            return (
                none,
                _no_columns(),
                gr.Button(interactive=False),
                shown.note_html(_batch_says(desk)),
                hidden,
            )
        found = _columns(desk, path, None)  # first: it refuses what would not unpack well
        sheets = _sheets(path)
        several = gr.Dropdown(visible=True, choices=sheets, value=sheets[0]) if len(sheets) > 1 else none
        return (several, *found, hidden)

    return look


def _sheet_looker(desk: Desk) -> Callable[[str | None, str | None], tuple[Any, ...]]:
    def look(path: str | None, sheet: str | None) -> tuple[Any, ...]:
        if path is None:
            return _no_columns(), gr.Button(interactive=False), ""
        return _columns(desk, path, sheet)

    return look


def _columns(desk: Desk, path: str, sheet: str | None) -> tuple[Any, Any, str]:
    """The columns to choose from, the button, and what is to be said."""
    try:
        frame = next(iter(iter_tables(_checked(path), rows_per_batch=1, sheet=sheet)))
    except (UserInputError, StopIteration) as error:
        bad = shown.note_html(_told(error, path) or "The table has no row.", "bad")
        return _no_columns(), gr.Button(interactive=False), bad
    names = list(frame.columns)
    trained = [name for name in desk.predictor.text_columns if name in names]
    chosen = trained if len(trained) == len(desk.predictor.text_columns) else []
    says = "Ready." if chosen else "Choose the column that holds the text."
    columns = gr.Dropdown(visible=True, choices=names, value=chosen)
    return columns, gr.Button(interactive=True), shown.note_html(says)


def _no_columns() -> Any:
    return gr.Dropdown(visible=False, choices=[], value=[])


def _batcher(desk: Desk) -> Callable[..., tuple[str, Any]]:
    def batch(
        path: str | None, sheet: str | None, columns: list[str], queue: bool,
        progress: Any = gr.Progress(),  # noqa: B008  # how Gradio is asked for one
    ) -> tuple[str, Any]:  # fmt: skip
        hidden = gr.DownloadButton(visible=False)
        if path is None or not columns:
            return shown.note_html("Choose a table and the column that holds the text.", "bad"), hidden
        filler = None
        if queue and desk.store is not None:
            filler = QueueFiller(desk.predictor, desk.store, Path(path).name, audit_share=desk.audit_share)
        counted: Counter[str] = Counter()
        try:
            with desk.busy:
                output, counts = _predict(desk, path, sheet, columns, progress, counted, filler)
        except UserInputError as error:
            return shown.note_html(_told(error, path), "bad"), hidden
        told = shown.batch_html(
            counts, counted.most_common(LABELS_SHOWN), output.name, None if filler is None else filler.added,
            desk.predictor.several,
        )  # fmt: skip
        return told, gr.DownloadButton(f"Download {output.name}", value=str(output), visible=True)

    return batch


def _predict(
    desk: Desk, path: str, sheet: str | None, columns: list[str], progress: Any, counted: Counter[str],
    filler: QueueFiller | None,
) -> tuple[Path, dict[str, int]]:  # fmt: skip
    """The table with its predictions, in a file of its own folder, as ``snugtune predict`` writes it."""
    source = _checked(path)
    name = f"{source.stem}-predicted{OUTPUTS[source.suffix.lower()]}"
    output = Path(mkdtemp(dir=get_upload_folder())) / name

    def on_batch(batch: Batch) -> None:
        added = desk.predictor.added_columns(batch.texts, batch.probabilities)
        counted.update(added["predicted_label"].to_list())
        if filler is not None:
            filler(batch)

    counts = predict_table(
        desk.predictor, source, output, text=tuple(columns), observer=_Bar(progress, desk.most_rows),
        on_batch=on_batch, sheet=sheet,
    )  # fmt: skip
    return output, counts


class _Bar(Observer):
    """Gradio's progress bar; it ends what is too long before the model is asked."""

    def __init__(self, progress: Any, most_rows: int) -> None:
        self._progress, self._most_rows = progress, most_rows
        self._total, self._done = 0, 0

    def phase(self, name: str, total: int | None = None) -> None:  # noqa: ARG002  # an observer's
        """Reading, then predicting so many rows."""
        if (total or 0) > self._most_rows:
            raise UserInputError(
                f"The table has {total:,} rows and this page takes {self._most_rows:,}; use snugtune predict "
                "for it."
            )
        self._total, self._done = total or 0, 0
        self._progress(0, desc="Reading the table" if not total else "Predicting")

    def advance(self, done: int) -> None:
        """Rows are done."""
        self._done += done
        if self._total:
            self._progress((self._done, self._total), desc="Predicting", unit="rows")


def _checked(path: str) -> Path:
    """What was uploaded, if it is a kind of table that can come back."""
    found = Path(path)
    if found.suffix.lower() not in OUTPUTS:
        raise UserInputError(f"{found.name} is none of {', '.join(OUTPUTS)}; save it as one of these.")
    return found


def _sheets(path: str) -> list[str]:
    """The sheets of a workbook; none where it is none, or is broken, which reading it tells."""
    if Path(path).suffix.lower() not in (".xlsx", ".xlsm"):
        return []
    try:
        return sheet_names(path)
    except UserInputError:
        return []


def _told(error: Exception, path: str) -> str:
    """The sentence, with the file called what the user calls it."""
    return str(error).replace(str(path), Path(path).name)
