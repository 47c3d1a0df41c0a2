"""Which predictions a person should look at: the uncertain ones, and a few of the others at random."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from snugtune.data.cells import label_cells
from snugtune.data.identity import text_id
from snugtune.errors import UserInputError
from snugtune.predict.predictor import Batch, Predictor
from snugtune.progress import Observer
from snugtune.serve.web.reviews import Prediction, ReviewStore

AUDIT_SHARE = 0.02
"""Of the predictions that need no review: enough to see whether they keep their promise, little to look at.
"""

CANDIDATES = 9
"""Labels offered beside the text, one for each number key."""


class QueueFiller:
    """Puts predictions into a store, batch by batch; ``rows`` counts the rows seen, ``added`` new items."""

    def __init__(
        self, predictor: Predictor, store: ReviewStore, source: str, *, audit_share: float = AUDIT_SHARE
    ) -> None:
        self._predictor, self._store, self._source, self._share = predictor, store, source, audit_share
        self.rows = self.added = 0

    def __call__(self, batch: Batch) -> None:
        """One batch more."""
        found = chosen(self._predictor, batch, self._source, first_row=self.rows, audit_share=self._share)
        self.added += self._store.add(found)
        self.rows += len(batch.texts)


def fill_queue(
    predictor: Predictor,
    store: ReviewStore,
    source: str | Path,
    *,
    audit_share: float = AUDIT_SHARE,
    observer: Observer | None = None,
    **reading: Any,
) -> int:
    """Classify the table ``source`` and queue what a person should look at; returns how many texts are new.

    Raises:
        UserInputError: the table cannot be read or lacks the columns.
    """
    filler = QueueFiller(predictor, store, Path(str(source)).name, audit_share=audit_share)
    for batch in predictor.batches(source, observer=observer, **reading):
        filler(batch)
    return filler.added


def chosen(
    predictor: Predictor, batch: Batch, source: str, *, first_row: int, audit_share: float
) -> Iterator[Prediction]:
    """The rows of ``batch`` that a person should look at; rows without text are left out.

    Uncertain ones come in the order of their confidence. Which others are drawn, and where among them they
    stand, is decided by the hash of the text: as good as random, the same in every run, and not to be told
    from the rest by who looks at them.
    """
    probabilities = batch.probabilities
    labels, confidence = _predicted(predictor, probabilities)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :CANDIDATES]
    names = predictor.labels.names
    threshold = predictor.confidence_threshold
    given = _given(predictor, batch)
    for i, text in enumerate(batch.texts):
        if not text.strip():
            continue
        mark = text_id(text.strip())
        drawn, place = (mark & 0xFFFFFFFF) / 2**32, (mark >> 32) / 2**32
        uncertain = confidence[i] < threshold
        if not uncertain and drawn >= audit_share:
            continue
        yield Prediction(
            text=text, predicted=labels[i], confidence=confidence[i],
            candidates=tuple((names[k], float(probabilities[i, k])) for k in order[i].tolist()),
            reason="uncertain" if uncertain else "audit",
            position=confidence[i] if uncertain else place * min(threshold, 1.0),
            source=source, row=first_row + i, given=given[i],
        )  # fmt: skip


def _predicted(predictor: Predictor, probabilities: Any) -> tuple[list[tuple[str, ...]], list[float]]:
    """The labels given to each row, and how sure that is, as ``predict`` tells them."""
    if predictor.several:
        found = predictor.label_sets(probabilities)
        return predictor.labels.decode_sets(found.labels), np.asarray(found.confidence, np.float64).tolist()
    names = predictor.labels.names
    best = probabilities.argmax(1).tolist() if len(probabilities) else []
    return [(names[k],) for k in best], probabilities.max(1, initial=0.0).tolist()


def _given(predictor: Predictor, batch: Batch) -> list[str | None]:
    """The label that the table itself has, if it has the run's column."""
    name = predictor.label_column
    if isinstance(name, str) and name in batch.frame.columns:
        return [cell or None for cell in label_cells(batch.frame[name])]
    return [None] * len(batch.texts)


def check_share(share: float) -> None:
    """Refuse what is no share.

    Raises:
        UserInputError: below 0 or above 1.
    """
    if not 0 <= share <= 1:
        raise UserInputError(f"--audit-share is a share between 0 and 1, not {share:g}.")
