"""The page of measured figures, drawn from the result files alone: no number on it is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from snugtune.files import write_text
from snugtune.units import duration

from . import (
    fewer,
    less,
    memory_section,
    methods_section,
    noise,
    picture,
    serve_section,
    speed_sections,
    trust_page,
)
from .bulk_section import bulk
from .common import REPOSITORY, RESULTS
from .growth_section import growth
from .speed_sections import sooner
from .tables import spread_cell, table

PAGE = REPOSITORY / "docs" / "benchmarks.md"

INTRODUCTION = """\
# Benchmarks

Drawn from the files in `benchmarks/results/` by the scripts in `benchmarks/`; `make bench` measures again
and redraws this page. "The recipe" is the one that is commonly copied: Transformers Trainer and PEFT, LoRA of
rank 16 on query and value, dropout, small batches with gradient accumulation, float32 weights under autocast
(`benchmarks/lib/reference.py`). Contestants run on the same machine, in turns, on the same rows; ratios are
taken turn by turn and shown as the median (smallest to largest).
"""


def refresh(results: Path = RESULTS, page: Path = PAGE) -> None:
    """Redraw the page after a measurement; measurements written elsewhere leave it as it is."""
    if results.resolve() == RESULTS:
        found = read_results(results)
        write_text(page, draw(found))
        picture.draw_all(found)
        print(f"Drew {page}.")


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The newest result of each benchmark on each kind of host; each knows its file."""
    newest: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):  # names begin with the date
        newest[path.stem[len("YYYY-MM-DD-") :]] = json.loads(path.read_text(encoding="utf-8")) | {
            "file": path.name
        }
    return [newest[key] for key in sorted(newest)]


def draw(results: Sequence[dict[str, Any]]) -> str:
    """The whole page as Markdown."""
    parts = [INTRODUCTION]
    for name, (title, section) in SECTIONS.items():
        chosen = [result for result in results if result.get("benchmark") == name]
        if chosen:
            parts.append(f"## {title}\n")
        parts += ["\n".join([*section(result), "", *source(result), ""]) for result in chosen]
    return "\n".join(parts)


def source(result: dict[str, Any]) -> list[str]:
    """Where and with what a result was measured."""
    machine, versions = result["hardware"], result["versions"]
    gpu = f"{machine['gpu']['name']} ({machine['gpu']['memory_gib']} GiB), " if machine["gpu"] else ""
    bf16 = "with" if machine["cpu_bf16"] else "without"
    where = (
        f"{gpu}{machine['cpu']}, {machine['cores']} cores {bf16} bfloat16, {machine['ram_gib']} GiB of memory"
    )
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    return [f"{result['date']}, `{result['file']}`: {where}.", f"Versions: {packages}."]


def time_to_quality(result: dict[str, Any]) -> list[str]:
    """Who reached the target when."""
    settings = result["settings"]
    rows = []
    for name, line in result["contestants"].items():
        reached = line["seconds_to_target"]
        when = duration(reached) if reached is not None else f"not within {duration(line['work_s'])}"
        rows.append([name, when, f"{line['best_accuracy']:.3f}", sooner(result["ratios"].get(name))])
    before, after = result["matmul_fp32_flops_before_after"]
    return [
        f"Banking77 to accuracy {settings['target']:g} on the test file, from token ids, seconds of work "
        f"without looks at the test file; seed {settings['seed']}, {settings['threads']} threads.",
        "",
        *table(["contestant", "seconds to target", "best accuracy seen", "ours is sooner by"], rows),
        "",
        f"Matrix products in float32 ran at {before / 1e9:.0f} GFLOP/s before and {after / 1e9:.0f} after.",
    ]


def accuracy(result: dict[str, Any]) -> list[str]:
    """Ours and the baseline on the test files."""
    rows = []
    for name, found in result["data"].items():
        ours, baseline = found["ours"], found["baseline"]
        mine = _scores(ours) if "accuracy" in ours else [ours["error"], "", ""]
        rows.append([name, str(baseline["rows"]), *mine, *_scores(baseline)])
    given = " ".join(result["settings"]["fit"])
    how = f"`snugtune fit` with `{given}`" if given else "`snugtune fit` with its default settings"
    columns = ["data", "test rows", "accuracy", "macro-F1", "time"]
    columns += [f"TF-IDF + LinearSVC {column}" for column in ("accuracy", "macro-F1", "time")]
    return [f"{how}, the whole command, scored on the test file.", "", *table(columns, rows)]


def choices(result: dict[str, Any]) -> list[str]:
    """Fits that differ in one setting, on the test file; what `auto` chose."""
    settings, values = result["settings"], result["values"]
    rows = []
    for value, found in values.items():
        chosen = found.get("told", {}).get("chosen")
        name = f"`auto`: {chosen}" if value == "auto" and chosen else f"`{value}`"
        scores = [found["error"], "", "", "", ""] if "error" in found else _choice(found)
        rows.append([name, *scores])
    columns = ["value", "accuracy", "macro-F1", "log loss", "training", "whole command"]
    given = " ".join(settings["fit"])
    return [
        f"`--{settings['setting']}` on {settings['data']}, scored on the test file; otherwise "
        f"{f'`{given}`' if given else 'default settings'}.",
        "",
        *table(columns, rows),
    ]


def _choice(found: dict[str, Any]) -> list[str]:
    scores = [f"{found[name]:.3f}" for name in ("accuracy", "f1_macro", "log_loss")]
    return [*scores, duration(found["train_s"]), duration(found["seconds"])]


def recipe(result: dict[str, Any]) -> list[str]:
    """The recipe's predicted memory and time beside our plan's."""
    theirs, ours, full = result["recipe"], result["ours"], result["full_fine_tuning"]
    rows = [
        [name, f"{of['predicted_peak_gib']:.2f} GiB", duration(of["time_s"])]
        for name, of in (("the recipe", theirs), ("our plan", ours))
    ]
    factors = {int(key.removeprefix(AT)): of["ratio"] for key, of in full.items() if key.startswith(AT)}
    told = ", ".join(f"{ratio:.1f} at {micro_batch}" for micro_batch, ratio in factors.items())
    shape = f"{theirs['micro_batch']} texts of {theirs['max_length']} tokens"
    return [
        f"{theirs['model']}, {theirs['labels']} labels, {theirs['rows']:,} rows, {theirs['epochs']} epochs, "
        f"on a {theirs['device']}: estimated by `snugtune plan --recipe blog`, confirmed by no card.",
        "",
        *table(["configuration", f"peak memory at {shape}", "time"], rows),
        "",
        f"Full fine-tuning takes more memory than LoRA by these factors: {told} texts at a time.",
    ]


def report_page(result: dict[str, Any]) -> list[str]:
    """Size of the report, and seconds to write, draw, filter and sort it."""
    settings, screens = result["settings"], result["screens"]
    rows = [
        [
            f"{name}, {' x '.join(map(str, seen['size']))}",
            *(spread_cell(seen[key], 2, unit=" s") for key in ("drawn_s", "filter_s", "sort_s")),
        ]
        for name, seen in screens.items()
    ]
    chromium = next(iter(screens.values()))["chromium"]
    return [
        f"{settings['classes']:,} classes, {settings['rows']:,} test rows: {result['bytes'] / 1e6:.2f} MB, "
        f"written in {spread_cell(result['write_s'], 2, unit=' s')}. In headless Chromium {chromium}, until "
        "the second frame after it is on the screen:",
        "",
        *table(["screen", "drawn after opening", "class filter", "sort"], rows),
    ]


AT = "micro_batch_"
"""The beginning of keys that name a micro-batch."""

SECTIONS: dict[str, tuple[str, Callable[[dict[str, Any]], list[str]]]] = {
    "time-to-quality": ("Time to a given accuracy", time_to_quality),
    "peers": ("Beside other ways to a classifier", speed_sections.peers),
    "throughput": ("Speed at the lengths of complaints", speed_sections.throughput),
    "ladder": ("One lever at a time", speed_sections.ladder),
    "checkpoints": ("What saved states cost", less.checkpoints),
    "prefix-cache": ("Adapters in the top layers only", less.prefix_cache),
    "prediction": ("Prediction speed", speed_sections.prediction),
    "serve": ("Serving over HTTP", serve_section.serve),
    "serve-load": ("Serving twice what it can", serve_section.load),
    "share-weights": ("Many classifiers on one backbone", serve_section.share_weights),
    "memory": ("Predicted memory", memory_section.memory),
    "speed-gpu": ("One GPU", speed_sections.speed_gpu),
    "growth": ("From a thousand rows to a million", growth),
    "bulk": ("Many files", bulk),
    "accuracy": ("Accuracy", accuracy),
    "methods": ("PEFT's methods", methods_section.methods),
    "choices": ("One setting at a time", choices),
    "trust": ("Calibration and promised precision", trust_page.trust),
    "label-noise": ("Wrong labels found by the audit", noise.label_noise),
    "active": ("Which texts to label next", fewer.active),
    "few-shot": ("Few texts a class", fewer.few_shot),
    "near-duplicates": ("Near-duplicates left out", fewer.near_duplicates),
    "rehearsal": ("A step on shapes alone", less.rehearsal),
    "linear": ("The baseline's classifier", less.linear),
    "pruning": ("Training on fewer rows", less.pruning),
    "report-page": ("The report", report_page),
    "recipe": ("The recipe's memory and time, predicted", recipe),
}


def _scores(scores: dict[str, Any]) -> list[str]:
    return [f"{scores['accuracy']:.3f}", f"{scores['f1_macro']:.3f}", duration(scores["seconds"])]
