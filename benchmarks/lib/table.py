"""A generated table of any length, and a tiny model that reads it: for measuring how work grows with rows."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from snugtune.files import replacing, write_json

CLASSES = 120
VOCABULARY = 5000
COPIES, NEAR_COPIES = 0.02, 0.02
"""Shares of rows that repeat an earlier one, and that differ from one in a word."""

MAX_LENGTH = 128
ROWS_AT_A_TIME = 10_000

SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u")]


def vocabulary() -> list[str]:
    """Words of three syllables without meaning, none twice."""
    rng = np.random.default_rng(0)
    drawn = rng.choice(len(SYLLABLES) ** 3, VOCABULARY, replace=False).tolist()
    n = len(SYLLABLES)
    return [SYLLABLES[i // n**2] + SYLLABLES[i // n % n] + SYLLABLES[i % n] for i in drawn]


def write_table(path: Path, rows: int, words: float, seed: int = 0) -> None:
    """A CSV of ``id``, ``text`` and ``label``; texts have ``words`` words in the mean, drawn as in languages.

    Written as it is made: a million rows take no more memory than ten thousand.
    """
    rng = np.random.default_rng(seed)
    known = np.array(vocabulary())
    frequency = 1 / np.arange(1, len(known) + 1)  # Zipf's law
    frequency /= frequency.sum()
    texts: list[str] = []
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "label"])
        for start in range(0, rows, ROWS_AT_A_TIME):
            texts = _texts(min(ROWS_AT_A_TIME, rows - start), words, known, frequency, texts, rng)
            labels = rng.integers(0, CLASSES, len(texts)).tolist()
            for i, (text, label) in enumerate(zip(texts, labels, strict=True)):
                writer.writerow([start + i, text, f"class {label:03d}"])


def _texts(
    count: int, words: float, known: Any, frequency: Any, earlier: list[str], rng: np.random.Generator
) -> list[str]:
    lengths = np.clip(rng.gamma(2.0, words / 2.0, count), 3, 6 * words).astype(np.int64)
    drawn = rng.choice(known, int(lengths.sum()), p=frequency).tolist()
    ends = np.cumsum(lengths).tolist()
    made = [" ".join(drawn[end - length : end]) for end, length in zip(ends, lengths.tolist(), strict=True)]
    kind = rng.random(count)
    for i in np.flatnonzero(kind < COPIES + NEAR_COPIES).tolist():
        source = earlier or made[: max(1, i)]
        copied = source[int(rng.integers(len(source)))]
        made[i] = copied if kind[i] < COPIES else f"{copied} {known[int(rng.integers(len(known)))]}"
    return made


def write_run(folder: Path) -> Path:
    """A run folder of a BERT of one layer, 64 wide, with random weights, that knows the table's words."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    names = [f"class {i:03d}" for i in range(CLASSES)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *vocabulary()]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=64, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=128, max_position_embeddings=MAX_LENGTH, initializer_range=0.2,
        id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder / "model")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=MAX_LENGTH)
    tokenizer.save_pretrained(folder / "model")
    record = {
        "labels": names,
        "label_aliases": {},
        "columns": {"text": ["text"], "label": "label"},
        "model": {"folder": "model", "max_length": MAX_LENGTH},
        "decision": {"mixture": {}, "confidence_threshold": 0.5, "precision_target": 0.95},
    }
    write_json(folder / "run.json", record)
    return folder
