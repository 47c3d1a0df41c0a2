"""The averages by which a run is told, by what a text carries: one label, or any number."""

from __future__ import annotations

from typing import Any

ONE_LABEL = (
    ("accuracy", "Accuracy"),
    ("f1_macro", "F1, macro"),
    ("f1_weighted", "F1, weighted"),
    ("ece", "Calibration error"),
)
SEVERAL_LABELS = (
    ("f1_micro", "F1, micro"),
    ("f1_macro", "F1, macro"),
    ("accuracy", "Exactly right"),
    ("hamming_loss", "Hamming loss"),
    ("lrap", "Ranking precision"),
    ("ece", "Calibration error"),
)


def has_several_labels(record: dict[str, Any]) -> bool:
    """Whether the run of ``run.json`` gives any number of labels to a text."""
    return record.get("label_separator") is not None


def headline(record: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Keys of a part's metrics with their names, the one that counts most first."""
    return SEVERAL_LABELS if has_several_labels(record) else ONE_LABEL
