"""Predicted against measured memory on this machine's card; run it there:

    python benchmarks/memory_gpu.py --out benchmarks/results
    python benchmarks/memory_gpu.py --jobs 6 --deadline-s 540    # side by side; the next call does the rest
    python benchmarks/memory_gpu.py --dry-run        # no card: every rehearsal, at reduced depth, in minutes

Each configuration runs in a process of its own, the largest first: two real optimiser steps of the engine's
own functions and a validation batch, on weights and ids of no meaning. Written: one JSON file with date,
card, versions, and for each configuration the predicted and measured peaks (allocated, reserved) in GiB.
Goal: reserved within 5 %, never predicted under by more than 2 %, mean error under 2 %. Configurations
predicted not to fit are left out; one that fails is noted and the rest go on. What is counted is each
process's own, so configurations that run side by side count as if they ran alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

LABELS = 64
KINDS = ("allocated", "reserved")
DRY_LAYERS = 2

GOAL = {"worst_error_percent": 5.0, "most_under_percent": -2.0, "mean_error_percent": 2.0}
"""Of the reserved peak: the largest error, the furthest below what was measured, the mean of all errors."""

ENOUGH_CASES = 60
CASE_TIMEOUT_S = 600


@dataclass(frozen=True)
class Case:
    """One configuration; ``expandable`` is the allocator's ``expandable_segments``, ``settings`` are further
    ones of a fit. Packed texts may have so many ``tokens`` in all: one of ``length`` and shorter ones.
    """

    model: str
    micro_batch: int
    length: int
    method: str = "lora"
    weights: str = "bfloat16"
    compute: str = "bfloat16"
    attention: str = "fused"
    target_modules: str | None = None
    dropout: float = 0.0
    activation_checkpointing: int = 0
    embedding_on_host: bool = False
    top_layers: int | None = None
    chunked_evaluation: bool = True
    expandable: bool = True
    tokens: int | None = None
    labels: int = LABELS
    settings: tuple[tuple[str, Any], ...] = ()


def cases() -> list[Case]:
    """At least 60: models, lengths, micro-batches, precisions, kernels, methods, levers."""
    shapes = ((32, 64), (16, 128), (8, 256), (4, 512))
    packed = (
        "minilm", "bert-base-uncased", "xlm-roberta-base", "xlm-roberta-large", "answerdotai/ModernBERT-base",
        "Qwen/Qwen3-0.6B", "meta-llama/Llama-3.2-1B",
    )  # fmt: skip
    padded = (
        "minilm", "bert-base-uncased", "xlm-roberta-large", "distilbert-base-uncased",
        "microsoft/deberta-v3-base", "google/gemma-3-1b-pt", "Qwen/Qwen3-0.6B", "meta-llama/Llama-3.2-1B",
    )  # fmt: skip
    half = {"weights": "float16", "compute": "float16"}
    found = [Case(model, *shape, attention="packed") for model, shape in itertools.product(packed, shapes)]
    found += [Case(model, *shape, **half) for model, shape in itertools.product(padded, shapes)]
    full = {"method": "full", "weights": "float32"}
    large = "xlm-roberta-large"
    found += [
        Case(large, 8, 512),
        Case(large, 8, 512, **half),
        Case(large, 8, 512, attention="packed"),
        Case(large, 8, 512, attention="packed", expandable=False),
        Case(large, 8, 512, expandable=False),
        Case(large, 7, 331),
        Case(large, 1, 512),
        Case(large, 8, 512, weights="float32"),
        Case(large, 8, 512, weights="float32", compute="float32"),
        Case(large, 8, 512, dropout=0.1),
        Case(large, 8, 512, target_modules="all-linear"),
        Case(large, 8, 512, target_modules="all-linear", dropout=0.1),
        Case(large, 8, 512, attention="eager"),
        Case(large, 8, 512, attention="eager", **half),
        Case(large, 4, 256, **full),
        Case(large, 8, 512, **full),
        Case(large, 8, 512, attention="packed", expandable=False, **full),
        Case(large, 8, 512, method="head"),
        *(Case(large, 8, 512, activation_checkpointing=k) for k in (6, 12, 24)),
        *(Case(large, 8, 512, top_layers=k) for k in (6, 12)),
        Case(large, 8, 512, embedding_on_host=True),
        Case(large, 16, 512, activation_checkpointing=24, embedding_on_host=True),
        Case(large, 2, 512, chunked_evaluation=False),
        Case("minilm", 2, 128, attention="packed", chunked_evaluation=False, **full),
        *(Case("bert-base-uncased", *shape, **full) for shape in shapes),
        *(Case("Qwen/Qwen3-0.6B", *shape, activation_checkpointing=28) for shape in shapes),
        Case("Qwen/Qwen3-0.6B", 4, 2048, attention="packed"),
        Case("microsoft/deberta-v3-base", 4, 512),
        *(
            Case("bert-base-uncased", 16, 128, attention="packed", settings=settings)
            for settings in (
                (("use_dora", True),),
                (("problem_type", "multi_label_classification"), ("metric", "f1_micro")),
                (("lora_dropout", 0.1), ("hidden_dropout", 0.1)),
            )
        ),
        *(
            Case("bert-base-uncased", 16, 128, method=method)
            for method in ("ia3", "vera", "bitfit", "adalora")
        ),
        *many_short(),
    ]
    return list(dict.fromkeys(found))


def many_short() -> list[Case]:
    """Packed texts of which hundreds share the tokens of a few long ones, and heads of many labels."""
    modern, qwen, large = "answerdotai/ModernBERT-base", "Qwen/Qwen3-0.6B", "xlm-roberta-large"
    packed, full = {"attention": "packed"}, {"method": "full", "weights": "float32"}
    return [
        *(Case(large, n, 512, tokens=4096, labels=214, **packed) for n in (64, 256)),
        Case(large, 256, 512, tokens=4096, labels=214, activation_checkpointing=24, **packed),
        *(Case("bert-base-uncased", n, 512, tokens=8192, labels=214, **packed) for n in (64, 512, 2048)),
        Case("bert-base-uncased", 1024, 256, tokens=8192, labels=5000, **packed),
        Case("bert-base-uncased", 512, 256, tokens=4096, labels=2, **packed, **full),
        *(Case("minilm", n, 512, tokens=16384, labels=214, **packed, **full) for n in (64, 2048)),
        *(Case(model, 512, 512, tokens=8192, labels=214, **packed) for model in (modern, qwen)),
        Case(qwen, 256, 512, tokens=4096, activation_checkpointing=28, **packed),
        Case("minilm", 64, 64, **packed, **full),
        Case("minilm", 512, 256, **full),
        Case("bert-base-uncased", 32, 128, labels=5000),
    ]


def prepared(case: Case) -> tuple[Any, Any]:
    """Settings and setup of a case."""
    from snugtune.config import make_config
    from snugtune.memory.setup import Setup

    given = {
        "train": "", "model": case.model, "method": case.method, "target_modules": case.target_modules,
        "lora_dropout": case.dropout or None, "hidden_dropout": case.dropout, **dict(case.settings),
    }  # fmt: skip
    config = make_config({name: value for name, value in given.items() if value is not None})
    setup = Setup(
        "cuda", case.weights, case.compute, case.attention, top_layers=case.top_layers,
        activation_checkpointing=case.activation_checkpointing, embedding_on_host=case.embedding_on_host,
        chunked_evaluation=case.chunked_evaluation,
    )  # fmt: skip
    return config, setup


def predict(case: Case, capability: tuple[int, int]) -> dict[str, Any]:
    """Peaks in bytes of what PyTorch's allocator hands out and holds: all but the context."""
    from snugtune.memory.allocator import replay
    from snugtune.memory.surface import Surface
    from snugtune.memory.workspaces import cublas_bytes
    from snugtune.train.rehearsal import Rehearsal

    config, setup = prepared(case)
    surface = Surface(
        Rehearsal(config, case.labels, setup), expandable_segments=case.expandable,
        library_bytes=cublas_bytes(capability),
    )  # fmt: skip
    # From traces of small micro-batches, as in a plan.
    if case.tokens is None:
        trace = surface.trace(case.micro_batch, case.length)
    else:
        trace = surface.packed_trace(case.micro_batch, case.tokens, case.length)
    peaks = replay(trace, expandable_segments=case.expandable)
    return {
        "allocated": peaks.peak_allocated, "reserved": peaks.peak_reserved,
        "place": trace.peak_place(surface.peak_event(trace)),
    }  # fmt: skip


def measure(case: Case) -> dict[str, int]:
    """The card's own peaks in bytes over the very steps that are predicted."""
    import torch

    from snugtune.memory.trace import Ledger
    from snugtune.train import rehearsal
    from snugtune.train.forward import classify

    config, _setup = prepared(case)
    model, head_names = real_model(case)
    dtype = rehearsal.DTYPES[case.compute]

    def autocast() -> Any:
        return torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32)

    def evaluate() -> None:
        told["after_steps"] = torch.cuda.memory_allocated()
        tokens = case.tokens or case.micro_batch * case.length
        rows = rehearsal.validation_rows(tokens, case.length, chunked=case.chunked_evaluation)
        model.eval()
        with torch.inference_mode(), autocast():
            classify(model, padded_batch(rows, case.length)).float()

    def batch() -> Any:
        labels = case.labels if config.is_multi_label else None
        target = rehearsal._target(case.micro_batch, labels).cuda()
        packed = case.attention == "packed"
        return rehearsal.MicroBatch(
            packed_batch(case, model) if packed else padded_batch(case.micro_batch, case.length), target
        )

    told = {"weights": torch.cuda.memory_allocated()}
    torch.cuda.reset_peak_memory_stats()
    rehearsal.run_steps(
        model, config, head_names, Ledger(), batch=batch, autocast=autocast, accumulates=True, on_card=True,
        evaluate=evaluate,
    )  # fmt: skip
    torch.cuda.synchronize()
    return {
        "allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved(),
        "retries": torch.cuda.memory_stats()["num_alloc_retries"], **told,
    }  # fmt: skip


def real_model(case: Case) -> tuple[Any, tuple[str, ...]]:
    """The model that a case's rehearsal has built, with zeros on the card in the place of shapes."""
    import torch
    from torch import nn

    from snugtune.model import attention
    from snugtune.model.backbone import supported_attention
    from snugtune.model.checkpointing import checkpoint_layers
    from snugtune.model.offload import embedding_to_host
    from snugtune.train import rehearsal

    config, setup = prepared(case)
    built = rehearsal.Rehearsal(
        config, case.labels,
        type(setup)(**{**asdict(setup), "activation_checkpointing": 0, "embedding_on_host": False}),
    )  # fmt: skip
    model: Any = built.model
    if case.attention != "eager":
        model.config._attn_implementation = supported_attention(model.config, attention.register())
    if setup.embedding_on_host:
        word = rehearsal.word_embedding(model)
        word.weight = nn.Parameter(
            torch.zeros(word.weight.shape, dtype=word.weight.dtype), requires_grad=False
        )
        embedding_to_host(model)
    rehearsal.materialise(model, "cuda")
    if setup.activation_checkpointing:
        checkpoint_layers(model, setup.activation_checkpointing)
    return model, built.head_names


def padded_batch(micro_batch: int, length: int) -> Any:
    """Texts on the card as ``forward.collate`` brings them, the first of half the length."""
    import torch

    from snugtune.train.readback import to_device

    both = torch.ones(2, micro_batch, length, dtype=torch.int64)
    both[1, 0, length // 2 :] = 0
    both = to_device(both, torch.device("cuda"))
    return {"input_ids": both[0], "attention_mask": both[1]}


def packed_batch(case: Case, model: Any) -> Any:
    """Texts on the card as the engine packs them."""
    import numpy as np
    import torch

    from snugtune.model.packing import pack
    from snugtune.train.readback import to_device

    rows = [np.full(length, 3, dtype=np.int32) for length in lengths_of(case)]
    return pack(rows, model).to(lambda host: to_device(host, torch.device("cuda")))


def lengths_of(case: Case) -> list[int]:
    """Of the texts: all of one length or, of so many ``tokens``, one of it and the others of about one."""
    if case.tokens is None:
        return [case.length] * case.micro_batch
    each, over = divmod(case.tokens - case.length, case.micro_batch - 1)
    return [case.length, *(each + (i < over) for i in range(case.micro_batch - 1))]


def run_case(case: Case) -> dict[str, Any]:
    """Predict, then measure, in a fresh process; a failure is a row, too."""
    from snugtune.memory.segments import VARIABLES

    settings = dict.fromkeys(VARIABLES, f"expandable_segments:{case.expandable}")
    began = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--case", json.dumps(asdict(case))],
            capture_output=True, text=True, check=False, timeout=CASE_TIMEOUT_S,
            env={**os.environ, **settings},
        )  # fmt: skip
        found: dict[str, Any] = json.loads((done.stdout.strip().splitlines() or [""])[-1])
    except subprocess.TimeoutExpired:
        return {"case": asdict(case), "error": f"no answer within {CASE_TIMEOUT_S} s"}
    except ValueError:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return {"case": asdict(case), "error": last[0]}
    return {**found, "seconds": round(time.perf_counter() - began, 1)}


def dry(case: Case) -> dict[str, Any]:
    """The case's rehearsal without a card, at reduced depth: that it runs, and what it predicts then."""
    from dataclasses import replace

    shallow = replace(
        case, activation_checkpointing=min(case.activation_checkpointing, DRY_LAYERS),
        top_layers=None if case.top_layers is None else 1,
    )  # fmt: skip
    with reduced_depth(DRY_LAYERS):
        predicted = predict(shallow, (8, 0))
    return {
        "case": asdict(case), "predicted_gib": {key: predicted[key] / 2**30 for key in KINDS},
        "place": predicted["place"],
    }  # fmt: skip


@contextmanager
def reduced_depth(layers: int) -> Iterator[None]:
    """Inside, models have so many layers."""
    from snugtune.train import rehearsal

    shape = rehearsal.model_shape

    def shallow(config: Any, num_labels: int) -> Any:
        made = shape(config, num_labels)
        made.num_hidden_layers = min(made.num_hidden_layers, layers)
        if getattr(made, "layer_types", None):
            made.layer_types = made.layer_types[: made.num_hidden_layers]
        return made

    rehearsal.model_shape = shallow
    try:
        yield
    finally:
        rehearsal.model_shape = shape


def row(case: Case, predicted: dict[str, Any], measured: dict[str, int]) -> dict[str, Any]:
    """Both figures of a case in GiB, and the errors in per cent of what was measured."""
    return {
        "case": asdict(case),
        "predicted_gib": {key: predicted[key] / 2**30 for key in KINDS},
        "measured_gib": {key: measured[key] / 2**30 for key in KINDS},
        "error_percent": {key: 100 * (predicted[key] / measured[key] - 1) for key in KINDS},
        "place": predicted["place"],
        "also": {name: value for name, value in measured.items() if name not in KINDS},
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Errors of allocated and reserved peaks over all measured cases, and whether the goal is met."""
    told: dict[str, Any] = {
        "cases": sum("error_percent" in row for row in rows),
        "failed": sum("error" in row for row in rows),
        "left_out": sum("left_out" in row for row in rows),
    }
    for kind in KINDS:
        errors = [row["error_percent"][kind] for row in rows if "error_percent" in row]
        told[kind] = {
            "mean_error_percent": sum(map(abs, errors)) / len(errors) if errors else None,
            "worst_error_percent": max(map(abs, errors), default=None),
            "most_under_percent": min(errors, default=None),
        }
    enough = told["cases"] >= ENOUGH_CASES and not told["failed"]
    told["goal_met"] = enough and _meets_goal(told["reserved"])
    return told


def _meets_goal(reserved: dict[str, float]) -> bool:
    return (
        reserved["worst_error_percent"] <= GOAL["worst_error_percent"]
        and reserved["most_under_percent"] >= GOAL["most_under_percent"]
        and reserved["mean_error_percent"] < GOAL["mean_error_percent"]
    )


def largest_first(found: list[Case]) -> list[Case]:
    """By the tokens of one micro-batch, a rough order of their peaks, largest first."""
    from snugtune.model.known import known_models

    known = known_models()

    def size(case: Case) -> float:
        parameters = known[case.model].published_parameters if case.model in known else 0
        tokens = case.micro_batch * case.length if case.tokens is None else case.tokens
        return parameters * (4 if case.method == "full" else 1) * tokens

    return sorted(found, key=size, reverse=True)


def one(case: Case) -> dict[str, Any]:
    """The row of a case that is predicted to fit."""
    import torch

    from snugtune.model.packing import kernel_takes
    from snugtune.train.rehearsal import model_shape

    if case.attention == "packed" and not kernel_takes(model_shape(prepared(case)[0], case.labels)):
        return {"case": asdict(case), "left_out": "this PyTorch cannot pack texts for this model"}
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0) and (case.attention == "packed" or "bfloat16" in (case.weights, case.compute)):
        return {"case": asdict(case), "left_out": "this card has neither bfloat16 nor packed texts"}
    free, _ = torch.cuda.mem_get_info()
    predicted = predict(case, capability)
    if predicted["reserved"] > 0.95 * free:
        return {"case": asdict(case), "left_out": "predicted not to fit"}
    return row(case, predicted, measure(case))


def record(rows: list[dict[str, Any]], card: str) -> dict[str, Any]:
    """The content of the result file."""
    from lib.common import hardware

    return {
        "benchmark": "memory",
        "date": date.today().isoformat(),
        "card": card,
        "hardware": hardware(),
        "versions": versions(),
        "goal": GOAL,
        "summary": summary(rows),
        "cases": rows,
    }


def versions() -> dict[str, str]:
    """Of what decides the memory."""
    from lib import common

    return common.versions(("snugtune", "torch", "transformers", "peft"))


def earlier(path: Path) -> list[dict[str, Any]]:
    """Rows of an earlier call with the same versions; failures are tried again."""
    if not path.is_file():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    return [row for row in found["cases"] if "error" not in row] if found["versions"] == versions() else []


def key_of(case: Case | dict[str, Any]) -> str:
    """A case, as it is or as it was written, by its values."""
    return json.dumps(case if isinstance(case, dict) else asdict(case), sort_keys=True)


def run_all(chosen: list[Case], path: Path, card: str, jobs: int, deadline_s: float) -> list[dict[str, Any]]:
    """Rows of the cases, in their order; written after each, so that what was measured stays."""
    from snugtune.files import write_json

    rows = {key_of(row["case"]): row for row in earlier(path)}
    began = time.perf_counter()

    def run(case: Case) -> None:
        if key_of(case) in rows or time.perf_counter() - began > deadline_s:
            return
        rows[key_of(case)] = row = run_case(case)
        ordered = [rows[key_of(one)] for one in chosen if key_of(one) in rows]
        print(f"{len(ordered)}/{len(chosen)}", json.dumps(row), flush=True)
        write_json(path, record(ordered, card))

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, chosen))
    return [rows[key_of(case)] for case in chosen if key_of(case) in rows]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--only", help="only cases whose values, as --list prints them, have this text")
    parser.add_argument("--jobs", type=int, default=1, help="so many at a time")
    parser.add_argument("--deadline-s", type=float, default=float("inf"), help="begin none after so long")
    parser.add_argument("--list", action="store_true", help="only print the cases")
    parser.add_argument(
        "--dry-run", action="store_true", help="no card: only the rehearsals, at reduced depth"
    )
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        given = json.loads(options.case)
        case = Case(**{**given, "settings": tuple(map(tuple, given.get("settings", ())))})
        print(json.dumps(one(case)), flush=True)
        return
    chosen = [case for case in largest_first(cases()) if (options.only or "") in key_of(case)]
    if options.list or options.dry_run:
        for case in chosen:
            print(json.dumps(dry(case) if options.dry_run else asdict(case)), flush=True)
        return
    import torch

    if not torch.cuda.is_available():
        print("Skipped: there is no CUDA card here; --dry-run goes without.")
        return
    card = torch.cuda.get_device_name().replace(" ", "-")
    path = options.out / f"{date.today().isoformat()}-memory-{card.lower()}.json"
    options.out.mkdir(parents=True, exist_ok=True)
    rows = run_all(chosen, path, card, options.jobs, options.deadline_s)
    print(json.dumps(summary(rows)), path)
    from lib import page

    page.refresh(options.out)


if __name__ == "__main__":
    main()
