"""What the Gradio pages show, as HTML: every word of the data is escaped by the template engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from snugtune.predict.predictor import Predictor
from snugtune.serve.web.words import Piece

RUNNERS_UP = 5
"""Labels shown with their probabilities, the predicted one first."""

STRONGEST = 5
"""Words named beside the marked text."""

SHADES = 4
"""Steps of colour, by the share of the largest weight."""


@dataclass(frozen=True)
class Tried:
    """What the run says of one text: the row that ``predict`` would add, and the most probable labels.

    ``explained`` is the class whose words are weighed: the predicted one, or the most probable.
    """

    row: dict[str, Any]
    ranked: list[tuple[str, float]]
    threshold: float
    precision_target: float | None
    explained: int
    several: bool

    @classmethod
    def of(cls, predictor: Predictor, text: str) -> Tried:
        """Ask ``predictor`` as ``predict`` asks it."""
        probabilities = predictor.probabilities([text])
        (row,) = predictor.added_columns([text], probabilities).to_dicts()
        order = np.argsort(-probabilities[0], kind="stable")
        names = predictor.labels.names
        return cls(
            row, [(names[k], float(probabilities[0, k])) for k in order[:RUNNERS_UP].tolist()],
            predictor.confidence_threshold, getattr(predictor.decision, "precision_target", None),
            int(order[0]), predictor.several,
        )  # fmt: skip


def result_html(tried: Tried) -> str:
    """Label, confidence, whether a person should look, and the runners-up."""
    return _render("result", tried=tried)


def words_html(pieces: Sequence[Piece], label: str) -> str:
    """The text with each piece shaded by its weight, and the strongest ones named."""
    most = max((abs(piece.weight) for piece in pieces), default=0.0)
    shaded = [(piece, _shade(piece.weight, most)) for piece in pieces]
    strongest = sorted(pieces, key=lambda piece: -abs(piece.weight))[:STRONGEST]
    return _render("words", shaded=shaded, strongest=strongest, label=label)


def batch_html(
    counts: dict[str, int], labels: Sequence[tuple[str, int]], file: str, queued: int | None, several: bool
) -> str:
    """What came of a table: rows, rows to review, the commonest labels."""
    return _render("batch", counts=counts, labels=labels, file=file, queued=queued, several=several)


def header_html(name: str, says: str, *, review: bool, tab: str) -> str:
    """The top of the page, with the way to the other ones; ``tab`` is the one that is shown."""
    return _render("header", name=name, says=says, review=review, tab=tab)


def note_html(sentence: str, kind: str = "plain") -> str:
    """One sentence in a box: ``plain`` or ``bad``."""
    return _render("note", sentence=sentence, kind=kind)


def _shade(weight: float, most: float) -> str:
    """A class of the style: p1 to p4 for the label, n1 to n4 against it, none where it hardly matters."""
    step = round(SHADES * abs(weight) / most) if most > 0 else 0
    return f"{'p' if weight > 0 else 'n'}{step}" if step else ""


def _render(macro: str, /, **told: Any) -> str:
    html = str(getattr(_environment().get_template("shown.html").module, macro)(**told))
    # Gradio runs what it is given through two template languages, whose signs become plain characters here.
    for sign in "$`{}":
        html = html.replace(sign, f"&#{ord(sign)};")
    return html


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("snugtune.serve.web", "page"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["percent"] = _percent
    return environment


def _percent(share: float, digits: int = 1) -> str:
    """A probability for people: one that is not quite 1 does not look like it."""
    if 0.9995 <= share < 1 and digits == 1:
        return "> 99.9 %"
    return f"{100 * share:.{digits}f} %"
