"""Run folders with every block that a report can show, made of random draws: no model is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from snugtune.config import FitConfig
from snugtune.evaluate.metrics import classification_metrics

CONTROLS = "".join(
    chr(code)
    for first, last in (
        (1, 31),
        (0x7F, 0x9F),
        (0x200B, 0x200F),
        (0x2028, 0x202E),
        (0x2060, 0x206F),
        (0xFEFF, 0xFEFF),
    )
    for code in range(first, last + 1)
)
"""Characters that steer terminals, turn lines around, join or vanish."""

HOSTILE = [
    "<script>window.pwned = 1</script>",
    "</style><img src=x onerror='window.pwned = 1'>",
    "</script><svg onload=window.pwned=1>",
    "\"double\" 'single' `back` & &amp; {{ 7 * 7 }} {% raw %}",
    "שלום עולם \u202e drawkcab",
    "مرحبا بالعالم",
    "🧾🏦 emoji 👩‍👩‍👧‍👦",
    "x" * 10_000,
    "many words " * 900,
    "-->]]><!--",
    "javascript:window.pwned=1",
    "line\nbreak\tand\x00null",
    "half a pair \ud83d",
    "= 1 + 1",
    '" onmouseover="window.pwned=1" autofocus onfocus="window.pwned=1',
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "<a href='javascript:window.pwned=1'>click</a>",
    "<img src=https://elsewhere.invalid/a.png><link rel=stylesheet href=//elsewhere.invalid/a.css>",
    "<style>body { background: url(https://elsewhere.invalid/b.png) }</style>",
    "<meta http-equiv=refresh content='0;url=https://elsewhere.invalid/'><base href=//elsewhere.invalid>",
    f"controls {CONTROLS} end",
]
"""Labels and texts that break pages which do not escape, cut and isolate them."""

TOPICS = ("Card", "Loan", "Mortgage", "Transfer", "Account", "Report", "Debt", "Fees", "Fraud", "Wallet")
MATTERS = (
    "not received",
    "charged twice",
    "declined abroad",
    "closed without notice",
    "interest miscalculated",
    "payment not credited",
    "incorrect information",
    "cannot be verified",
    "late fee disputed",
    "contact after a request to stop",
    "application refused",
    "settlement not honoured",
    "limit lowered",
    "statement missing",
    "escrow shortage",
    "exchange rate differs",
    "identity stolen",
    "transfer pending",
    "documents lost",
    "terms changed",
)


def write_run(
    folder: Path,
    *,
    classes: int = 30,
    rows: int = 1500,
    seed: int = 0,
    hostile: bool = False,
    level: str = "ready_with_review",
) -> Path:
    """Write the report's sources, of an imagined run, into ``folder`` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    labels = [
        f"{TOPICS[i % 10]}: {MATTERS[i // 10 % 20]}" + (f" {i}" if i >= 200 else "") for i in range(classes)
    ]
    texts = [f"I wrote to them about my {label.lower()} and nobody answered for weeks." for label in labels]
    if hostile:
        labels[: len(HOSTILE)] = HOSTILE[:classes]
        texts[: len(HOSTILE)] = HOSTILE[:classes]
    draw = _Draw(rng, classes)
    parts = {"validation": draw.part(max(rows // 2, 20)), "test": draw.part(rows)}
    record = _record(labels, draw, parts, level, rng)
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    _write_lines(folder / "metrics.jsonl", _steps(rng))
    _write_lines(folder / "memory.jsonl", _memory(rng))
    _write_predictions(folder / "predictions.parquet", labels, texts, draw, parts)
    return folder


class _Draw:
    """True classes by a long-tailed prior, and probabilities that confuse classes of one topic."""

    def __init__(self, rng: np.random.Generator, K: int) -> None:
        self.rng, self.K = rng, K
        prior = 1 / np.arange(1, K + 1) ** 0.7
        self.prior = rng.permutation(prior / prior.sum())
        self.train = np.maximum(1, (12_000 * self.prior).astype(int))

    def part(self, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Class ids (N,), and calibrated and uncalibrated probabilities (N, K)."""
        topic = self.rng.choice(self.K, rows, p=self.prior)
        logits = self.rng.normal(size=(rows, self.K)) + 0.5 * np.log(self.prior)
        near = (np.arange(self.K)[None, :] % 10) == (topic[:, None] % 10)
        logits += near * self.rng.gamma(2.0, 1.2, size=(rows, 1))
        logits[np.arange(rows), topic] += self.rng.normal(8.0, 2.5, rows)
        probs = _softmax(logits)
        # The truth is drawn by the probabilities, so they are calibrated.
        y = (self.rng.random((rows, 1)) > probs.cumsum(axis=1)).sum(axis=1).clip(0, self.K - 1)
        return y, probs, _softmax(logits * 1.8)


def _softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _record(
    labels: list[str], draw: _Draw, parts: dict[str, Any], level: str, rng: np.random.Generator
) -> dict[str, Any]:
    metrics = {name: _metrics(labels, draw, *part) for name, part in parts.items()}
    worse = {name: draw.rng.permuted(part[1] ** 0.25, axis=0) for name, part in parts.items()}
    for name, (y, probs, _) in parts.items():
        mixed = np.where(
            draw.rng.random((len(y), 1)) < 0.88, probs, worse[name] / worse[name].sum(1, keepdims=True)
        )
        worse[name] = mixed / mixed.sum(1, keepdims=True)
    baseline = {
        name: classification_metrics(parts[name][0], worse[name], labels, bootstrap_samples=200)
        for name in parts
    }
    y, probs, _ = parts["test"]
    sure = probs.max(1) >= 0.62
    right = probs.argmax(1) == y
    seconds = {"data": 4.1, "probe": 31.0, "train": 1260.0, "evaluate": 48.0, "baseline": 22.0, "save": 12.5}
    total = sum(seconds.values())
    config = FitConfig(train="complaints.xlsx", label="Issue", num_train_epochs=5, price_per_hour_usd=0.35)
    return {
        "format": 1,
        "created_at": "2026-11-25T12:00:00+00:00",
        "config": config.model_dump(mode="json"),
        "labels": labels,
        "label_aliases": {},
        "columns": {"text": ["Complaint"], "label": "Issue"},
        "data": {
            "rows": {
                "train": int(draw.train.sum()),
                "validation": len(parts["validation"][0]),
                "test": len(y),
            },
            "cleaning": {
                "rows_in": int(draw.train.sum()) + 3000,
                "empty_texts": 14,
                "blank_labels": 3,
                "exact_duplicates": 410,
                "conflicting_rows": 22,
                "merged_labels": {labels[0]: [labels[0].upper()]},
                "rare_classes": {labels[-1]: 2},
                "dropped_rare_rows": 0,
                "rows_kept": int(draw.train.sum()),
                "classes": len(labels),
                "policy": {},
            },
            "truncation": {
                "max_length": 256,
                "rows": 12000,
                "rows_cut": 811,
                "tokens": 1_900_000,
                "tokens_cut": 91_000,
            },
            "test_rows_like_training": None,
            "first_row": 2,
        },
        "model": {"source": "sentence-transformers/all-MiniLM-L6-v2", "folder": "adapter", "max_length": 256},
        "long_texts": {
            "asked": "auto",
            "chosen": "truncate",
            "candidates": {
                way: {"log_loss": 2.0, "accuracy": 0.5, "f1_macro": 0.25, "price": price, "pass_s": 9.0}
                for way, price in (("truncate", 1.0), ("head_tail", 1.0), ("windows", 1.62))
            },
        },
        "imbalance": {
            "asked": "auto",
            "chosen": "weights",
            "candidates": {
                "none": {"accuracy": 0.5, "f1_macro": 0.21},
                "weights": {"accuracy": 0.48, "f1_macro": 0.27},
            },
        },
        "parameters": {
            "all": 24842972,
            "trainable": 337582,
            "percent": 1.3589,
            "parts": {
                "embeddings": {"all": 11918592, "trainable": 0},
                "encoder": {"all": 12421248, "trainable": 0},
                "adapter": {"all": 172032, "trainable": 172032},
                "head": {"all": 331100, "trainable": 165550},
            },
        },
        "training": {
            "steps": 1500,
            "best_step": 1200,
            "best_score": metrics["validation"]["accuracy"],
            "stopped_early": True,
            "interrupted": False,
            "dtype": "bfloat16",
            "device": "cuda",
        },
        "memory": {
            "predicted_peak_gib": 3.62,
            "measured_peak_gib": 3.55,
            "limit_gib": 4.0,
            "measured_as": "max_memory_reserved",
            "events": [],
            "restarts": ["The process was started again at step 700: out of memory."],
        },
        "decision": {
            "mixture": {"weight": 0.15, "temperature": 1.08, "tau": 0.0},
            "confidence_threshold": 0.62,
            "precision_target": 0.95,
            "calibration": {"method": "vector"},
        },
        "metrics": metrics,
        "baseline": {"name": "TF-IDF + linear SVM", "metrics": baseline},
        "automation": {
            "precision_target": 0.95,
            "delta": 0.1,
            "guarantee": "clopper_pearson",
            "threshold": 0.62,
            "validation": {"coverage": 0.72, "precision": 0.958, "lower_bound": 0.95},
            "test": {
                "coverage": float(sure.mean()),
                "precision": float(right[sure].mean()),
                "interval": [0.949, 0.962],
            },
            "baseline": {"threshold": 0.7, "test": {"coverage": 0.41, "precision": 0.953}},
            "by_class": [
                {
                    "label": label,
                    "coverage": float(rng.beta(8, 4)),
                    "precision": float(rng.beta(40, 2)),
                    "rows": 12,
                }
                for label in labels
            ],
            "sentence": f"{100 * sure.mean():.0f} % of the texts can be automated at 95 % precision; "
            "the rest goes to a person.",
        },
        "verdict": {
            "level": level,
            "against_baseline": "better",
            "difference": {
                "accuracy": 0.041,
                "interval": [0.029, 0.053],
                "p_value": 1e-9,
                "test": "mcnemar_exact",
            },
            "review_share": float(1 - sure.mean()),
            "reasons": [
                "It is right on more texts than the baseline, beyond chance.",
                "The promised precision was met on the test texts.",
                f"{len(labels) // 8} classes have fewer than ten training texts.",
            ],
            "advice": [
                "Let predictions through above the threshold and give the rest to a person.",
                "Review the 20 most suspect labels before training again.",
            ],
        },
        "audit": _audit(labels, draw, rng),
        "reload": {"rows": 16, "largest_logit_difference": 2.1e-6, "without_quantization": None},
        "time": {f"{name}_s": value for name, value in seconds.items()} | {"total_s": total},
        "cost": {
            "usd": total / 3600 * 0.35,
            "price_per_hour_usd": 0.35,
            "phases": [
                {"name": name, "seconds": value, "usd": value / 3600 * 0.35}
                for name, value in seconds.items()
            ],
            "energy_wh": 26.4,
            "gpu_hours": total / 3600,
            "compute_units": {"blog_formula": 1.36, "colab": 0.75},
            "per_1000_predictions": {"seconds": 2.6, "usd": 0.00025},
            "per_year": None,
            "price": {"usd_per_hour": 0.35, "source": "your own price", "date": "2026-11-01"},
            "budget": {"max_cost_usd": 2.0, "max_time_s": None, "max_units": None, "ended_run": False},
            "alternatives": [
                {
                    "what": "2 epochs instead of 5",
                    "time_s": 610.0,
                    "usd": 0.06,
                    "basis": "measured throughput",
                    "score": 0.861,
                },
                {
                    "what": "the head alone",
                    "time_s": 120.0,
                    "usd": 0.012,
                    "basis": "measured throughput",
                    "score": None,
                },
            ],
        },
        "versions": {"python": "3.11.9", "snugtune": "0.1.0.dev0", "torch": "2.13.0"},
    }


def _metrics(
    labels: list[str], draw: _Draw, y: np.ndarray, probs: np.ndarray, before: np.ndarray
) -> dict[str, Any]:
    metrics = classification_metrics(y, probs, labels, bootstrap_samples=200)
    for row in metrics["per_class"]:
        wide = 1 / np.sqrt(max(row["support"], 1)) / 2
        row["intervals"] = {
            key: [max(0.0, row[key] - wide), min(1.0, row[key] + wide)]
            for key in ("precision", "recall", "f1")
        }
    wrong = np.flatnonzero(probs.argmax(1) != y)
    metrics["confused_pairs"] = _pairs(labels, metrics["confusion"], y, probs, wrong)
    metrics["slices"] = {
        "by_length": [
            {"from": low, "to": high, "rows": len(y) // 4, "accuracy": a, "interval": [a - 0.02, a + 0.02]}
            for low, high, a in ((1, 32, 0.84), (33, 96, 0.91), (97, 192, 0.9), (193, None, 0.82))
        ],
        "by_class_size": [
            {"from": 1, "to": 9, "classes": 12, "rows": 40, "accuracy": 0.55, "f1_macro": 0.48},
            {
                "from": 10,
                "to": 99,
                "classes": len(labels) - 20,
                "rows": 700,
                "accuracy": 0.83,
                "f1_macro": 0.8,
            },
            {"from": 100, "to": None, "classes": 8, "rows": 800, "accuracy": 0.93, "f1_macro": 0.91},
        ],
    }
    metrics["levels"] = [
        {"column": "Product", "rows": len(y), "accuracy": 0.95, "f1_macro": 0.93},
        {"column": "Issue", "rows": len(y), "accuracy": metrics["accuracy"], "f1_macro": metrics["f1_macro"]},
    ]
    metrics["reliability"] = {
        "before": {"ece": 0.083, "bins": _bins(y, before)},
        "after": {"ece": metrics["ece"], "bins": _bins(y, probs)},
    }
    metrics["risk_coverage"] = _risk_coverage(y, probs)
    return metrics


def _pairs(
    labels: list[str], confusion: list[list[int]], y: np.ndarray, probs: np.ndarray, wrong: np.ndarray
) -> list[dict[str, Any]]:
    found: dict[tuple[int, int], list[int]] = {}
    for true, predicted, count in confusion:
        pair = found.setdefault((min(true, predicted), max(true, predicted)), [0, 0])
        pair[int(true > predicted)] += count
    ordered = sorted(found.items(), key=lambda item: -sum(item[1]))[:50]
    predicted = probs.argmax(1)
    return [
        {
            "labels": [labels[a], labels[b]],
            "rows": there + back,
            "a_as_b": there,
            "b_as_a": back,
            "examples": [int(row) for row in wrong if {int(y[row]), int(predicted[row])} == {a, b}][:3],
        }
        for (a, b), (there, back) in ordered
    ]


def _bins(y: np.ndarray, probs: np.ndarray, count: int = 15) -> list[dict[str, Any]]:
    confidence, right = probs.max(1), probs.argmax(1) == y
    place = np.minimum((confidence * count).astype(int), count - 1)
    return [
        {
            "confidence": float(confidence[place == i].mean()),
            "accuracy": float(right[place == i].mean()),
            "rows": int((place == i).sum()),
        }
        for i in range(count)
        if (place == i).any()
    ]


def _risk_coverage(y: np.ndarray, probs: np.ndarray) -> list[dict[str, float]]:
    confidence, right = probs.max(1), probs.argmax(1) == y
    return [
        {
            "threshold": float(t),
            "coverage": float((confidence >= t).mean()),
            "precision": float(right[confidence >= t].mean()),
        }
        for t in np.quantile(confidence, np.linspace(0, 0.98, 200))
    ]


def _audit(labels: list[str], draw: _Draw, rng: np.random.Generator) -> dict[str, Any]:
    largest, smallest = int(draw.train.argmax()), int(draw.train.argmin())
    rows = int(draw.train.sum())
    return {
        "rows": rows,
        "labels": len(labels),
        "classes": {
            "largest": {"label": labels[largest], "rows": int(draw.train[largest])},
            "smallest": {"label": labels[smallest], "rows": int(draw.train[smallest])},
            "below_10": int((draw.train < 10).sum()),
        },
        "lengths": {
            "tokens": {"median": 121, "p95": 344, "max": 2180},
            "cut_rows": 811,
            "cut_tokens_share": 0.048,
        },
        "languages": [{"language": "English", "share": 0.97}, {"language": "Spanish", "share": 0.03}],
        "duplicates": {"rows": 410, "conflicting_rows": 22},
        "near_duplicates": {
            "groups": 31,
            "rows": 240,
            "largest": [{"rows": 88, "text": "To whom it may concern, <b>this</b> letter"}],
        },
        "leakage": {"rows": 12},
        "label_variants": [[labels[0], labels[0].upper()]],
        "rare_classes": [{"label": labels[smallest], "rows": int(draw.train[smallest])}],
        "label_issues": {
            "suspected_rows": 214,
            "share": 214 / rows,
            "file": "label_issues.xlsx",
            "top": [
                {
                    "row": int(rng.integers(rows)),
                    "text": f"To whom it may concern, about {labels[i % len(labels)][:60]}",
                    "given": labels[i % len(labels)],
                    "suggested": labels[(i + 10) % len(labels)],
                    "quality": 0.004 * (i + 1),
                }
                for i in range(20)
            ],
        },
        "learning_curve": {
            "points": [
                {"rows": n, "accuracy": 0.9 - 0.9 * n**-0.35} for n in (500, 1000, 2000, 4000, 8000, 12000)
            ],
            "forecast": [
                {
                    "rows": n,
                    "accuracy": 0.9 - 0.9 * n**-0.35,
                    "interval": [0.88 - 0.9 * n**-0.35, 0.915 - 0.9 * n**-0.35],
                }
                for n in (24000, 48000)
            ],
            "sentence": "Twice as many texts would likely bring about 1 point.",
        },
    }


def _steps(rng: np.random.Generator, steps: int = 1500) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"step": 0, "epoch": 0.0, "eval_score": 0.78, "eval_loss": 0.95, "best": True}
    ]
    for step in range(1, steps + 1):
        rate = 5e-4 * min(step / 150, (steps - step) / (steps - 150))
        loss = float((0.25 + 1.2 * np.exp(-step / 250)) * rng.gamma(12, 1 / 12))
        rows.append({"step": step, "loss": loss, "learning_rate": rate, "elapsed_s": 0.84 * step})
        if step % 300 == 0:
            score = 0.9 - 0.1 * float(np.exp(-step / 300)) - (0.01 if step == steps else 0)
            rows.append(
                {
                    "step": step,
                    "epoch": step / 300,
                    "eval_score": score,
                    "eval_loss": 1.25 - score,
                    "best": step < steps,
                }
            )
    return rows


def _memory(rng: np.random.Generator, steps: int = 1500) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        allocated = 2.4 + 0.6 * float(rng.beta(2, 3))
        reserved = min(3.55, 3.2 + 0.35 * min(1, step / 200))
        rows.append(
            {
                "step": step,
                "elapsed_s": 0.84 * step,
                "allocated_gib": allocated,
                "reserved_gib": reserved,
                "peak_gib": reserved,
            }
        )
        if step == 700:
            rows.append(
                {
                    "step": step,
                    "event": "out_of_memory",
                    "during": "training",
                    "rows": 8,
                    "longest_tokens": 256,
                    "message": "CUDA out of memory",
                    "action": "The micro-batch was undone and cut in two.",
                }
            )
    return rows


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_predictions(
    path: Path, labels: list[str], texts: list[str], draw: _Draw, parts: dict[str, Any]
) -> None:
    # A table cannot hold half of a surrogate pair; run.json can.
    names = np.array([label.encode("utf-8", "replace").decode() for label in labels], dtype=object)
    told = np.array([text.encode("utf-8", "replace").decode() for text in texts], dtype=object)
    train = np.repeat(np.arange(draw.K), draw.train)
    frames = [
        pl.DataFrame(
            {"row": np.arange(len(train)), "part": ["train"] * len(train), "label": names[train].tolist()}
        )
    ]
    for name, (y, probs, _) in parts.items():
        predicted = probs.argmax(1)
        frames.append(
            pl.DataFrame(
                {
                    "row": np.arange(len(y)),
                    "part": [name] * len(y),
                    "label": names[y].tolist(),
                    "predicted_label": names[predicted].tolist(),
                    "confidence": probs.max(1),
                    "text": [told[k] if k != p else None for k, p in zip(y, predicted, strict=True)],
                },
                schema_overrides={"text": pl.String},
            )
        )
    pl.concat(frames, how="diagonal").write_parquet(path)
