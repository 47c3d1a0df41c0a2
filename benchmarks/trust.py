"""How far a run's figures can be trusted, on real data: calibration, promised precision, verdict, drift.

Validation and test rows of finished runs (of `accuracy.py --keep`, or any other with a test file) are
predicted once; what follows from the logits is then done as `fit` does it: pooling, calibration and threshold
on validation, measured on the test file, the model beside the TF-IDF baseline. Validation and test rows
together then stand for a population: rows drawn from it with replacement make a new validation part, a
hundred times, and the promise is checked on the whole.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lib import common, page

TARGETS = (0.8, 0.9, 0.95)
RESPLIT_TARGETS = (0.9, 0.95)


@dataclass(frozen=True)
class HeldOut:
    """Logits of the model and scores of the baseline ``(N, K)``, ids ``(N,)`` and texts of a part."""

    logits: Any
    baseline: Any
    y: Any
    rows: Any
    lengths: Any
    texts: list[str]


@dataclass(frozen=True)
class Run:
    """A finished run: held-out rows by part, labels, training rows by class, training texts.

    ``trained_with`` are the settings of the fit that are not the default, but for where its data lie.
    """

    parts: dict[str, HeldOut]
    labels: tuple[str, ...]
    class_rows: Any
    train_texts: list[str]
    trained_with: dict[str, Any]


def main() -> None:
    parser = common.parser("Calibration, promised precision and verdict of finished runs on real data.")
    parser.add_argument(
        "runs", type=Path, nargs="*", help="run folders; each needs the data it was made from"
    )
    parser.add_argument("--resplits", type=int, default=100, help="draws of a new validation part")
    options = parser.parse_args()
    if not options.runs:
        print("Skipped: name the folders of finished runs, as of accuracy.py --keep.")
        return
    common.quiet_libraries()
    import torch

    torch.set_num_threads(options.threads)
    results = {}
    for folder in options.runs:
        print(f"{folder.name}: predicting")
        run = held_out(folder)
        results[folder.name] = measure(run, options.resplits)
        _tell(folder.name, results[folder.name])
    settings = {"resplits": options.resplits, "targets": TARGETS}
    name, record = f"trust-{'-'.join(results)}", {"benchmark": "trust", "settings": settings, "runs": results}
    common.save_result(name, record, options.out, machine=common.hardware())
    page.refresh(options.out)


def held_out(folder: Path) -> Run:
    """The held-out rows of a run, predicted as `fit` predicts them."""
    from snugtune.config import FitConfig, make_config
    from snugtune.data.dataset import load_data
    from snugtune.data.tokens import tokenize
    from snugtune.evaluate.baseline import TfidfBaseline
    from snugtune.predict.predictor import Predictor
    from snugtune.train.forward import predict_logits

    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    settings = {name: value for name, value in record["config"].items() if name in FitConfig.model_fields}
    data = load_data(make_config(settings))
    if record.get("imbalance", {}).get("trained_tau"):
        raise SystemExit(f"{folder}: made for runs that do not favour rare classes in training.")
    if list(data.labels.names) != record["labels"]:
        raise SystemExit(f"{folder}: its data has other labels by now.")
    predictor = Predictor.load(folder)
    train, validation = data.parts["train"], data.parts["validation"]
    K = len(data.labels.names)
    chosen_with = TfidfBaseline().fit(train.texts, train.y, K)
    final = TfidfBaseline().fit([*train.texts, *validation.texts], np.r_[train.y, validation.y], K)
    parts = {}
    for name, baseline in (("validation", chosen_with), ("test", final)):
        part = data.parts[name]
        tokens = tokenize(part.texts, predictor.tokenizer, predictor.max_length, predictor.long_texts)
        logits = predict_logits(
            predictor.model, tokens, pad_token_id=predictor.tokenizer.pad_token_id, device=predictor.device
        )
        scores = baseline.decision(part.texts)
        parts[name] = HeldOut(logits, scores, part.y, part.rows, tokens.text_lengths, part.texts)
    class_rows = np.bincount(train.y, minlength=K)
    return Run(parts, tuple(data.labels.names), class_rows, train.texts, _trained_with(settings))


def _trained_with(settings: dict[str, Any]) -> dict[str, Any]:
    from snugtune.classifier import TABLE_SETTINGS
    from snugtune.config import make_config

    usual = make_config({"train": "table"}).model_dump(mode="json")
    return {
        name: value
        for name, value in settings.items()
        if name not in {*TABLE_SETTINGS, "audit"} and value != usual[name]
    }


def measure(run: Run, times: int) -> dict[str, Any]:
    """Everything that is reported of a run."""
    targets = {f"{target:g}": at_target(run, target) for target in TARGETS}
    return {
        "rows": {name: len(part.y) for name, part in run.parts.items()},
        "classes": len(run.labels),
        "trained_with": run.trained_with,
        **quality(run),
        "targets": targets,
        "resplits": resplits(run, times),
        "imbalance": imbalance(run),
        "drift": drift(run),
    }


def _decided(run: Run, target: float, **options: Any) -> Any:
    from snugtune.evaluate.decision import decide

    validation = run.parts["validation"]
    return decide(validation.logits, validation.baseline, validation.y, precision=target, **options)


def quality(run: Run) -> dict[str, Any]:
    """Accuracy, macro F1, calibration before and after, and the paired test against the baseline."""
    from snugtune.evaluate.calibration import softmax
    from snugtune.evaluate.metrics import classification_metrics
    from snugtune.evaluate.slices import reliability
    from snugtune.evaluate.verdict import compare

    started = time.perf_counter()
    decided = _decided(run, 0.95)
    seconds = time.perf_counter() - started
    test = run.parts["test"]
    probabilities = decided.decision.probabilities(test.logits, test.baseline)
    pooled = decided.decision.mixture.apply(test.logits, test.baseline)
    metrics = classification_metrics(test.y, probabilities, run.labels)
    wanted = ("accuracy", "f1_macro", "log_loss", "ece", "intervals")
    calibration = decided.decision.calibration
    return {
        "test": {name: metrics[name] for name in wanted},
        "ece": {
            "model": reliability(test.y, softmax(test.logits))["ece"],
            "pooled, one temperature": reliability(test.y, pooled)["ece"],
            "calibrated": metrics["ece"],
        },
        "calibration": {
            "method": calibration.method,
            "confidence": calibration.confidence,
            "log_losses": decided.log_losses,
            "seconds": seconds,
        },
        "against_baseline": compare(test.y, probabilities.argmax(1), test.baseline.argmax(1)).as_dict(),
    }


def at_target(run: Run, target: float) -> dict[str, Any]:
    """What is promised on validation and kept on the test file, by the model and by the baseline."""
    from snugtune.evaluate.assessment import Candidate, Rows, automation, part_metrics
    from snugtune.evaluate.calibration import softmax
    from snugtune.evaluate.decision import decide
    from snugtune.evaluate.verdict import compare, verdict

    validation, test = run.parts["validation"], run.parts["test"]
    model, baseline = _decided(run, target), decide(validation.baseline, None, validation.y, precision=target)
    probabilities = model.decision.probabilities(test.logits, test.baseline)
    theirs = baseline.decision.probabilities(test.baseline)
    found = automation(
        Candidate(model, probabilities), Candidate(baseline, theirs), validation.y, test.y, run.labels
    )
    metrics = part_metrics(
        Rows(test.y, test.rows, test.lengths), softmax(test.logits), probabilities, run.labels, run.class_rows
    )
    told = verdict(
        compare(test.y, probabilities.argmax(1), test.baseline.argmax(1)), found, metrics, run.class_rows,
        part="test",
    )  # fmt: skip
    kept = ("threshold", "validation", "test", "expected_coverage", "baseline", "sentence")
    return {
        **{name: found[name] for name in kept},
        "classes_with_own_threshold": sum(row["own_threshold"] is not None for row in found["by_class"]),
        # With hindsight: the largest share of the test rows that reaches the target; none can prove more.
        "hindsight_coverage": {
            "model": hindsight(probabilities, test.y, target), "baseline": hindsight(theirs, test.y, target)
        },
        "verdict": {name: told[name] for name in ("level", "against_baseline", "review_share")},
    }  # fmt: skip


def hindsight(probabilities: Any, y: Any, target: float) -> float:
    """The largest share of the most confident rows that are right with the target precision."""
    from snugtune.evaluate.selective import Held

    held = Held.of(y, probabilities)
    right = held.correct[np.argsort(-held.confidence, kind="stable")]
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    reached = np.flatnonzero(precision >= target)
    return float((reached[-1] + 1) / len(right)) if len(reached) else 0.0


def resplits(run: Run, times: int) -> dict[str, Any]:
    """How often each promise is kept if validation rows are drawn anew, and at what coverage.

    All known held-out rows stand for the population, from which rows are drawn with replacement.
    """
    known = [part.y >= 0 for part in run.parts.values()]
    logits, baseline, y = (
        np.concatenate(
            [getattr(part, name)[rows] for part, rows in zip(run.parts.values(), known, strict=True)]
        )
        for name in ("logits", "baseline", "y")
    )
    rng, size = np.random.default_rng(0), len(run.parts["validation"].y)
    found: dict[float, dict[str, list[tuple[float, bool]]]] = {
        target: {"model": [], "baseline": []} for target in RESPLIT_TARGETS
    }
    for _ in range(times):
        drawn = rng.integers(0, len(y), size)
        for who, scores, second in (("model", logits, baseline), ("baseline", baseline, None)):
            for target, outcome in outcomes(scores, second, y, drawn).items():
                kept = outcome["precision"] is None or outcome["precision"] >= target
                found[target][who].append((outcome["coverage"], kept))
    return {
        f"{target:g}": {
            who: {
                "validation_rows": size,
                "kept": float(np.mean([kept for _, kept in values])),
                "coverage": common.spread([coverage for coverage, _ in values]),
                "mean_coverage": float(np.mean([coverage for coverage, _ in values])),
            }
            for who, values in of.items()
        }
        for target, of in found.items()
    }


def outcomes(scores: Any, second: Any, y: Any, drawn: Any) -> dict[float, dict[str, Any]]:
    """Coverage and precision on all rows of what is decided on those ``drawn``, by target.

    Pool and calibration are the same for every target; only the threshold is not.
    """
    from snugtune.evaluate.decision import decide
    from snugtune.evaluate.selective import Held, promise

    seconds = None if second is None else second[drawn]
    decided = decide(scores[drawn], seconds, y[drawn], precision=RESPLIT_TARGETS[0])
    validation = Held.of(y[drawn], decided.held_out)
    everything = Held.of(y, decided.decision.probabilities(scores, second))
    return {
        target: everything.outcome(promise(validation.confidence, validation.correct, target).threshold)
        for target in RESPLIT_TARGETS
    }


def imbalance(run: Run) -> dict[str, Any]:
    """Accuracy and macro F1 on the test file without and with the adjustment for rare classes."""
    from snugtune.evaluate.metrics import classification_metrics

    test, found = run.parts["test"], {}
    for wanted in (None, "accuracy", "macro_f1"):
        options = {} if wanted is None else {"class_rows": run.class_rows, "adjust_for": wanted}
        decision = _decided(run, 0.95, **options).decision
        metrics = classification_metrics(
            test.y, decision.probabilities(test.logits, test.baseline), run.labels, bootstrap_samples=0
        )
        scores = {name: metrics[name] for name in ("accuracy", "f1_macro", "ece")}
        found[wanted or "none"] = {"tau": decision.mixture.tau, **scores}
    return found


def drift(run: Run) -> dict[str, Any]:
    """What is said of the test file as a new table, and of a test file with every second text cut in half."""
    from snugtune.evaluate.drift import DriftTally, reference

    decided = _decided(run, 0.95)
    names = np.array(run.labels, dtype=object)
    held = decided.held_out
    seen = reference(
        run.train_texts, run.parts["validation"].texts, held.max(1), names[held.argmax(1)].tolist()
    )
    test = run.parts["test"]
    probabilities = decided.decision.probabilities(test.logits, test.baseline)
    predicted = names[probabilities.argmax(1)].tolist()
    halved = [text[: len(text) // 2] if i % 2 else text for i, text in enumerate(test.texts)]
    found = {}
    for name, texts in (("test", test.texts), ("test, every second text cut in half", halved)):
        tally = DriftTally(seen)
        tally.add(texts, probabilities.max(1), predicted)
        result = tally.result()
        found[name] = {check["name"]: [round(check["psi"], 3), check["level"]] for check in result["checks"]}
    return {"reference_bytes": len(json.dumps(seen)), **found}


def _tell(name: str, result: dict[str, Any]) -> None:
    print(f"{name}: ECE {result['ece']}, by {result['calibration']['method']}")
    for target, found in result["targets"].items():
        test, theirs = found["test"], found["baseline"]["test"]
        print(
            f"  {target}: coverage {test['coverage']:.3f} at precision {test['precision']}, baseline "
            f"{theirs['coverage']:.3f} at {theirs['precision']}; {found['verdict']['level']}"
        )
    for target, again in result["resplits"].items():
        model, baseline = again["model"], again["baseline"]
        print(
            f"  {target} in resplits: kept {model['kept']:.2f} at coverage {model['mean_coverage']:.3f}, "
            f"baseline {baseline['kept']:.2f} at {baseline['mean_coverage']:.3f}"
        )


if __name__ == "__main__":
    main()
