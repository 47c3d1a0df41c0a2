"""Which texts of an unlabelled table to label next, as a spreadsheet to be filled in and given to ``fit``.

The pool is read by a model that is frozen, of which what it said is kept (``train/feature_store.py``): a
second call over the same texts reads none of them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from snugtune.config import FitConfig
from snugtune.data.cells import label_cells
from snugtune.data.columns import Columns, choose_columns, join_texts
from snugtune.data.duplicates import near_duplicate_groups
from snugtune.data.labelled import read_additions
from snugtune.data.labels import LabelSet, merge_variants_of
from snugtune.data.reviews import last_word
from snugtune.data.table import Table, read_table, reading_beside
from snugtune.data.to_label import LABEL, ToLabel, check_output, check_room, write_to_label
from snugtune.data.tokens import Tokens, tokenize
from snugtune.errors import UserInputError
from snugtune.evaluate.selection import STRATEGIES, Chosen, Strategy, by_labels_spent, choose, learn
from snugtune.model.adapter import virtual_tokens
from snugtune.model.backbone import load_for_fit
from snugtune.model.head import Head, find_head
from snugtune.model.packing import plain
from snugtune.model.precision import compute_dtype, pick_device
from snugtune.predict.predictor import Predictor
from snugtune.predict.record import read_record
from snugtune.progress import Observer
from snugtune.train.features import frozen_pass

Features = NDArray[np.float32]
Probabilities = NDArray[np.float64]

STRATEGY_NAMES = ("auto", *STRATEGIES)

_PLACEHOLDER = LabelSet(("a", "b"))
"""Classes of a head that nobody asks: the features are what its input is."""


@dataclass(frozen=True)
class Pool:
    """The texts that may be chosen, each once (N), and those that have a label already (L).

    ``rows`` (N,) are the rows of the pool's file as a spreadsheet numbers them, ``given`` (L) the labels of
    ``labelled``. ``in_table`` texts had no label; of them ``repeated`` are near-duplicates of others there,
    ``like_labelled`` of labelled ones, and both are left out.
    """

    texts: list[str]
    rows: NDArray[np.int64]
    labelled: list[str]
    given: list[str]
    in_table: int
    repeated: int
    like_labelled: int

    @property
    def names(self) -> tuple[str, ...]:
        """The labels given so far."""
        return tuple(sorted(set(self.given)))

    def sentence(self) -> str:
        """One line for the person at the keyboard."""
        told = f"{self.in_table:,} texts without a label, {len(self.labelled):,} with one"
        if self.repeated or self.like_labelled:
            told += (
                f"; {self.repeated:,} are near-duplicates of others without a label and "
                f"{self.like_labelled:,} of labelled ones, left out"
            )
        return f"{told}."


@dataclass(frozen=True)
class Known:
    """Where labels are beside the pool: a ``table``, how it is read, and files that were ``added`` to it."""

    table: str | None
    reading: dict[str, Any]
    added: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """What a model makes of the pool: ``features`` (N, H) for clusters, and of the labelled texts (L, H).

    ``inputs`` (N, D) are what its last layer is given and ``probabilities`` (N, K) what it says of ``names``;
    None where nothing was learned yet.
    """

    features: Features
    labelled: Features
    inputs: NDArray[Any] | None
    probabilities: Probabilities | None
    names: tuple[str, ...]


def select(
    pool: str,
    out: str | Path,
    config: FitConfig,
    *,
    labelled: str | None = None,
    run: str | Path | None = None,
    count: int = 100,
    strategy: str = "auto",
    overwrite: bool = False,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Write the ``count`` texts of the table ``pool`` that are most worth a label to the spreadsheet ``out``.

    Labels are learned from the table ``labelled``, from the rows of ``pool`` that have one where ``config``
    names the label column, and from the spreadsheets of ``config.add``; or stand in a finished ``run``, whose
    model then reads the texts, and whose own table and spreadsheets are looked at. Else the model of
    ``config`` reads them. Without any labels, typical texts are chosen. ``config.train`` is not looked at.

    Returns what was done, JSON-ready.

    Raises:
        UserInputError: a table, the run, a setting or ``out`` cannot be used, or every text has a label.
    """
    observer = observer or Observer()
    out = Path(out)
    check_output(out, overwrite=overwrite)
    if strategy not in STRATEGY_NAMES:
        raise UserInputError(f"The strategy must be one of {', '.join(STRATEGY_NAMES)}, not {strategy!r}.")
    if count < 1:
        raise UserInputError(f"The count must be 1 or more, not {count}.")
    observer.phase("data")
    predictor = None if run is None else _load_run(run, observer)
    known = _known(run, labelled, config, observer)
    found = _read_pool(pool, known, config, predictor)
    observer.say(found.sentence())
    check_room(out, min(count, len(found.texts)))
    reading = (
        _read_by_model(found, config, observer)
        if predictor is None
        else _read_by_run(found, predictor, observer)
    )
    how = _strategy(strategy, found, reading, predictor is not None)
    chosen = choose(
        how, count, reading.features if how == "typicality" or reading.inputs is None else reading.inputs,
        reading.probabilities, reading.labelled, seed=config.seed,
    )  # fmt: skip
    names = reading.names or found.names
    write_to_label(_rows(found, reading, chosen, how), names, out)
    return {
        "pool": {"file": pool, "texts": found.in_table, "repeated": found.repeated,
                 "like_labelled": found.like_labelled},
        "labelled": len(found.labelled), "labelled_file": known.table or (pool if found.labelled else None),
        "added_files": list(known.added),
        "labels": list(names), "run": None if run is None else str(run),
        "asked": strategy, "strategy": how, "chosen": len(chosen.rows), "file": str(out),
    }  # fmt: skip


def _load_run(run: str | Path, observer: Observer) -> Predictor:
    predictor = Predictor.load(run, observer=observer)
    if predictor.several:
        raise UserInputError(
            f"{run} gives texts several labels each, for which nothing can be selected; queue them in the "
            "review page of snugtune app instead."
        )
    if virtual_tokens(predictor.model):
        raise UserInputError(
            f"The model of {run} puts virtual tokens before each text, so its features cannot be kept; leave "
            "--run out and give the labelled table with --labelled."
        )
    return predictor


def _known(run: str | Path | None, labelled: str | None, config: FitConfig, observer: Observer) -> Known:
    """What is given, and what ``run`` was trained on as far as it still is where it was."""
    added = _files(config.add)
    reading: dict[str, Any] = {}
    if labelled is not None:
        reading = reading_beside(labelled, (), encoding=config.encoding, delimiter=config.delimiter)
    if run is None:
        return Known(labelled, reading, added)
    of_run = read_record(Path(run)).get("config") or {}
    if labelled is None:
        labelled = _there(of_run.get("train"), f"The table that {run} was trained on", "--labelled", observer)
        reading = {name: of_run.get(name) for name in ("sheet", "encoding", "delimiter")}
    more = [
        _there(path, f"{path}, which {run} was trained on", "--add", observer)
        for path in _files(of_run.get("add"))
    ]
    return Known(labelled, reading, tuple(dict.fromkeys([*filter(None, more), *added])))


def _files(given: str | Sequence[str] | None) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given or ())


def _there(source: str | None, called: str, option: str, observer: Observer) -> str | None:
    if source is not None and Path(source).is_file():
        return source
    observer.say(
        f"{called} is not where it was; its texts may be chosen again if they are in the pool. Name it with "
        f"{option}."
    )
    return None


# --- texts -----------------------------------------------------------------------------------------------


def _read_pool(pool: str, known: Known, config: FitConfig, predictor: Predictor | None) -> Pool:
    """The texts of all tables; near-duplicates of a labelled or an earlier one are left out."""
    known_texts, given, columns = _read_labelled(known, config, predictor)
    read = _read(pool, config)
    named = _named(read, config.text, columns) or config.text
    chosen = choose_columns(read.frame, source=read.source, text=named, label=None, need_label=False)
    texts = _texts(read, chosen)
    own = _own_labels(read, config, needed=known.table is None and predictor is None)
    is_open = [bool(text) and not label for text, label in zip(texts, own, strict=True)]
    for text, label in zip(texts, own, strict=True):
        if text and label:
            known_texts.append(text)
            given.append(label)
    label_column = config.label if isinstance(config.label, str) else predictor and predictor.label_column
    columns_of = Columns(chosen.text, label_column or LABEL)
    labels = LabelSet(tuple(sorted(set(given))))
    added = [read_additions(path, columns_of, labels, encoding=config.encoding) for path in known.added]
    for one in last_word(one for found in added for one in found):
        known_texts.append(one.text)
        given.append(one.labels[0])
    rows = np.flatnonzero(is_open)
    if not len(rows):
        raise UserInputError(f"Every text of {read.source} has a label, or there is none; nothing to select.")
    candidates = [texts[i] for i in rows.tolist()]
    groups = near_duplicate_groups([*known_texts, *candidates])
    of_known, of_rows = groups[: len(known_texts)], groups[len(known_texts) :]
    like_labelled = np.isin(of_rows, of_known)
    first = np.zeros(len(rows), dtype=bool)
    first[np.unique(of_rows, return_index=True)[1]] = True
    kept = first & ~like_labelled
    if not kept.any():
        raise UserInputError(
            f"Every text of {read.source} is a near-duplicate of a labelled one; nothing to select."
        )
    return Pool(
        [candidates[i] for i in np.flatnonzero(kept).tolist()], read.places(rows[kept]) + read.first_row,
        known_texts, merge_variants_of(given), len(rows), int((~first & ~like_labelled).sum()),
        int(like_labelled.sum()),
    )  # fmt: skip


def _read(source: str, config: FitConfig) -> Table:
    return read_table(source, sheet=config.sheet, encoding=config.encoding, delimiter=config.delimiter)


def _read_labelled(
    known: Known, config: FitConfig, predictor: Predictor | None
) -> tuple[list[str], list[str], tuple[str, ...] | None]:
    """Texts and labels of the labelled table, and the text columns to look for in the pool."""
    columns = None if predictor is None else predictor.text_columns
    if known.table is None:
        return [], [], columns
    read = read_table(known.table, **known.reading)
    label = config.label or (None if predictor is None else predictor.label_column)
    named = _named(read, config.text, columns) or columns
    chosen = choose_columns(read.frame, source=read.source, text=named, label=label)
    texts = _texts(read, chosen)
    cells = _cells(read, chosen.labels[0])
    both = [i for i, (text, cell) in enumerate(zip(texts, cells, strict=True)) if text and cell]
    if not both:
        raise UserInputError(f"{read.source} has no row with both a text and a label; check --text, --label.")
    return [texts[i] for i in both], [cells[i] for i in both], chosen.text


def _named(read: Table, *choices: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The first of ``choices`` of text columns that the table has; None if it has none of them."""
    there = (names for names in choices if names and all(name in read.frame.columns for name in names))
    return next(there, None)


def _own_labels(read: Table, config: FitConfig, *, needed: bool) -> list[str]:
    """The labels that rows of the pool have already, blank where they have none."""
    if not isinstance(config.label, str):
        return [""] * read.frame.height
    if config.label not in read.frame.columns:
        if needed:
            # It says which columns there are.
            choose_columns(read.frame, source=read.source, text=None, label=config.label)
        return [""] * read.frame.height
    return _cells(read, config.label)


def _texts(read: Table, columns: Columns) -> list[str]:
    texts = join_texts(read.frame, columns.text, source=read.source, row_of=read.row_of)
    return [text.strip() for text in texts]


def _cells(read: Table, name: str) -> list[str]:
    return label_cells(read.frame[name], source=read.source, row_of=read.row_of)


# --- what a model makes of them --------------------------------------------------------------------------


def _read_by_model(found: Pool, config: FitConfig, observer: Observer) -> Reading:
    """Features of the published model, and what a probe learns from the labels so far."""
    device = pick_device()
    dtype = compute_dtype(config, device)
    backbone = load_for_fit(config, _PLACEHOLDER, dtype=dtype, device=device)
    way = "truncate" if config.long_texts == "auto" else config.long_texts
    tokens = tokenize([*found.labelled, *found.texts], backbone.tokenizer, backbone.max_length, way)
    model = backbone.model.to(device)
    features = _features(
        model, find_head(model), tokens, int(backbone.tokenizer.pad_token_id), device, dtype, observer
    )
    labelled, pool = np.split(features, [len(found.labelled)])
    names = found.names
    if len(names) < 2:
        return Reading(pool, labelled, None, None, names)
    learner = learn(labelled, LabelSet(names).encode(found.given), seed=config.seed)
    return Reading(pool, labelled, learner.inputs(pool), learner.probabilities(pool), names)


def _read_by_run(found: Pool, predictor: Predictor, observer: Observer) -> Reading:
    """Features of the run's own model, and its calibrated probabilities, from one pass."""
    tokens = predictor.tokens([*found.labelled, *found.texts])
    model: Any = plain(predictor.model)
    head = find_head(model)
    rows = _of_rows(
        model, head, tokens, predictor.tokenizer.pad_token_id, predictor.device, torch.float32, observer
    )
    inputs = _last_inputs(head, rows, predictor.device)
    with torch.inference_mode():
        logits = head.final(torch.from_numpy(inputs).to(predictor.device)).float().cpu().numpy()
    labelled = len(found.labelled)
    of_pool = tokens.pooled(logits)[labelled:]
    scores = predictor.baseline_scores(found.texts)
    features = tokens.pooled(rows)
    return Reading(
        features[labelled:], features[:labelled], tokens.pooled(inputs)[labelled:],
        predictor.decision.probabilities(of_pool, scores), predictor.labels.names,
    )  # fmt: skip


def _last_inputs(head: Head, rows: Features, device: torch.device) -> Features:
    """What the last layer is given for rows of ``head.feature_layer``'s input (R, H): (R, D)."""
    if head.dense is None or head.activation is None:
        return rows
    with torch.inference_mode():
        found = head.activation.function(head.dense(torch.from_numpy(rows).to(device)))
    return np.asarray(found.float().cpu().numpy())


def _features(
    model: Any, head: Head, tokens: Tokens, pad_token_id: int, device: torch.device, dtype: torch.dtype,
    observer: Observer,
) -> Features:  # fmt: skip
    return tokens.pooled(_of_rows(model, head, tokens, pad_token_id, device, dtype, observer))


def _of_rows(
    model: Any, head: Head, tokens: Tokens, pad_token_id: int, device: torch.device, dtype: torch.dtype,
    observer: Observer,
) -> Features:  # fmt: skip
    """What the head's first layer is given for each row of tokens (R, H): read, or remembered."""
    observer.say(tokens.sentence())
    observer.phase("probe", tokens.rows)
    found = frozen_pass(
        model, head, [tokens], pad_token_id=pad_token_id, device=device, dtype=dtype,
        on_rows=observer.advance,
    )  # fmt: skip
    if found.rows_from_cache:
        observer.say(found.sentence())
    return np.asarray(found.features, dtype=np.float32)


# --- what is chosen, and why -----------------------------------------------------------------------------


def _strategy(asked: str, found: Pool, reading: Reading, by_run: bool) -> Strategy:
    """The strategy that ``asked`` stands for here.

    Raises:
        UserInputError: it needs labels of two classes or more, and there are none.
    """
    if asked == "auto":
        if by_run and reading.probabilities is not None:
            return "badge"
        return by_labels_spent(len(found.labelled), len(found.names))
    if asked in ("margin", "badge") and reading.probabilities is None:
        raise UserInputError(
            f"--strategy {asked} needs labelled texts of two classes or more; give them with --labelled, or "
            "begin with --strategy typicality."
        )
    strategy: Any = asked
    return strategy  # type: ignore[no-any-return]


def _rows(found: Pool, reading: Reading, chosen: Chosen, how: Strategy) -> list[ToLabel]:
    told = []
    for place, i in enumerate(chosen.rows.tolist()):
        best = _two_best(reading, i)
        size = None if chosen.cluster_size is None else int(chosen.cluster_size[place])
        told.append(
            ToLabel(
                int(found.rows[i]), found.texts[i], best[0][0] if best else None,
                best[0][1] if best else None, _reason(how, best, size),
            )
        )  # fmt: skip
    return told


def _two_best(reading: Reading, i: int) -> list[tuple[str, float]]:
    """The two most probable labels of text ``i`` with their probabilities; empty before any is known."""
    if reading.probabilities is None:
        return []
    of = reading.probabilities[i]
    return [(reading.names[k], float(of[k])) for k in np.argsort(-of, kind="stable")[:2].tolist()]


def _reason(how: Strategy, best: Sequence[tuple[str, float]], cluster_size: int | None) -> str:
    if how == "random":
        return "drawn at random"
    if how == "typicality":
        return f"typical of {cluster_size:,} texts like it" if cluster_size != 1 else "unlike all others"
    between = " and ".join(f"{name} ({100 * p:.0f} %)" for name, p in best)
    return (
        f"undecided between {between}"
        if how == "margin"
        else f"would change the model much, unlike the others here: {between}"
    )
