"""Predicted against measured memory on this machine's card; run it there:

    python benchmarks/memory_gpu.py --out benchmarks/results
    python benchmarks/memory_gpu.py --dry-run        # no card: every rehearsal, at reduced depth, in minutes

Each configuration runs in a process of its own, the largest first: two real optimiser steps of the engine's
own functions and a validation batch, on weights and ids of no meaning. Written: one JSON file with date,
card, versions, and for each configuration the predicted and measured peaks (allocated, reserved) in GiB.
Goal: reserved within 5 %, never predicted under by more than 2 %, mean error under 2 %. Configurations
predicted not to fit are left out; one that fails is noted and the rest go on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

LABELS = 64
KINDS = ("allocated", "reserved")
DRY_LAYERS = 2

GOAL = {"worst_error_percent": 5.0, "most_under_percent": -2.0, "mean_error_percent": 2.0}
"""Of the reserved peak: the largest error, the furthest below what was measured, the mean of all errors."""

CASE_TIMEOUT_S = 900


@dataclass(frozen=True)
class Case:
    """One configuration; ``expandable`` is the allocator's ``expandable_segments``."""

    model: str
    micro_batch: int
    length: int
    method: str = "lora"
    weights: str = "float16"
    compute: str = "float16"
    target_modules: str | None = None
    dropout: float = 0.0
    activation_checkpointing: int = 0
    embedding_on_host: bool = False
    top_layers: int | None = None
    expandable: bool = True


def cases() -> list[Case]:
    """At least 60: models, lengths, micro-batches, precisions, levers."""
    models = (
        "minilm", "bert-base-uncased", "xlm-roberta-base", "xlm-roberta-large", "distilbert-base-uncased",
        "answerdotai/ModernBERT-base", "microsoft/deberta-v3-base", "Qwen/Qwen3-0.6B",
        "meta-llama/Llama-3.2-1B", "google/gemma-3-1b-pt",
    )  # fmt: skip
    shapes = ((32, 64), (16, 128), (8, 256), (4, 512))
    found = [Case(model, *shape) for model, shape in itertools.product(models, shapes)]
    large = "xlm-roberta-large"
    found += [
        Case(large, 8, 512),
        Case(large, 8, 512, expandable=False),
        Case(large, 7, 331),
        Case(large, 1, 512),
        Case(large, 8, 512, weights="float32"),
        Case(large, 8, 512, weights="float32", compute="float32"),
        Case(large, 8, 512, weights="bfloat16", compute="bfloat16"),
        Case(large, 8, 512, dropout=0.1),
        Case(large, 8, 512, target_modules="all-linear"),
        Case(large, 8, 512, target_modules="all-linear", dropout=0.1),
        Case(large, 4, 256, method="full", weights="float32"),
        Case(large, 8, 512, method="full", weights="float32"),
        Case(large, 8, 512, method="head"),
        *(Case(large, 8, 512, activation_checkpointing=k) for k in (6, 12, 24)),
        *(Case(large, 8, 512, top_layers=k) for k in (6, 12)),
        Case(large, 8, 512, embedding_on_host=True),
        Case(large, 16, 512, activation_checkpointing=24, embedding_on_host=True),
        *(Case("bert-base-uncased", *shape, method="full", weights="float32") for shape in shapes),
        *(Case("Qwen/Qwen3-0.6B", *shape, activation_checkpointing=28) for shape in shapes),
    ]
    return found


def prepared(case: Case) -> tuple[Any, Any]:
    """Settings and setup of a case."""
    from snugtune.config import make_config
    from snugtune.memory.setup import Setup

    config = make_config(
        {"train": "", "model": case.model, "method": case.method, "target_modules": case.target_modules,
         "lora_dropout": case.dropout, "hidden_dropout": case.dropout}
    )  # fmt: skip
    setup = Setup(
        "cuda", case.weights, case.compute, activation_checkpointing=case.activation_checkpointing,
        embedding_on_host=case.embedding_on_host, top_layers=case.top_layers, chunked_evaluation=True,
    )  # fmt: skip
    return config, setup


def predict(case: Case, capability: tuple[int, int]) -> dict[str, Any]:
    """Peaks in bytes with cuBLAS workspaces, which come from the caching allocator, but no context."""
    from snugtune.memory.allocator import replay
    from snugtune.memory.workspaces import cublas_bytes
    from snugtune.train.rehearsal import Rehearsal

    config, setup = prepared(case)
    trace = Rehearsal(config, LABELS, setup).trace(case.micro_batch, case.length)
    peaks = replay(trace, expandable_segments=case.expandable)
    extra = cublas_bytes(capability)
    return {
        "allocated": peaks.peak_allocated + extra, "reserved": peaks.peak_reserved + extra,
        "place": trace.peak_place(),
    }  # fmt: skip


def measure(case: Case) -> dict[str, int]:
    """The card's own peaks in bytes over the very steps that are predicted."""
    import torch
    from torch import nn

    from snugtune.memory.trace import Ledger
    from snugtune.model import attention
    from snugtune.model.backbone import supported_attention
    from snugtune.model.checkpointing import checkpoint_layers
    from snugtune.model.offload import embedding_to_host
    from snugtune.train import rehearsal

    config, setup = prepared(case)
    device = torch.device("cuda")
    built = rehearsal.Rehearsal(
        config,
        LABELS,
        type(setup)(**{**asdict(setup), "activation_checkpointing": 0, "embedding_on_host": False}),
    )
    model = built.model
    model.config._attn_implementation = supported_attention(model.config, attention.register())
    if setup.embedding_on_host:
        word = rehearsal.word_embedding(model)
        word.weight = nn.Parameter(
            torch.zeros(word.weight.shape, dtype=word.weight.dtype), requires_grad=False
        )
        embedding_to_host(model)
    made: dict[int, Any] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is None or "Fake" not in type(tensor.data).__name__:
                    continue
                if id(tensor) not in made:  # a tensor that modules share stays one
                    fresh = torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(fresh, tensor.requires_grad) if is_parameter else fresh
                held[name] = made[id(tensor)]
    if setup.activation_checkpointing:
        checkpoint_layers(model, setup.activation_checkpointing)

    def batch() -> Any:
        made = rehearsal._batch(case.micro_batch, case.length)
        made.inputs["attention_mask"][0, case.length // 2 :] = 0
        inputs = {name: tensor.to(device) for name, tensor in made.inputs.items()}
        return rehearsal.MicroBatch(inputs, made.target.to(device))

    dtype = rehearsal.DTYPES[case.compute]

    def autocast() -> Any:
        return torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32)

    torch.cuda.reset_peak_memory_stats()
    rehearsal.run_steps(
        model,
        config,
        built.head_names,
        Ledger(),
        batch=batch,
        autocast=autocast,
        accumulates=True,
        on_card=True,
    )
    model.eval()
    with torch.no_grad(), autocast():
        model(**batch().inputs).logits.float()
    torch.cuda.synchronize()
    return {
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
    }


def run_case(case: Case) -> dict[str, Any]:
    """Predict, then measure, in a fresh process; a failure is a row, too."""
    import os

    from snugtune.memory.segments import VARIABLES

    settings = dict.fromkeys(VARIABLES, f"expandable_segments:{case.expandable}")
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--case", json.dumps(asdict(case))],
            capture_output=True, text=True, check=False, timeout=CASE_TIMEOUT_S,
            env={**os.environ, **settings},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"case": asdict(case), "error": f"no answer within {CASE_TIMEOUT_S} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return {"case": asdict(case), "error": last[0]}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


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
    told["goal_met"] = bool(told["cases"]) and not told["failed"] and _meets_goal(told["reserved"])
    return told


def _meets_goal(reserved: dict[str, float]) -> bool:
    return (
        reserved["worst_error_percent"] <= GOAL["worst_error_percent"]
        and reserved["most_under_percent"] >= GOAL["most_under_percent"]
        and reserved["mean_error_percent"] < GOAL["mean_error_percent"]
    )


def largest_first(found: list[Case]) -> list[Case]:
    """By the padded values of one micro-batch, a rough order of their peaks, largest first."""
    from snugtune.model.known import known_models

    known = known_models()

    def size(case: Case) -> float:
        parameters = known[case.model].published_parameters if case.model in known else 0
        return parameters * (4 if case.method == "full" else 1) * case.micro_batch * case.length

    return sorted(found, key=size, reverse=True)


def one(case: Case) -> dict[str, Any]:
    """The row of a case that is predicted to fit."""
    import torch

    capability = torch.cuda.get_device_capability()
    free, _ = torch.cuda.mem_get_info()
    predicted = predict(case, capability)
    if predicted["reserved"] > 0.95 * free:
        return {"case": asdict(case), "left_out": "predicted not to fit"}
    return row(case, predicted, measure(case))


def record(rows: list[dict[str, Any]], card: str) -> dict[str, Any]:
    """The content of the result file."""
    return {
        "date": date.today().isoformat(),
        "card": card,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "goal": GOAL,
        "summary": summary(rows),
        "cases": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--only", type=int, help="only so many cases")
    parser.add_argument("--list", action="store_true", help="only print the cases")
    parser.add_argument(
        "--dry-run", action="store_true", help="no card: only the rehearsals, at reduced depth"
    )
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(one(Case(**json.loads(options.case)))))
        return
    chosen = largest_first(cases())[: options.only]
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
    rows: list[dict[str, Any]] = []
    for number, case in enumerate(chosen, 1):
        rows.append(run_case(case))
        # Written after each case: what was measured stays if a later one takes the machine down.
        path.write_text(json.dumps(record(rows, card), indent=2) + "\n")
        print(f"{number}/{len(chosen)}", json.dumps(rows[-1]), flush=True)
    print(json.dumps(summary(rows)), path)


if __name__ == "__main__":
    main()
