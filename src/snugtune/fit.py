"""READ FIRST. The whole job, top to bottom: a table in, a model to trust out."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from snugtune.audit import Lengths, examine
from snugtune.config import WITHOUT_EFFECT_ON_WEIGHTS, FitConfig, write_config
from snugtune.cost.meter import EnergyMeter, processor_counters
from snugtune.cost.quote import Work
from snugtune.data.dataset import Data, load_data
from snugtune.data.labels import LabelSet
from snugtune.data.tokens import Tokens, tokenize
from snugtune.errors import RunInterruptedError
from snugtune.evaluate.assessment import Candidate, Rows, automation, part_metrics
from snugtune.evaluate.baseline import TfidfBaseline
from snugtune.evaluate.calibration import softmax
from snugtune.evaluate.decision import Decided, Decision, decide
from snugtune.evaluate.drift import reference
from snugtune.evaluate.levels import Level, all_level_scores, levels_of
from snugtune.evaluate.metrics import classification_metrics, single_class_alarm
from snugtune.evaluate.multilabel.assessment import ScoredSets, judge_sets, score_sets
from snugtune.evaluate.multilabel.decision import DecidedSets, LabelSetDecision, decide_label_sets
from snugtune.evaluate.verdict import compare, verdict
from snugtune.files import check_free_space, staged_folder, write_json
from snugtune.memory.guard import Guard, Limit, device_memory
from snugtune.memory.host import bound_primitive_caches
from snugtune.memory.meter import PeakMeter, resident_bytes
from snugtune.memory.plan import Plan
from snugtune.memory.segments import prefer_expandable_segments
from snugtune.model.adapter import is_peft, load_trainable_state, on_trained, trainable_state, wrap
from snugtune.model.artifact import FullPrecision, Saved, check_reloads, compare_full_precision, save_model
from snugtune.model.backbone import Backbone, load_for_fit
from snugtune.model.checkpointing import checkpoint_layers
from snugtune.model.head import Head, find_head
from snugtune.model.offload import embedding_to_host
from snugtune.model.parameters import ParameterReport, count_parameters
from snugtune.model.precision import compute_dtype, pick_device
from snugtune.progress import Observer, PhaseClock, Together
from snugtune.report.card import write_card
from snugtune.report.page import write_report
from snugtune.report.record import RunFacts, Told, write_lines, write_predictions, write_record
from snugtune.train.checkpoints import Checkpoints
from snugtune.train.engine import Examples, Services, TrainResult, train
from snugtune.train.features import FrozenPass, frozen_pass
from snugtune.train.forward import INFERENCE_TOKENS, predict_logits
from snugtune.train.imbalance import METRICS, Balanced, balance_with_probe, balance_without_probe
from snugtune.train.journal import Journal
from snugtune.train.long_texts import Encoder, Reading, RowReader, read_as_asked, read_by_evidence
from snugtune.train.planning import plan_run, record_run
from snugtune.train.prefix import Prefix, kept_prefix, time_share
from snugtune.train.probe import HeldOut, write_start
from snugtune.train.recovery import ALL_LEVERS, HALF_BATCHES, ON_CPU, Recovery, fingerprint_of
from snugtune.train.retreats import evaluation_retreats, retreats
from snugtune.train.spending import Spending, agree, card_energy
from snugtune.train.track import Tracker, tracking
from snugtune.train.trial import frozen_pass_s, training_passes
from snugtune.units import GIB

ROWS_TO_CHECK = 16
"""Held-out rows on which the saved model must repeat the trained one's logits."""

FOLDER_OVERHEAD_BYTES = 64 * 2**20
"""Room for the tokenizer (up to 17 MB), the baseline (up to 50 MB) and the records."""

Logits = dict[str, NDArray[np.float32]]
AnyDecision = Decision | LabelSetDecision


def fit(
    config: FitConfig,
    out: str | Path,
    *,
    overwrite: bool = False,
    observer: Observer | None = None,
    recovery: Recovery | None = None,
) -> Path:
    """Train a classifier as ``config`` says and write the run folder ``out``; returns its path.

    Nothing appears at ``out`` before the run is complete, and a run that was there stays until then. With a
    ``recovery``, training states are committed to its folder and gone on from (see ``supervise.py``).

    Raises:
        UserInputError: the data, a setting or the folder cannot be used.
        TrainingError: the loss is not finite.
        ArtifactError: the saved model does not repeat the trained one's logits in a new process.
        RestartNeededError: memory ran out and this process cannot go on.
        RunInterruptedError: Ctrl-C before anything was learned.
    """
    observer = observer or Observer()
    with (
        staged_folder(out, overwrite=overwrite, marker="run.json") as folder,
        _tracking(config, folder, Path(out).name, recovery, observer) as tracker,
    ):
        energy = EnergyMeter(processor_counters())
        clock = PhaseClock(Together(observer, Journal(folder), tracker, energy))
        data = load_data(config, clock)
        resident_bytes_before = resident_bytes()
        job = _prepare(config, data, clock, recovery)
        energy.add(card_energy(job.device))
        reading = _read_texts(job)
        tokens = reading.tokens
        plan = _plan(job, tokens["train"])
        guard = _guard(job, plan, recovery)
        _place(job, plan)
        spending = _agree(job, plan, tokens, guard, recovery)
        trainee = _trainee(job, plan, reading, guard)
        _draw_levers(guard, recovery)
        _forecast(job, spending, trainee)
        check_free_space(folder, _folder_bytes(trainee.parameters))
        with PeakMeter(job.device) as memory, _prefix(job, trainee, tokens, folder) as prefix:
            checkpoints = _checkpoints(job, tokens, trainee, recovery)
            services = Services(clock, guard, memory, checkpoints, spending.budget, prefix)
            result = _train(job, plan, trainee, tokens, services)
        # On a CPU the process's own memory, with its libraries and data, is part of what is measured.
        beside = 0 if job.on_card else resident_bytes_before
        peaks = Peaks(
            beside + round(plan.predicted_peak_gib * GIB), memory.peak_bytes,
            beside + round(plan.capacity_gib * GIB),
        )  # fmt: skip
        _remember(job, plan, guard, peaks.measured_bytes - beside, result, spending)
        final = _on_published_weights(job, trainee.model, guard)
        logits = _held_out_logits(job, final, tokens, guard)
        audit = _audit(job, tokens, trainee.frozen, folder)
        baselines = _fit_baselines(job)
        # Where a text may have several labels, each of these three has a counterpart for label sets.
        decided = _decide(job, logits["validation"], baselines.chosen_with, trainee.balanced)
        decision = decided.model.decision
        scores = _score(job, tokens, logits, baselines, decided)
        judged = _judge(job, decided, scores)
        saved = _save(job, final, baselines.final, decision, folder)
        checked = _stock_logits(job, final, logits["validation"])
        reload = _check_saved(job, saved, checked, trainee.parameters, peft=is_peft(final))
        result.note(guard.new_events())
        cost = _bill(job, spending, result, peaks, energy, scores)
        record = _write(
            job, reading, trainee, result, recovery, peaks, decision, scores, judged, saved, reload, cost,
            audit, folder,
        )  # fmt: skip
        tracker.log_result(record)
    return Path(out)


@dataclass(frozen=True)
class Job:
    """What every step needs: settings, data, the loaded model, where numbers are computed, the clock."""

    config: FitConfig
    data: Data
    backbone: Backbone
    device: torch.device
    dtype: torch.dtype
    clock: PhaseClock
    load_s: float

    @property
    def on_card(self) -> bool:
        """Whether a GPU computes."""
        return self.device.type == "cuda"

    @property
    def pad_token_id(self) -> int:
        """Of the tokenizer."""
        return int(self.backbone.tokenizer.pad_token_id)


@dataclass(frozen=True)
class Trainee:
    """The model to train, the names of its head's modules, what is trained of it, and from where.

    ``balanced`` says how rare classes are favoured, ``frozen`` what the frozen model said of training and
    validation texts, if the probe asked it.
    """

    model: torch.nn.Module
    head_names: tuple[str, ...]
    parameters: ParameterReport
    begin_from: dict[str, torch.Tensor]
    balanced: Balanced
    frozen: FrozenPass | None


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
class Peaks:
    """Peak memory of training, before and after, and what there was for it when it was planned."""

    predicted_bytes: int
    measured_bytes: int
    limit_bytes: int


@dataclass(frozen=True)
class Reload:
    """What the check in a new process found: the largest difference of a logit, and without quantisation."""

    largest_logit_difference: float
    without_quantization: FullPrecision | None


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


def _tracking(
    config: FitConfig, folder: Path, name: str, recovery: Recovery | None, observer: Observer
) -> AbstractContextManager[Tracker]:
    on_cpu = recovery is not None and recovery.caution >= ON_CPU
    settings = config.model_dump(mode="json")
    return tracking(config.track, folder, name, settings, on_cpu=on_cpu, say=observer.say)


def _prepare(config: FitConfig, data: Data, clock: PhaseClock, recovery: Recovery | None) -> Job:
    on_cpu = recovery is not None and recovery.caution >= ON_CPU
    # Whatever loading draws at random, it draws by the run's seed.
    torch.manual_seed(config.seed)
    prefer_expandable_segments()
    bound_primitive_caches()
    device = torch.device("cpu") if on_cpu else pick_device()
    dtype = compute_dtype(config.model_copy(update={"fp16": False}) if on_cpu else config, device)
    started = clock.elapsed_s
    backbone = load_for_fit(config, data.labels, dtype=dtype, dropout=config.hidden_dropout, device=device)
    return Job(config, data, backbone, device, dtype, clock, clock.elapsed_s - started)


def _read_texts(job: Job) -> Reading:
    """Texts in tokens; long ones as the user says, or as validation rows say of a probe."""
    encoder, parts = Encoder(job.backbone.tokenizer, job.backbone.max_length), job.data.parts
    if job.config.long_texts != "auto":
        reading = read_as_asked(parts, encoder, job.config.long_texts)
    else:
        head = find_head(job.backbone.model, job.config.modules_to_save)
        reading = read_by_evidence(parts, encoder, job.data.labels.names, head, _row_reader(job, head))
    job.clock.say(reading.sentence())
    return reading


def _row_reader(job: Job, head: Head) -> RowReader:
    """A pass of the backbone as it is published, before there is a plan; after it, it is on the CPU."""

    def read_rows(tokens: Tokens) -> NDArray[np.float32]:
        guard = Guard(device_memory(job.device), say=job.clock.say)
        job.backbone.model.to(job.device)
        found = _frozen_pass(job, head, [tokens], guard)
        if not job.config.load_in_4bit:
            # The plan counts the memory that is free.
            job.backbone.model.to("cpu")
            guard.memory.free()
        return np.asarray(found.features, dtype=np.float32)

    return read_rows


def _plan(job: Job, tokens: Tokens) -> Plan:
    """How the steps are cut, and with which levers, so that training fits; none changes the result."""
    # The folder that was loaded may have a layer more than the name stands for.
    config = job.config.model_copy(update={"model": job.backbone.source})
    plan = plan_run(config, len(job.data.labels.names), tokens.lengths)
    job.clock.say(
        f"Plan: {plan.predicted_peak_gib:.2f} GiB of {plan.capacity_gib:.1f} GiB free, "
        f"{plan.tokens_per_micro_batch:,} tokens in a micro-batch"
        + (f", {', '.join(plan.levers)}" if plan.levers else "")
        + f" ({plan.basis})."
    )
    if not plan.fits:
        job.clock.say(f"Warning: {plan.why}")
    return plan


def _place(job: Job, plan: Plan) -> None:
    """The model on its device."""
    if plan.setup.embedding_on_host:
        embedding_to_host(job.backbone.model)
    job.backbone.model.to(job.device)


def _agree(
    job: Job, plan: Plan, tokens: dict[str, Tokens], guard: Guard, recovery: Recovery | None
) -> Spending:
    """The quote, by a short pass over some of the texts, and the budget if one is set."""
    pass_s = frozen_pass_s(
        job.backbone.model, tokens["train"], pad_token_id=job.pad_token_id, device=job.device,
        dtype=job.dtype, guard=guard, seed=job.config.seed,
    )  # fmt: skip
    passes = training_passes(job.config.method, checkpointed=plan.setup.activation_checkpointing > 0)
    work = Work(
        train_rows=len(tokens["train"]), validation_rows=len(tokens["validation"]),
        test_rows=len(tokens["test"]), words=sum(len(text.split()) for text in job.data.parts["train"].texts),
        classes=len(job.data.labels.names), epochs=job.config.num_train_epochs,
        train_s=passes * pass_s * job.config.num_train_epochs
        * time_share(job.config, job.backbone.model, job.device),
        load_s=job.load_s, probe=job.config.probe_start, forward_share=1 / passes, measured=True,
        audit=job.config.audit,
    )  # fmt: skip
    clock, earlier_s = job.clock, recovery.spent_s if recovery else 0.0
    return agree(
        job.config, plan, work, tokens["train"].lengths, half_precision=job.dtype != torch.float32,
        elapsed=lambda: clock.elapsed_s, earlier_s=earlier_s, say=clock.say,
    )  # fmt: skip


def _guard(job: Job, plan: Plan, recovery: Recovery | None) -> Guard:
    """What keeps the run going when memory runs out after all; its limits start from the plan."""
    chunk = plan.tokens_per_micro_batch if plan.setup.chunked_evaluation else INFERENCE_TOKENS
    guard = Guard(
        device_memory(job.device),
        training=Limit(plan.tokens_per_micro_batch),
        evaluation=Limit(min(chunk, INFERENCE_TOKENS)),
        say=job.clock.say,
    )
    if recovery is not None and recovery.caution >= HALF_BATCHES:
        for limit in (guard.training, guard.evaluation):
            limit.lower(limit.tokens // 2)
    return guard


def _trainee(job: Job, plan: Plan, reading: Reading, guard: Guard) -> Trainee:
    """The model on its device, head started from the probe, adapter attached, the plan's levers set."""
    model = job.backbone.model
    head = find_head(model, job.config.modules_to_save)
    judged = [reading.tokens[name] for name in ("train", "validation")]
    frozen = _frozen_pass(job, head, judged, guard) if job.config.probe_start else None
    balanced = _balanced(job, head, judged, frozen)
    begin_from = write_start(model, head, *balanced.probes) if balanced.probes else {}
    torch.manual_seed(job.config.seed)
    trained = wrap(model, job.config)
    checkpoint_layers(trained, plan.setup.activation_checkpointing)
    guard.retreats = retreats(trained, plan.setup.activation_checkpointing)
    parameters = count_parameters(trained)
    job.clock.say(
        f"Training {parameters.trainable:,} of {parameters.all:,} parameters ({parameters.percent:.2f} %)."
    )
    return Trainee(
        trained, head.modules_to_save, parameters, on_trained(trained, begin_from), balanced,
        _of_texts(frozen, judged),
    )  # fmt: skip


def _balanced(job: Job, head: Head, judged: list[Tokens], frozen: FrozenPass | None) -> Balanced:
    """How rare classes are favoured, with the probe the head starts from if there is a frozen pass."""
    if frozen is None:
        return balance_without_probe(job.config.imbalance, _class_rows(job))
    train, validation = np.split(np.asarray(frozen.features, dtype=np.float32), [judged[0].rows])
    held_out = HeldOut(validation, job.data.parts["validation"].y, judged[1])
    balanced = balance_with_probe(
        job.config.imbalance, train, judged[0], job.data.parts["train"].y, head, held_out,
        label_names=job.data.labels.names, metric=job.config.metric,
    )  # fmt: skip
    if sentence := balanced.sentence():
        job.clock.say(sentence)
    return balanced


def _of_texts(frozen: FrozenPass | None, judged: list[Tokens]) -> FrozenPass | None:
    """What the frozen model said of the rows, averaged over each text's."""
    if frozen is None:
        return None
    of_rows = np.split(frozen.features, [judged[0].rows])
    of_texts = [tokens.pooled(rows) for tokens, rows in zip(judged, of_rows, strict=True)]
    # In half precision they wait for the audit while the model trains.
    return replace(frozen, features=np.concatenate(of_texts).astype(np.float16))


def _frozen_pass(job: Job, head: Head, parts: list[Tokens], guard: Guard) -> FrozenPass:
    """What the frozen model says of the rows of some parts, one after another: read, or remembered."""
    job.clock.phase("probe", sum(tokens.rows for tokens in parts))
    found = frozen_pass(
        job.backbone.model, head, parts, pad_token_id=job.pad_token_id, device=job.device, dtype=job.dtype,
        on_rows=job.clock.advance, guard=guard,
    )  # fmt: skip
    if found.rows_from_cache:
        job.clock.say(found.sentence())
    return found


def _forecast(job: Job, spending: Spending, trainee: Trainee) -> None:
    """How long training takes, now that the frozen model was seen reading."""
    if trainee.frozen is not None:
        share = time_share(job.config, trainee.model, job.device)
        if told := spending.forecast_by_pass(trainee.frozen.tokens_per_s, share):
            job.clock.say(told)


def _draw_levers(guard: Guard, recovery: Recovery | None) -> None:
    """After restarts that did not help, everything that keeps the result is given way with at once."""
    if recovery is not None and recovery.caution >= ALL_LEVERS:
        for retreat in guard.retreats:
            retreat.draw()
        guard.retreats = []


def _checkpoints(
    job: Job, tokens: dict[str, Tokens], trainee: Trainee, recovery: Recovery | None
) -> Checkpoints | None:
    """Where training states are committed, under a fingerprint of all that they depend on."""
    if recovery is None:
        return None
    digest = hashlib.sha256()
    for name in ("train", "validation"):
        for row in tokens[name].ids:
            digest.update(row.tobytes())
        digest.update(job.data.parts[name].y.tobytes())
    # States outlive this command: another version might not go on as this one would have.
    versions = {name: version(name) for name in ("snugtune", "torch", "transformers", "peft")}
    settings = {
        "config": job.config.model_dump(mode="json", exclude=set(WITHOUT_EFFECT_ON_WEIGHTS)),
        "data": digest.hexdigest(), "imbalance": trainee.balanced.balance.method, "versions": versions,
    }  # fmt: skip
    return Checkpoints(recovery.states, fingerprint=fingerprint_of(settings))


def _folder_bytes(parameters: ParameterReport) -> int:
    """What the run folder will take: trained tensors in float32, tokenizer, baseline, records."""
    return 4 * parameters.trainable + FOLDER_OVERHEAD_BYTES


def _prefix(
    job: Job, trainee: Trainee, tokens: dict[str, Tokens], folder: Path
) -> AbstractContextManager[Prefix | None]:
    """Layers below every adapter compute each training and validation text once; what they give waits."""
    lengths = np.concatenate([tokens[name].lengths for name in ("train", "validation")])
    return kept_prefix(trainee.model, job.config, lengths, job.device, folder)


def _train(
    job: Job, plan: Plan, trainee: Trainee, tokens: dict[str, Tokens], services: Services
) -> TrainResult:
    job.clock.phase("train")
    part, validation = job.data.parts["train"], job.data.parts["validation"]
    result = train(
        trainee.model,
        Examples(tokens["train"], part.y, part.rows + job.data.first_row),
        Examples(tokens["validation"], validation.y),
        job.config.model_copy(update={"tokens_per_micro_batch": plan.tokens_per_micro_batch}),
        head_names=trainee.head_names,
        pad_token_id=job.pad_token_id,
        dtype=job.dtype,
        device=job.device,
        begin_from=trainee.begin_from,
        balance=trainee.balanced.balance,
        services=services,
        packed=job.on_card and plan.setup.attention == "packed",
    )
    if result.best_step == 0 and result.interrupted and not job.config.probe_start:
        raise RunInterruptedError("Interrupted before anything was learned; nothing was written.")
    return result


def _remember(
    job: Job, plan: Plan, guard: Guard, measured_bytes: int, result: TrainResult, spending: Spending
) -> None:
    """What training really took corrects the plans of later runs, unless it did not go by this plan."""
    undisturbed = result.steps > 0 and not any("event" in row for row in result.memory)
    # After a restart micro-batches may be smaller than planned, or the device another.
    by_plan = guard.training.tokens == guard.training.planned and plan.setup.device == job.device.type
    if undisturbed and by_plan:
        record_run(plan, measured_bytes)
        spending.remember(result)


def _on_published_weights(job: Job, model: torch.nn.Module, guard: Guard) -> torch.nn.Module:
    """The trained tensors on the backbone's published weights: exactly what a user of the folder loads.

    Those weights are in 4 bits where the adapter was trained on such; all else is in float32.
    """
    state = trainable_state(model)
    # Both at once may not fit.
    model.to("cpu")
    guard.memory.free()
    fresh = load_for_fit(job.config, job.data.labels, device=job.device)
    final = wrap(fresh.model, job.config)
    load_trainable_state(final, state)
    final.config._name_or_path = job.backbone.source  # type: ignore[union-attr]
    guard.retreats = evaluation_retreats(final)
    return final.to(job.device).eval()


def _held_out_logits(job: Job, model: torch.nn.Module, tokens: dict[str, Tokens], guard: Guard) -> Logits:
    parts = [name for name in ("validation", "test") if len(tokens[name])]
    job.clock.phase("evaluate", sum(tokens[name].rows for name in parts))
    return {
        name: predict_logits(
            model, tokens[name], pad_token_id=job.pad_token_id, device=job.device,
            on_rows=job.clock.advance, max_examples=job.config.per_device_eval_batch_size, guard=guard,
        )
        for name in parts
    }  # fmt: skip


def _audit(
    job: Job, tokens: dict[str, Tokens], frozen: FrozenPass | None, folder: Path
) -> dict[str, Any] | None:
    """The data themselves: what they hold, labels that look wrong, what more rows would bring.

    Labels of test rows are not looked at.
    """
    if not job.config.audit:
        return None
    table, parts = job.data.table, job.data.parts
    of_table = [tokens[name] for name in parts if name != "test" or job.config.test is None]
    judged = np.concatenate([parts[name].rows for name in ("train", "validation")])
    return examine(
        table, Lengths.of_parts(of_table), np.searchsorted(table.rows, judged),
        None if frozen is None else frozen.features,
        leaked_rows=job.data.overlap, seed=job.config.seed, folder=folder, observer=job.clock,
        texts=job.config.report_texts,
    )  # fmt: skip


def _fit_baselines(job: Job) -> Baselines:
    job.clock.phase("baseline")
    part, validation = job.data.parts["train"], job.data.parts["validation"]
    K = len(job.data.labels.names)
    chosen_with = TfidfBaseline().fit(part.texts, part.y, K)
    if not job.config.is_multi_label:
        chosen_with.calibrate(validation.texts, validation.y)
    final = TfidfBaseline().fit([*part.texts, *validation.texts], np.r_[part.y, validation.y], K)
    final.temperature = chosen_with.temperature
    return Baselines(chosen_with, final)


def _decide(
    job: Job, logits: NDArray[np.float32], baseline: TfidfBaseline, balanced: Balanced
) -> BothDecided:
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


def _class_rows(job: Job) -> NDArray[np.int64]:
    """Training rows of each class, (K,)."""
    y = job.data.parts["train"].y
    return y.sum(axis=0) if y.ndim == 2 else np.bincount(y, minlength=len(job.data.labels.names))


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
            job.data.labels.names, _class_rows(job),
        )  # fmt: skip
        scores.sets[name] = found
        scores.metrics[name], scores.baseline_metrics[name] = found.metrics, found.baseline_metrics
        if found.alarm:
            job.clock.say(f"Alarm on {name}: {found.alarm}")
    return scores


def _score(
    job: Job, tokens: dict[str, Tokens], logits: Logits, baselines: Baselines, decided: BothDecided
) -> Scores:
    decision = decided.model.decision
    if isinstance(decision, LabelSetDecision):
        return _score_sets(job, tokens, logits, baselines, decided)
    scores = Scores({}, {}, {}, {}, {})
    names, class_rows = job.data.labels.names, _class_rows(job)
    for name, values in logits.items():
        part = job.data.parts[name]
        baseline = baselines.chosen_with if name == "validation" else baselines.final
        baseline_scores = baseline.decision(part.texts)
        probabilities = decision.probabilities(values, baseline_scores)
        scores.probabilities[name], scores.baseline_scores[name] = probabilities, baseline_scores
        rows = Rows(part.y, part.rows, tokens[name].text_lengths)
        scores.metrics[name] = part_metrics(rows, softmax(values), probabilities, names, class_rows)
        scores.baseline_metrics[name] = classification_metrics(
            part.y, baseline.calibrated(baseline_scores), names
        )
        _score_levels(job, scores, name)
        if alarm := single_class_alarm(probabilities.argmax(1), len(names)):
            scores.alarms[name] = alarm
            job.clock.say(f"Alarm on {name}: {alarm}")
    return scores


def _score_levels(job: Job, scores: Scores, name: str) -> None:
    """What the predicted labels of a part say of the levels above them, if the user names some."""
    if not job.config.label_levels:
        return
    part, levels = job.data.parts[name], _levels(job)
    for metrics, values in (
        (scores.metrics, scores.probabilities[name]), (scores.baseline_metrics, scores.baseline_scores[name])
    ):  # fmt: skip
        metrics[name]["levels"] = all_level_scores(levels, part.y, values.argmax(1), part.levels)


def _levels(job: Job) -> list[Level]:
    train = job.data.parts["train"]
    return levels_of(train.y, train.levels, len(job.data.labels.names))


def _judge(job: Job, decided: BothDecided, scores: Scores) -> Judged:
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
        compared, found, scores.metrics[part], _class_rows(job), part=part, alarm=scores.alarms.get(part)
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
    found, told = judge_sets(model, baseline, scores.sets, _class_rows(job))
    held_out = model.held_out
    given = [name for labels in job.data.labels.decode_sets(held_out.labels) for name in labels]
    seen = reference(parts["train"].texts, parts["validation"].texts, held_out.confidence, given)
    job.clock.say(found["sentence"])
    return Judged(found, told, seen)


def _save(
    job: Job, model: torch.nn.Module, baseline: TfidfBaseline, decision: AnyDecision, folder: Path
) -> Path:
    job.clock.phase("save")
    saved = folder / ("adapter" if is_peft(model) else "model")
    save_model(model.to("cpu"), job.backbone.tokenizer, saved, job.backbone.max_length)
    if decision.uses_baseline:
        baseline.save(folder / "baseline")
    return saved


def _stock_logits(job: Job, model: torch.nn.Module, logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of the first validation rows, what stock classes must repeat: they cut long texts off."""
    if job.config.long_texts == "truncate":
        return logits[:ROWS_TO_CHECK]
    texts = job.data.parts["validation"].texts[:ROWS_TO_CHECK]
    cut = tokenize(texts, job.backbone.tokenizer, job.backbone.max_length)
    device = next(model.parameters()).device
    return predict_logits(model, cut, pad_token_id=job.pad_token_id, device=device)


def _check_saved(
    job: Job, folder: Path, logits: NDArray[np.float32], parameters: ParameterReport, *, peft: bool
) -> Reload:
    """The folder loaded in a new process, as it was measured and, if that was in 4 bits, on full weights."""
    texts = job.data.parts["validation"].texts[:ROWS_TO_CHECK]
    names, max_length = job.data.labels.names, job.backbone.max_length
    saved = Saved(folder, texts, logits, names, max_length, peft)
    return Reload(check_reloads([saved])[0], compare_full_precision(saved, parameters.all))


def _bill(
    job: Job, spending: Spending, result: TrainResult, peaks: Peaks, energy: EnergyMeter, scores: Scores
) -> dict[str, Any]:
    return spending.bill(
        job.clock.seconds, result, peak_bytes=peaks.measured_bytes, energy=energy.used(),
        baseline_score=scores.baseline_metrics["validation"][job.config.metric],
    )  # fmt: skip


def _write(
    job: Job,
    reading: Reading,
    trainee: Trainee,
    result: TrainResult,
    recovery: Recovery | None,
    peaks: Peaks,
    decision: AnyDecision,
    scores: Scores,
    judged: Judged,
    saved: Path,
    reload: Reload,
    cost: dict[str, Any],
    audit: dict[str, Any] | None,
    folder: Path,
) -> dict[str, Any]:
    write_config(job.config, folder / "config.yaml")
    write_lines(result.metrics, folder / "metrics.jsonl")
    write_lines(result.memory, folder / "memory.jsonl")
    write_predictions(
        job.data, scores.told(job.data.labels), folder / "predictions.parquet",
        texts=job.config.report_texts,
    )  # fmt: skip
    facts = RunFacts(
        config=job.config, data=job.data, truncation=reading.tokens["train"].truncation,
        long_texts=reading.as_dict(), imbalance=trainee.balanced.as_dict(),
        parameters=trainee.parameters, model_folder=saved.name, max_length=job.backbone.max_length,
        device=job.device, dtype=job.dtype, result=result, predicted_peak_bytes=peaks.predicted_bytes,
        measured_peak_bytes=peaks.measured_bytes, memory_limit_bytes=peaks.limit_bytes,
        restarts=recovery.history if recovery else (),
        decision=decision, levels=_levels(job), metrics=scores.metrics,
        baseline_metrics=scores.baseline_metrics,
        rows_checked=min(ROWS_TO_CHECK, len(job.data.parts["validation"])),
        largest_logit_difference=reload.largest_logit_difference,
        without_quantization=reload.without_quantization, seconds=job.clock.seconds(), cost=cost,
        frozen_pass=None if trainee.frozen is None else trainee.frozen.as_dict(), audit=audit,
        automation=judged.automation, verdict=judged.verdict,
    )  # fmt: skip
    write_json(folder / "reference.json", judged.reference)
    record = write_record(facts, folder / "run.json")
    write_card(record, folder / "README.md")
    _report(job, folder)
    return record


def _report(job: Job, folder: Path) -> None:
    """The page for people, of the files in the folder; one that cannot be drawn costs nobody the run."""
    try:
        write_report(folder, texts=job.config.report_texts)
    except Exception as error:
        job.clock.say(f"The report could not be written ({error}); snugtune report tries it again.")
