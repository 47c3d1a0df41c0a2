"""What held-out rows say: how to decide, how good that is, and whether it was worth it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from snugtune.audit import Lengths, examine
from snugtune.data.labels import LabelSet
from snugtune.data.tokens import Tokens
from snugtune.evaluate.assessment import Candidate, Rows, automation, part_metrics
from snugtune.evaluate.baseline import TfidfBaseline
from snugtune.evaluate.calibration import softmax
from snugtune.evaluate.decision import Decided, decide
from snugtune.evaluate.drift import reference
from snugtune.evaluate.levels import Level, all_level_scores, levels_of
from snugtune.evaluate.metrics import classification_metrics, single_class_alarm
from snugtune.evaluate.multilabel.assessment import ScoredSets, judge_sets, score_sets
from snugtune.evaluate.multilabel.decision import DecidedSets, LabelSetDecision, decide_label_sets
from snugtune.evaluate.verdict import compare, verdict
from snugtune.memory.guard import Guard
from snugtune.report.record import Told
from snugtune.stages.job import Job, Logits, class_rows
from snugtune.train.features import FrozenPass
from snugtune.train.forward import predict_logits
from snugtune.train.imbalance import METRICS, Balanced
from snugtune.train.step import device_of


@dataclass(frozen=True)
class Baselines:
    """The baseline fitted on training rows, on which choices rest, and the final one, on validation rows too.

    What is chosen on held-out rows (temperatures, the share in the pool) is kept for the final one, as in
    scikit-learn's ``CalibratedClassifierCV(ensemble=False)``.
    """

    chosen_with: TfidfBaseline
    final: TfidfBaseline


@dataclass(frozen=True)
class BothDecided:
    """How the run decides, and how its baseline would by itself."""

    model: Decided | DecidedSets
    baseline: Decided | DecidedSets


@dataclass(frozen=True)
class Scores:
    """By part (validation, test): probabilities (N, K), the metrics they give, and the baseline's.

    ``alarms`` has a sentence for each part on which the model has collapsed. ``sets`` are what is said of
    label sets, where a text may have several labels.
    """

    probabilities: dict[str, NDArray[np.float64]]
    metrics: dict[str, dict[str, Any]]
    baseline_scores: dict[str, NDArray[np.float32]]
    baseline_metrics: dict[str, dict[str, Any]]
    alarms: dict[str, str]
    sets: dict[str, ScoredSets] = field(default_factory=dict)

    def told(self, labels: LabelSet) -> dict[str, Told]:
        """What is said of each row, as it is written."""
        if self.sets:
            return {name: Told.of_sets(labels, part.model) for name, part in self.sets.items()}
        return {name: Told.of(labels, rows) for name, rows in self.probabilities.items()}


@dataclass(frozen=True)
class Judged:
    """What can be automated, the verdict, and what drift is measured against, as they are written."""

    automation: dict[str, Any]
    verdict: dict[str, Any]
    reference: dict[str, Any]


def held_out_logits(job: Job, model: torch.nn.Module, tokens: dict[str, Tokens], guard: Guard) -> Logits:
    """Logits (R, K) of the rows of validation and, where there are any, of test, by part."""
    parts = [name for name in ("validation", "test") if len(tokens[name])]
    device = device_of(model)
    job.clock.phase("evaluate", sum(tokens[name].rows for name in parts))
    return {
        name: predict_logits(
            model, tokens[name], pad_token_id=job.pad_token_id, device=device,
            on_rows=job.clock.advance, max_examples=job.config.per_device_eval_batch_size, guard=guard,
            group=job.group,
        )
        for name in parts
    }  # fmt: skip


def audit_data(
    job: Job, tokens: dict[str, Tokens], frozen: FrozenPass | None, folder: Path
) -> dict[str, Any] | None:
    """The data themselves: what they hold, labels that look wrong, what more rows would bring.

    Labels of test rows are not looked at.
    """
    if not job.config.audit:
        return None
    table, parts = job.data.table, job.data.parts
    # Texts from reviews are not in the table; they are the last ones of the training part.
    own, trained = len(parts["train"]) - parts["train"].reviewed, len(parts["train"])
    tokens = {**tokens, "train": tokens["train"].first(own)}
    of_table = [tokens[name] for name in parts if name != "test" or job.config.test is None]
    judged = np.concatenate([parts["train"].rows[:own], parts["validation"].rows])
    return examine(
        table, Lengths.of_parts(of_table), np.searchsorted(table.rows, judged),
        None if frozen is None else np.delete(frozen.features, slice(own, trained), axis=0),
        leaked_rows=job.data.overlap, seed=job.config.seed, folder=folder, observer=job.clock,
        texts=job.config.report_texts,
    )  # fmt: skip


def fit_baselines(job: Job) -> Baselines:
    """TF-IDF and a linear classifier: on training rows, then on validation rows too."""
    job.clock.phase("baseline")
    part, validation = job.data.parts["train"], job.data.parts["validation"]
    K = len(job.data.labels.names)
    chosen_with = TfidfBaseline().fit(part.texts, part.y, K)
    if not job.config.is_multi_label:
        chosen_with.calibrate(validation.texts, validation.y)
    final = TfidfBaseline().fit([*part.texts, *validation.texts], np.r_[part.y, validation.y], K)
    final.temperature = chosen_with.temperature
    return Baselines(chosen_with, final)


def choose_decision(
    job: Job, logits: NDArray[np.float32], baseline: TfidfBaseline, balanced: Balanced
) -> BothDecided:
    """How logits become labels and confidences, by validation rows; the baseline's own way beside it."""
    validation, config = job.data.parts["validation"], job.config
    scores = baseline.decision(validation.texts)
    if config.is_multi_label:
        return _decide_sets(job, logits, scores)
    model = decide(
        logits, scores if config.mix_with_baseline else None, validation.y,
        precision=config.precision_target, class_rows=balanced.class_rows,
        adjust_for=METRICS[config.metric], trained_tau=balanced.balance.tau,
        search_tau=balanced.searches_tau,
    )  # fmt: skip
    mixture = model.decision.mixture
    if model.decision.uses_baseline:
        _say_mixed(job, mixture.weight)
    if mixture.tau > mixture.trained_tau:
        job.clock.say(
            f"Rare classes are preferred with tau = {mixture.tau:g}, which raises {config.metric} on "
            "validation (--imbalance none leaves it out)."
        )
    return BothDecided(model, decide(scores, None, validation.y, precision=config.precision_target))


def _decide_sets(job: Job, logits: NDArray[np.float32], baseline_scores: NDArray[np.float32]) -> BothDecided:
    y, config = job.data.parts["validation"].y, job.config
    settings: dict[str, Any] = {
        "precision": config.precision_target, "objective": config.metric, "seed": config.seed,
        # Where every training row has a label, none at all cannot be right.
        "at_least_one": bool(job.data.parts["train"].y.any(axis=1).all()),
    }  # fmt: skip
    mixed = baseline_scores if config.mix_with_baseline else None
    model = decide_label_sets(logits, mixed, y, **settings)
    if model.decision.uses_baseline:
        _say_mixed(job, model.decision.weight)
    return BothDecided(model, decide_label_sets(baseline_scores, None, y, **settings))


def _say_mixed(job: Job, share: float) -> None:
    job.clock.say(
        f"The TF-IDF baseline helps on validation, so it is mixed in with a share of {100 * share:.0f} % "
        "(--no-mix-with-baseline leaves it out)."
    )


def score(
    job: Job, tokens: dict[str, Tokens], logits: Logits, baselines: Baselines, decided: BothDecided
) -> Scores:
    """What the decision says of the held-out rows, and how good that is; a collapsed model is told of."""
    decision = decided.model.decision
    if isinstance(decision, LabelSetDecision):
        return _score_sets(job, tokens, logits, baselines, decided)
    scores = Scores({}, {}, {}, {}, {})
    names, of_class = job.data.labels.names, class_rows(job)
    for name, values in logits.items():
        part = job.data.parts[name]
        baseline = baselines.chosen_with if name == "validation" else baselines.final
        baseline_scores = baseline.decision(part.texts)
        probabilities = decision.probabilities(values, baseline_scores)
        scores.probabilities[name], scores.baseline_scores[name] = probabilities, baseline_scores
        rows = Rows(part.y, part.rows, tokens[name].text_lengths)
        scores.metrics[name] = part_metrics(rows, softmax(values), probabilities, names, of_class)
        scores.baseline_metrics[name] = classification_metrics(
            part.y, baseline.calibrated(baseline_scores), names
        )
        _score_levels(job, scores, name)
        if alarm := single_class_alarm(probabilities.argmax(1), len(names)):
            scores.alarms[name] = alarm
            job.clock.say(f"Alarm on {name}: {alarm}")
    return scores


def _score_sets(
    job: Job, tokens: dict[str, Tokens], logits: Logits, baselines: Baselines, decided: BothDecided
) -> Scores:
    scores = Scores({}, {}, {}, {}, {})
    decisions: Any = (decided.model.decision, decided.baseline.decision)
    for name, values in logits.items():
        part = job.data.parts[name]
        baseline = baselines.chosen_with if name == "validation" else baselines.final
        found = score_sets(
            part.y, tokens[name].text_lengths, values, baseline.decision(part.texts), decisions,
            job.data.labels.names, class_rows(job),
        )  # fmt: skip
        scores.sets[name] = found
        scores.metrics[name], scores.baseline_metrics[name] = found.metrics, found.baseline_metrics
        if found.alarm:
            job.clock.say(f"Alarm on {name}: {found.alarm}")
    return scores


def _score_levels(job: Job, scores: Scores, name: str) -> None:
    """What the predicted labels of a part say of the levels above them, if the user names some."""
    if not job.config.label_levels:
        return
    part, levels = job.data.parts[name], levels_of_labels(job)
    for metrics, values in (
        (scores.metrics, scores.probabilities[name]), (scores.baseline_metrics, scores.baseline_scores[name])
    ):  # fmt: skip
        metrics[name]["levels"] = all_level_scores(levels, part.y, values.argmax(1), part.levels)


def levels_of_labels(job: Job) -> list[Level]:
    """What each label says of the levels above it, if the user names some; by the training rows."""
    train = job.data.parts["train"]
    return levels_of(train.y, train.levels, len(job.data.labels.names))


def judge(job: Job, decided: BothDecided, scores: Scores) -> Judged:
    """What the held-out rows say: on the test rows, or on validation where there are none."""
    if isinstance(decided.model, DecidedSets) or isinstance(decided.baseline, DecidedSets):
        return _judge_sets(job, decided, scores)
    names, parts = np.array(job.data.labels.names, dtype=object), job.data.parts
    tested = "test" in scores.probabilities
    part = "test" if tested else "validation"
    found = automation(
        Candidate(decided.model, scores.probabilities.get("test")),
        Candidate(
            decided.baseline,
            decided.baseline.decision.probabilities(scores.baseline_scores["test"]) if tested else None,
        ),
        parts["validation"].y, parts["test"].y if tested else None, job.data.labels.names,
    )  # fmt: skip
    compared = compare(
        parts[part].y, scores.probabilities[part].argmax(1), scores.baseline_scores[part].argmax(1)
    )
    told = verdict(
        compared, found, scores.metrics[part], class_rows(job), part=part, alarm=scores.alarms.get(part)
    )
    held_out = decided.model.held_out
    seen = reference(
        parts["train"].texts, parts["validation"].texts, held_out.max(1), names[held_out.argmax(1)].tolist()
    )
    job.clock.say(found["sentence"])
    return Judged(found, told, seen)


def _judge_sets(job: Job, decided: BothDecided, scores: Scores) -> Judged:
    model, baseline, parts = decided.model, decided.baseline, job.data.parts
    assert isinstance(model, DecidedSets)
    assert isinstance(baseline, DecidedSets)
    found, told = judge_sets(model, baseline, scores.sets, class_rows(job))
    # By the maps that predictions go through, too; those of the folds differ from them in the last digits.
    held_out = scores.sets["validation"].model
    given = [name for labels in job.data.labels.decode_sets(held_out.labels) for name in labels]
    seen = reference(parts["train"].texts, parts["validation"].texts, held_out.confidence, given)
    job.clock.say(found["sentence"])
    return Judged(found, told, seen)
