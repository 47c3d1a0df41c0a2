"""Decisions that stand, in the formats of other tools: CSV, Label Studio's tasks, Argilla's records."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

from snugtune.data.label_sets import join_label_sets
from snugtune.serve.web.reviews import ReviewStore

CSV_COLUMNS = (
    "text", "label", "kind", "who", "at", "predicted_label", "confidence", "given_label", "reason",
    "source", "row",
)  # fmt: skip
"""``text`` and ``label`` come first: the file is a table that ``snugtune fit`` takes as it is."""

AGENT = "snugtune"


def as_csv(store: ReviewStore) -> Iterator[str]:
    """A line by decision that stands; a skipped text has no label."""
    separator = store.separator()
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in store.standing():
        writer.writerow(
            (
                row["text"], _cell(row["labels"] or [], separator), row["kind"], row["who"], row["at"],
                _cell(row["predicted"], separator), row["confidence"], row["given"], row["reason"],
                row["source"], row["row"],
            )
        )  # fmt: skip
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue()


def as_label_studio(store: ReviewStore) -> Iterator[str]:
    """Tasks with predictions and annotations: https://labelstud.io/guide/task_format.

    For a labelling interface of ``<Text name="text" value="$text"/>`` and
    ``<Choices name="label" toName="text">``. A skipped text is an annotation that was cancelled. People are
    in ``meta``: ``completed_by`` would have to be an account there.
    """

    def task(row: dict[str, Any]) -> dict[str, Any]:
        skipped = row["kind"] == "skip"
        return {
            "data": {"text": row["text"]},
            "meta": {key: row[key] for key in ("who", "at", "kind", "reason", "source", "row", "given")},
            "predictions": [
                {
                    "model_version": AGENT, "score": row["confidence"],
                    "result": _choices(row["predicted"], row["confidence"]),
                }
            ],
            "annotations": [
                {"result": [] if skipped else _choices(row["labels"]), "was_cancelled": skipped}
            ],
        }  # fmt: skip

    return _json_list(store, task)


def as_argilla(store: ReviewStore) -> Iterator[str]:
    """Flat records for ``dataset.records.log`` (https://docs.argilla.io/latest/how_to_guides/record/).

    With ``mapping={"response": "label.response", "score": "label.suggestion.score", "agent":
    "label.suggestion.agent"}`` and a question ``label`` (of labels, or of several labels).
    """
    several = store.separator() is not None

    def record(row: dict[str, Any]) -> dict[str, Any]:
        def value(labels: list[str] | None) -> Any:
            return labels if several or labels is None else labels[0]

        scores = dict(map(tuple, row["candidates"]))
        return {
            "id": row["text_hash"], "text": row["text"], "label": value(row["predicted"]),
            "score": [scores.get(name) for name in row["predicted"]] if several else row["confidence"],
            "agent": AGENT, "response": value(row["labels"]),
            **{key: row[key] for key in ("who", "at", "kind", "reason", "source", "row", "given")},
        }  # fmt: skip

    return _json_list(store, record)


FORMATS: dict[str, tuple[Callable[[ReviewStore], Iterator[str]], str, str]] = {
    "csv": (as_csv, "reviews.csv", "text/csv; charset=utf-8"),
    "label-studio": (as_label_studio, "reviews-label-studio.json", "application/json"),
    "argilla": (as_argilla, "reviews-argilla.json", "application/json"),
}
"""By name: what writes it, the name of its file, its media type."""


def _choices(labels: list[str], score: float | None = None) -> list[dict[str, Any]]:
    if not labels:
        return []
    told = {"from_name": "label", "to_name": "text", "type": "choices", "value": {"choices": labels}}
    return [told if score is None else {**told, "score": score}]


def _cell(labels: list[str], separator: str | None) -> str:
    return "".join(labels[:1]) if separator is None else join_label_sets([labels], separator)[0]


def _json_list(store: ReviewStore, told: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[str]:
    """A list, an item a line."""
    before = "[\n"
    for row in store.standing():
        yield before + json.dumps(told(row), ensure_ascii=False)
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"
