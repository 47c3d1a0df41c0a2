"""One self-contained HTML file: how good a run is, how sure, what it cost and whether it was worth it.

Made from the run folder's files alone. It loads nothing: its Content-Security-Policy admits just the style
and the script that are in it, by their SHA-256, and the template engine escapes whatever the data holds.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import ChainableUndefined, Environment, PackageLoader
from markupsafe import Markup

from snugtune.data.audit import without_texts
from snugtune.data.readers.parquet import check_parquet
from snugtune.errors import UserInputError, one_line
from snugtune.files import write_text
from snugtune.report import formats, views
from snugtune.report.damage import told_of_record
from snugtune.report.headline import has_several_labels

NAME = "report.html"
SCORE_NAMES = {"accuracy": "accuracy", "f1_macro": "macro F1", "f1_micro": "micro F1"}


@dataclass(frozen=True)
class RunFiles:
    """What a run folder tells: ``run.json``, the lines of the journals, the rows (None if not there)."""

    record: dict[str, Any]
    metrics: list[dict[str, Any]]
    memory: list[dict[str, Any]]
    predictions: pl.DataFrame | None

    def without_texts(self) -> RunFiles:
        """The same with no word of the user's texts; labels stay."""
        rows = self.predictions
        if rows is not None and "text" in rows.columns:
            rows = rows.drop("text")
        audit = self.record.get("audit")
        record = {**self.record, "audit": without_texts(audit)} if audit else self.record
        return replace(self, record=record, predictions=rows)


def write_report(run: str | Path, path: str | Path | None = None, *, texts: bool | None = None) -> Path:
    """Write the page of the run folder ``run`` to ``path`` (``report.html`` in it) and return its path.

    ``texts=False`` leaves out every text of a row; labels are always shown. None: as the run was told
    (``report_texts``).

    Raises:
        UserInputError: the folder is no run, a file of it cannot be read, or ``path`` cannot be written.
    """
    found = read_run_files(run)
    path = Path(run) / NAME if path is None else Path(path)
    with told_of_record(run):
        if texts is None:
            texts = (found.record.get("config") or {}).get("report_texts", True)
        page = report_html(found if texts else found.without_texts())
    write_text(path, page)
    return path


def read_run_files(run: str | Path) -> RunFiles:
    """Read what the report is made from; only ``run.json`` has to be there.

    Raises:
        UserInputError: the folder is no run, or a file of it cannot be read.
    """
    folder = Path(run)
    if not (folder / "run.json").is_file():
        raise UserInputError(
            f"The folder {folder} is no run (it has no run.json); name what fit has written."
        )
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        metrics, memory = (_lines(folder / name) for name in ("metrics.jsonl", "memory.jsonl"))
        rows = folder / "predictions.parquet"
        if rows.is_file():
            check_parquet(rows)
        predictions = pl.read_parquet(rows) if rows.is_file() else None
    except (
        ValueError,
        RecursionError,
        OSError,
        pl.exceptions.PolarsError,
        pl.exceptions.PanicException,
    ) as error:
        raise UserInputError(
            f"A file of the run {folder} cannot be read ({one_line(error)}); copy the run anew."
        ) from None
    if not isinstance(record, dict) or not record.get("metrics"):
        raise UserInputError(
            f"The file {folder / 'run.json'} holds no metrics, so there is nothing to report."
        )
    return RunFiles(record, metrics, memory, predictions)


def report_html(run: RunFiles) -> str:
    """The whole page."""
    # A field that is null says no more than one that is missing; a setting that is null is one.
    told = {**without_nulls(run.record), "config": run.record.get("config") or {}}
    run = replace(run, record=told)
    style, script = part_of_page("page.css"), part_of_page("page.js")
    context = {
        "run": run.record,
        **page_views(run),
        "style": Markup(style),
        "script": Markup(script),
        "policy": content_security_policy(style, script),
    }
    page = environment().get_template("page.html").render(context)
    # Half of a surrogate pair, which JSON can carry, is no text that a file can hold.
    return page.encode("utf-8", "replace").decode("utf-8")


def content_security_policy(style: str, script: str) -> str:
    """The policy that admits these two and nothing else; ``data:`` is the empty icon."""
    return (
        f"default-src 'none'; style-src '{_source_hash(style)}'; script-src '{_source_hash(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def data_block(value: Any) -> Markup:
    """JSON for a ``<script type="application/json">``: no character in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def page_views(run: RunFiles) -> dict[str, Any]:
    """Everything the templates show beside the record itself."""
    record, part = run.record, views.shown_part(run.record)
    best_step = record.get("training", {}).get("best_step")
    metric = record.get("config", {}).get("metric", "accuracy")
    score_name = SCORE_NAMES.get(metric, metric)
    trained = views.trained_rows(run.predictions, record.get("label_separator"))
    rows = views.comparison_rows(record, part)
    confusion = views.confusion_view(record, part)
    examples = [row for pair in (confusion or {}).get("pairs", []) for row in pair.get("examples") or []]
    curve = views.automation_curve(record, part)
    return {
        "part": part,
        "several": has_several_labels(record),
        "metrics": record["metrics"][part],
        "comparison": rows,
        "comparison_chart": views.comparison_chart(rows),
        "curve": curve,
        "classes": views.class_rows(record, part, trained),
        "confusion": confusion,
        "texts": views.texts_of(run.predictions, part, examples),
        "errors": views.confident_errors(run.predictions, part),
        "first_row": views.first_row(record),
        "cost_after_quote": views.seconds_after_quote(record),
        "reliability": views.reliability_charts(record, part),
        "slices": views.slice_rows(record, part),
        "loss": views.loss_chart(run.metrics, best_step),
        "score_name": score_name,
        "scores": views.score_chart(run.metrics, best_step, score_name),
        "rates": views.rate_chart(run.metrics),
        "memory": views.memory_view(record, run.memory),
        "class_sizes": views.class_sizes_chart(trained),
        "learning_curve": views.learning_curve_chart(record),
        "settings": views.settings_view(record.get("config", {})),
        "data": data_block({"map": (confusion or {}).get("data"), "risk": (curve or {}).get("stops")}),
    }


def without_nulls(value: Any) -> Any:
    """The value without fields that are null, at any depth."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def environment() -> Environment:
    """What renders the templates; whatever the data holds is escaped."""
    environment = Environment(
        loader=PackageLoader("snugtune.report", "templates"), autoescape=True,
        undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(
        percent=formats.percent, points=formats.points, number=formats.number, count=formats.count,
        figure=formats.figure, money=formats.money,
        time=formats.time, interval=formats.interval, probability=formats.probability,
        words=formats.words, setting=formats.setting, share_bar=formats.share_bar, between=formats.between,
    )  # fmt: skip
    environment.globals["span"] = formats.span
    return environment


def part_of_page(name: str) -> str:
    """A file of the page's templates as it is."""
    return (files("snugtune.report") / "templates" / name).read_text(encoding="utf-8")


def _source_hash(content: str) -> str:
    """A hash source of https://www.w3.org/TR/CSP3/#match-element-to-source-list, of the element's text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode("ascii")


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
