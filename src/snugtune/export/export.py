"""``snugtune export``: a finished run into a folder for other programs, or onto the Hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from snugtune.config import MULTI_LABEL, SINGLE_LABEL
from snugtune.data.tokens import Tokens, tokenize
from snugtune.errors import ArtifactError, UserInputError
from snugtune.evaluate.multilabel.decision import LabelSetDecision
from snugtune.export import static
from snugtune.export.check import answers
from snugtune.export.serving import GRAPH_OF_PAGE, Verdict, check_folder, complete_config
from snugtune.export.space import check_public, check_space, require_app, write_space
from snugtune.files import check_free_space, staged_folder, write_json, write_text
from snugtune.model.artifact import Saved, check_reloads, save_model, write_tokenizer
from snugtune.predict.agreement import EXACT, ROUNDED, Agreement, Logits, Tolerance
from snugtune.predict.held_out import HeldOut, read_held_out
from snugtune.predict.int8 import (
    ROWS_TO_MEASURE,
    agreement_on,
    check_mergeable,
    logits_of,
    long_texts_of,
    reference_model,
)
from snugtune.predict.onnx import require_onnx, weight_bytes, write_int8, write_onnx
from snugtune.predict.predictor import Predictor, check_classes, checked_decision
from snugtune.predict.record import read_record
from snugtune.progress import Observer
from snugtune.report.card import export_card
from snugtune.report.damage import told_of_record

To = Literal["merged", "onnx", "onnx-int8", "adapter", "static", "space"]
Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

MARKER = "export.json"
"""What was exported, of what, and how it was checked; a folder with it may be overwritten."""

FORMAT = 1
"""Raised when a field of it changes its meaning or goes."""

ROWS_TO_COMPARE = 64
"""Held-out rows on which the same arithmetic must give the same logits."""

ROWS_OF_ADAPTER = 16
"""The same for an adapter, whose check takes them all at once."""

CONFIDENCE_TOLERANCE = 0.01
"""Largest difference of a confidence from the recorded one: cards and processors round otherwise."""

IN_4_BITS = {
    "adapter": "The run computed on 4-bit weights; the {} holds the published ones, unrounded.",
    "model": "The run computed on 4-bit weights; the {} holds the same, unpacked to full precision.",
}
"""By what the run saved: an adapter goes with any weights, a model is what it is."""

OVERHEAD_BYTES = 64 * 2**20
"""Room for tokenizer, card and records."""


@dataclass(frozen=True)
class Exported:
    """What an export is and what its check found; ``notes`` are what its user must know, in sentences."""

    folder: Path
    to: To
    dtype: str
    agreement: Agreement
    tolerance: Tolerance
    serving: list[Verdict]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """What every export needs.

    ``model`` is in float32 on the CPU, its adapter merged; of a run on 4-bit weights, into the published
    ones. ``reference`` (N, K) are the logits of the model that was measured on the ``held_out`` rows.
    """

    run: Path
    record: dict[str, Any]
    to: To
    dtype: Dtype
    model: Any
    tokenizer: Any
    held_out: HeldOut
    reference: Logits
    examples: Sequence[str] = ()
    npm_package_dir: str | Path | None = None

    @property
    def max_length(self) -> int:
        """Tokens read of each text."""
        return int(self.record["model"]["max_length"])

    @property
    def labels(self) -> list[str]:
        """The classes, in the order of the logits."""
        return list(self.record["labels"])

    @property
    def several(self) -> bool:
        """Whether a text may carry several labels, or none."""
        return self.record.get("label_separator") is not None

    @property
    def gives_one_at_least(self) -> bool:
        """Whether a text that reaches no label's threshold is given its most probable one."""
        return bool(self.record["decision"].get("at_least_one", False))

    @property
    def thresholds(self) -> dict[str, float] | None:
        """By label, from which sigmoid of its logit on it is given; None where each text has one label."""
        if not self.several:
            return None
        decision = LabelSetDecision.from_dict(self.record["decision"])
        return dict(zip(self.labels, decision.sigmoid_thresholds(), strict=True))


def export_run(
    run: str | Path,
    out: str | Path,
    *,
    to: To = "merged",
    dtype: Dtype = "float32",
    rows: str | Path | None = None,
    overwrite: bool = False,
    observer: Observer | None = None,
    examples: Sequence[str] = (),
    npm_package_dir: str | Path | None = None,
) -> Exported:
    """Export the folder ``run`` into the folder ``out`` and compare its answers with the run's.

    The folder appears when the check has passed. ``rows`` is the table with the run's held-out rows, if it is
    no longer where the run was trained on it. For a ``static`` page, ``examples`` are texts to try it with,
    and ``npm_package_dir`` the folder of the archives that it runs on, if the npm registry cannot be reached.

    Raises:
        RegistryError: what a static page runs on cannot be fetched.
        UserInputError: the run, ``out`` or a choice cannot be used.
        ArtifactError: the export gives other answers than the run, beyond the tolerance, or lacks what other
            programs read.
    """
    run, observer = Path(run), observer or Observer()
    record = read_record(run, with_config=True)
    _check_choices(record, to, dtype)
    if to == "space":
        return _export_space(run, record, Path(out), rows=rows, overwrite=overwrite, observer=observer)
    with staged_folder(out, overwrite=overwrite, marker=MARKER) as folder:
        observer.phase("reference")
        job = _load(run, record, to, dtype, rows)
        job = replace(job, examples=examples, npm_package_dir=npm_package_dir)
        check_free_space(folder, _needed_bytes(job), what="the export")
        observer.phase("export")
        _WRITERS[to](job, folder)
        observer.phase("compare")
        exported = _check(job, folder)
        write_json(folder / MARKER, _told(exported, job))
        with told_of_record(run):
            card = export_card(record, to)
        write_text(folder / "README.md", card)
    return replace(exported, folder=Path(out))


def _export_space(
    run: Path,
    record: dict[str, Any],
    out: Path,
    *,
    rows: str | Path | None,
    overwrite: bool,
    observer: Observer,
) -> Exported:
    """A Space: whole predictions are compared, mixing and calibration included, by their log-odds."""
    with staged_folder(out, overwrite=overwrite, marker=MARKER) as folder:
        observer.phase("reference")
        predictor = Predictor.load(run)
        held_out = read_held_out(run, record, rows=ROWS_TO_COMPARE, table=rows)
        reference = predictor.probabilities(held_out.texts)
        check_free_space(folder, OVERHEAD_BYTES + weight_bytes(predictor.model), what="the export")
        observer.phase("export")
        write_space(run, record, folder, out.resolve().name)
        check_public(run, record, folder)
        observer.phase("compare")
        given = check_space(folder, held_out.texts, predictor)
        in_4bit = bool(record.get("config", {}).get("load_in_4bit"))
        tolerance = ROUNDED if in_4bit else EXACT
        found = agreement_on(held_out, record, _log_odds(given), _log_odds(reference))
        if not found.within(tolerance):
            raise ArtifactError(
                f"The Space answers otherwise than the run, so nothing was written: {found.sentence()}; "
                f"{tolerance.sentence()}."
            )
        exported = Exported(out, "space", "float32", found, tolerance, [], _space_notes(record))
        told = {
            "format": FORMAT, "run": run.resolve().name, "to": "space", "dtype": "float32",
            "labels": list(record["labels"]), "max_length": int(record["model"]["max_length"]),
            "agreement": found.as_dict(), "tolerance": asdict(tolerance), "serving": [],
            "notes": exported.notes,
            "versions": {name: version(name) for name in ("snugtune", "torch", "transformers", "gradio")},
        }  # fmt: skip
        write_json(folder / MARKER, told)
    return exported


def _log_odds(probabilities: NDArray[np.floating[Any]]) -> Logits:
    """Of probabilities (N, K), which 1e-6 keeps from infinity."""
    p = np.clip(probabilities.astype(np.float64), 1e-6, 1 - 1e-6)
    return np.asarray(np.log(p) - np.log1p(-p), dtype=np.float32)


def _space_notes(record: dict[str, Any]) -> list[str]:
    notes = ["The Space has no review page: what is written there goes when it is restarted."]
    if record["decision"]["mixture"].get("weight"):
        notes.append("The folder holds words of the training texts: the TF-IDF baseline goes by them.")
    if record.get("config", {}).get("load_in_4bit"):
        notes.append(IN_4_BITS[record["model"]["folder"]].format("Space"))
    return notes


def _check_choices(record: dict[str, Any], to: str, dtype: str) -> None:
    if to not in get_args(To):
        raise UserInputError(f"An export is to one of {', '.join(get_args(To))}, hub, not {to!r}.")
    if dtype not in DTYPES:
        raise UserInputError(f"The dtype must be one of {', '.join(DTYPES)}, not {dtype!r}.")
    if to == "space":
        require_app()
    if to != "merged" and dtype != "float32":
        raise UserInputError(f"--dtype is for --to merged; leave it out with --to {to}.")
    if to == "adapter" and record["model"]["folder"] != "adapter":
        raise UserInputError(
            "This run has no adapter (it trained the model itself); export it with --to merged."
        )
    check_mergeable(record, f"--to {to}", unless=to == "adapter")
    if to.startswith("onnx") or to == "static":
        require_onnx()


def _load(run: Path, record: dict[str, Any], to: To, dtype: Dtype, table: str | Path | None) -> Job:
    # First what can fail in a second.
    rows = ROWS_TO_MEASURE if _tolerance(record, to, dtype) is ROUNDED else ROWS_TO_COMPARE
    held_out = read_held_out(run, record, rows=rows, table=table)
    model, tokenizer = reference_model(run, record)
    check_classes(run, model, len(record["labels"]))
    if to == "static":
        static.check_page(tokenizer)
    # A page reads long texts as the run does; other folders are read by programs that cut them off.
    way = long_texts_of(record) if to == "static" else "truncate"
    reference = logits_of(model, held_out.texts, tokenizer, int(record["model"]["max_length"]), way)
    _check_recorded(run, record, reference, held_out)
    if record["config"].get("load_in_4bit"):
        model, _ = reference_model(run, record, as_quantized=False)
    tokenizer.model_max_length = int(record["model"]["max_length"])
    return Job(run, record, to, dtype, model, tokenizer, held_out, reference)


def _tolerance(record: dict[str, Any], to: str, dtype: str) -> Tolerance:
    """By whether the export computes with other numbers than the run was measured with."""
    in_4bit = bool(record["config"].get("load_in_4bit")) and to != "adapter"
    return ROUNDED if to in ("onnx-int8", "static") or dtype != "float32" or in_4bit else EXACT


def _check_recorded(run: Path, record: dict[str, Any], reference: Logits, held_out: HeldOut) -> None:
    """The model as it loads here must still give the confidences that the run recorded.

    That cannot be asked where they depend on more than these logits: on the baseline, on windows.
    """
    decision = checked_decision(run, record)
    if decision.uses_baseline or long_texts_of(record) != "truncate":
        return
    told = decision.probabilities(reference)
    now = decision.predict(told).confidence if isinstance(decision, LabelSetDecision) else told.max(1)
    difference = float(np.abs(now - held_out.recorded["confidence"].to_numpy()).max())
    if not difference <= CONFIDENCE_TOLERANCE:
        raise ArtifactError(
            f"The run {run} gives other confidences here than it recorded (by {difference:.3g}); its "
            "weights, or those it was trained on, are not what they were."
        )


def _needed_bytes(job: Job) -> int:
    # int8 is made from a graph in float32 that lies beside it meanwhile.
    return OVERHEAD_BYTES + weight_bytes(job.model) * (2 if job.to in ("onnx-int8", "static") else 1)


def _write_merged(job: Job, folder: Path) -> None:
    model = job.model.to(DTYPES[job.dtype])
    save_model(model, job.tokenizer, folder, job.max_length)
    complete_config(folder)


def _write_onnx(job: Job, folder: Path) -> None:
    write_onnx(job.model, folder / "model.onnx")
    _write_beside_graph(job, folder)


def _write_int8(job: Job, folder: Path) -> None:
    write_int8(job.model, folder / "model.onnx")
    _write_beside_graph(job, folder)


def _write_beside_graph(job: Job, folder: Path) -> None:
    job.model.config.architectures = [type(job.model).__name__]
    job.model.config.save_pretrained(folder)
    write_tokenizer(job.tokenizer, folder, job.max_length)


def _write_static(job: Job, folder: Path) -> None:
    _write_beside_graph(job, folder)
    static.write_page(
        folder, job.record, job.model, job.tokenizer, examples=job.examples,
        npm_package_dir=job.npm_package_dir,
    )  # fmt: skip


def _write_adapter(job: Job, folder: Path) -> None:
    for path in (job.run / "adapter").iterdir():
        if path.is_file() and path.name != "README.md":
            shutil.copy(path, folder)


_WRITERS: dict[str, Callable[[Job, Path], None]] = {
    "merged": _write_merged,
    "onnx": _write_onnx,
    "onnx-int8": _write_int8,
    "adapter": _write_adapter,
    "static": _write_static,
}

_GRAPHS = {"onnx": "model.onnx", "onnx-int8": "model.onnx", "static": GRAPH_OF_PAGE}


def _check(job: Job, folder: Path) -> Exported:
    """Ask the folder in a new process, and look for every file and key that others read."""
    tolerance = _tolerance(job.record, job.to, job.dtype)
    if job.to == "adapter":
        found, serving = _check_adapter(job, folder), []
    else:
        serving = check_folder(
            folder, max_length=job.max_length, texts=job.held_out.texts,
            problem_type=MULTI_LABEL if job.several else SINGLE_LABEL,
        )  # fmt: skip
        given = answers(
            folder, job.held_out.texts, job.labels, graph=_GRAPHS.get(job.to), tokens=_rows_of_page(job)
        )
        found = agreement_on(job.held_out, job.record, given, job.reference)
    if not found.within(tolerance):
        raise ArtifactError(
            f"The export answers otherwise than the run, so nothing was written: {found.sentence()}; "
            f"{tolerance.sentence()}."
        )
    notes = static.page_notes(job.record) if job.to == "static" else list(_notes(job, folder))
    if job.to == "static":
        static.write_index(folder, job.record, found, notes)
    return Exported(folder, job.to, job.dtype, found, tolerance, serving, notes)


def _rows_of_page(job: Job) -> Tokens | None:
    """The held-out texts as a page reads them, where that is not what every program does."""
    way = long_texts_of(job.record)
    if job.to != "static" or way == "truncate":
        return None
    return tokenize(job.held_out.texts, job.tokenizer, job.max_length, way)


def _check_adapter(job: Job, folder: Path) -> Agreement:
    """By the check that ended the fit: with PEFT alone, and through ``pipeline`` when merged."""
    few = job.held_out.first(ROWS_OF_ADAPTER)
    reference = job.reference[: len(few)]
    difference = check_reloads([Saved(folder, few.texts, reference, job.labels, job.max_length, True)])[0]
    same = agreement_on(few, job.record, reference, reference)
    return replace(same, largest_logit_difference=difference)


def _notes(job: Job, folder: Path) -> Iterator[str]:
    """What the folder by itself does otherwise than ``snugtune predict``."""
    share = job.record["decision"]["mixture"].get("weight", 0.0)
    if share:
        yield (
            f"snugtune predict mixes in the TF-IDF baseline with a share of {100 * share:.0f} %; "
            "the export is the model alone."
        )
    if job.several:
        bare = " A text that reaches none has its most probable label." if job.gives_one_at_least else ""
        yield (
            "A label is given where the sigmoid of its logit reaches its threshold, which need not be 0.5: "
            f"they are in {MARKER}, under thresholds.{bare}"
        )
    if (how := long_texts_of(job.record)) != "truncate":
        yield (
            f"snugtune predict reads texts of more than {job.max_length} tokens with --long-texts {how}; "
            "the export reads their beginning alone."
        )
    if job.record["config"].get("load_in_4bit") and job.to != "adapter":
        yield IN_4_BITS[job.record["model"]["folder"]].format("export")
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
        if Path(base).is_absolute():
            yield f"The adapter needs its base model, a folder of this machine: {base}."


def _told(exported: Exported, job: Job) -> dict[str, Any]:
    """The content of ``export.json``."""
    return {
        "format": FORMAT,
        "run": job.run.resolve().name,
        "to": exported.to,
        "dtype": exported.dtype,
        "labels": job.labels,
        "max_length": job.max_length,
        **({} if job.thresholds is None else {"thresholds": job.thresholds}),
        "agreement": exported.agreement.as_dict(),
        "tolerance": asdict(exported.tolerance),
        "serving": [asdict(verdict) for verdict in exported.serving],
        "notes": exported.notes,
        "versions": {name: version(name) for name in ("snugtune", "torch", "transformers")},
    }
