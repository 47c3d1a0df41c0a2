"""The real data sets as training and test texts with their labels."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

CFPB_TEXT = "Consumer complaint narrative"


@dataclass(frozen=True)
class Texts:
    """Training and test texts with their labels, rows without either left out."""

    train: list[str]
    train_labels: list[str]
    test: list[str]
    test_labels: list[str]


@dataclass(frozen=True)
class TokenData:
    """``Texts`` as token ids and class ids, the training rows split into training and validation."""

    labels: Any
    backbone: Any
    device: Any
    dtype: Any
    train: Any
    validation: Any
    test: Any


def read_tables(folder: Path, text: str, label: str) -> Texts:
    """``train.csv`` and ``test.csv`` of ``folder``."""
    train, test = (read_table(folder / f"{part}.csv", text, label) for part in ("train", "test"))
    return Texts(*train, *test)


def banking77(folder: Path) -> Texts:
    """Bank customers' questions, 77 intents."""
    return read_tables(folder, "text", "category")


def cfpb(folder: Path, label: str = "Issue") -> Texts:
    """Consumer complaints; ``label`` is Product, Issue or Sub-issue."""
    return read_tables(folder, CFPB_TEXT, label)


def clinc150_rows(folder: Path, *parts: str) -> list[list[str]]:
    """Text and intent of CLINC150's in-scope rows in these ``parts``: train, val, test."""
    found = json.loads((folder / "data_full.json").read_text(encoding="utf-8"))
    return [row for part in parts for row in found[part]]


def clinc150_csv(folder: Path, out: Path) -> tuple[Path, Path]:
    """CLINC150's in-scope rows as two tables in ``out``: its training and validation part, its test part."""
    import polars as pl

    paths = []
    for name, chosen in (("train", ("train", "val")), ("test", ("test",))):
        rows = clinc150_rows(folder, *chosen)
        paths.append(out / f"{name}.csv")
        pl.DataFrame(rows, schema=["text", "intent"], orient="row").write_csv(paths[-1])
    return paths[0], paths[1]


def token_data(texts: Texts, config: Any) -> TokenData:
    """Load the backbone as ``config`` says, split off validation rows and tokenize, all by the product."""
    from snugtune.data.duplicates import near_duplicate_groups
    from snugtune.data.labels import LabelSet
    from snugtune.data.split import split_rows
    from snugtune.data.tokens import tokenize
    from snugtune.model.backbone import load_backbone
    from snugtune.model.precision import compute_dtype, pick_device
    from snugtune.train.engine import Examples

    device = pick_device()
    dtype = compute_dtype(config, device)
    labels = LabelSet(tuple(sorted(set(texts.train_labels))))
    backbone = load_backbone(
        config.model, labels, dtype=dtype, max_length=config.max_length, dropout=config.hidden_dropout,
        virtual_tokens=config.virtual_tokens,
    )  # fmt: skip
    y = labels.encode(texts.train_labels)
    groups = near_duplicate_groups(texts.train)
    split = split_rows(y, groups, validation=config.validation_fraction, test=0.0, seed=config.seed)

    def examples(rows: list[str], classes: Any) -> Any:
        return Examples(tokenize(rows, backbone.tokenizer, backbone.max_length), classes)

    def part(name: str) -> Any:
        rows = split.indices(name)
        return examples([texts.train[i] for i in rows], y[rows])

    test = examples(texts.test, labels.encode(texts.test_labels))
    return TokenData(labels, backbone, device, dtype, part("train"), part("validation"), test)


def like_complaints(config: Any, rows: int, classes: int = 121) -> TokenData:
    """Ids and classes of no meaning, as long as complaints and in as many classes as they have issues.

    The same on every machine, with or without the complaints; nothing can be learned from it.
    """
    from snugtune.data.labels import LabelSet
    from snugtune.model.backbone import load_for_fit
    from snugtune.model.precision import compute_dtype, pick_device
    from snugtune.train.engine import Examples

    from .lengths import cfpb_lengths, random_tokens

    device = pick_device()
    dtype = compute_dtype(config, device)
    labels = LabelSet(tuple(f"class {i:03d}" for i in range(classes)))
    backbone = load_for_fit(config, labels, dtype=dtype, dropout=config.hidden_dropout)
    lengths = np.minimum(cfpb_lengths(rows, config.seed), backbone.max_length)
    ends = backbone.tokenizer("")["input_ids"]
    tokens = random_tokens(lengths, backbone.model.config.vocab_size, (ends[0], ends[-1]), config.seed)
    y = np.random.default_rng(config.seed).integers(0, classes, rows)
    examples = Examples(tokens, y)
    one = subset(examples, [int(lengths.argmin())])
    return TokenData(labels, backbone, device, dtype, examples, one, one)


def replace_train(data: TokenData, train: Any) -> TokenData:
    """``data`` with other training examples."""
    return replace(data, train=train)


def subset(examples: Any, rows: Any) -> Any:
    """The ``rows`` of tokenized examples."""
    from snugtune.data.tokens import Tokens
    from snugtune.train.engine import Examples

    rows = np.asarray(rows)
    tokens = examples.tokens
    chosen = Tokens([tokens.ids[i] for i in rows], tokens.lengths[rows], tokens.truncation)
    return Examples(chosen, examples.y[rows])


def read_table(path: Path, text: str, label: str) -> tuple[list[str], list[str]]:
    import polars as pl

    frame = pl.read_csv(path, infer_schema_length=0, columns=[text, label]).drop_nulls()
    stripped = frame.with_columns(pl.all().str.strip_chars()).filter(pl.all_horizontal(pl.all() != ""))
    return stripped[text].to_list(), stripped[label].to_list()
