"""READ FIRST. The whole job, top to bottom: a table in, a model to trust out."""

from __future__ import annotations

from pathlib import Path

from snugtune.config import FitConfig
from snugtune.cost.meter import EnergyMeter, processor_counters
from snugtune.data.dataset import load_data
from snugtune.memory.meter import resident_bytes
from snugtune.progress import Observer, PhaseClock, Together
from snugtune.stages.agreeing import agree_on
from snugtune.stages.job import prepare, run_folder, tracked
from snugtune.stages.judging import (
    audit_data,
    choose_decision,
    fit_baselines,
    held_out_logits,
    judge,
    score,
)
from snugtune.stages.keeping import Finished, bill, check_saved, save, write
from snugtune.stages.reading import read_texts
from snugtune.stages.resuming import open_states
from snugtune.stages.training import in_one_piece, make_trainee, on_published_weights, train_within
from snugtune.train.group import ALONE, Group
from snugtune.train.journal import Journal
from snugtune.train.recovery import Recovery
from snugtune.train.spending import card_energy


def fit(
    config: FitConfig,
    out: str | Path,
    *,
    overwrite: bool = False,
    observer: Observer | None = None,
    recovery: Recovery | None = None,
    group: Group = ALONE,
) -> Path:
    """Train a classifier as ``config`` says and write the run folder ``out``; returns its path.

    Nothing appears at ``out`` before the run is complete, and a run that was there stays until then. With a
    ``recovery``, training states are committed to its folder and gone on from (see ``supervise.py``). In a
    ``group`` of processes every one makes this call; the first one writes, and the others are done when the
    held-out rows are scored.

    Raises:
        UserInputError: the data, a setting or the folder cannot be used.
        TrainingError: the loss is not finite and nothing was learned.
        ArtifactError: the saved model does not repeat the trained one's logits in a new process.
        RestartNeededError: memory ran out and this process cannot go on.
        RunInterruptedError: Ctrl-C before anything was learned.
    """
    observer = observer or Observer()
    with (
        run_folder(out, group, overwrite=overwrite) as folder,
        tracked(config, folder, Path(out).name, recovery, observer, group) as tracker,
    ):
        energy = EnergyMeter(processor_counters())
        clock = PhaseClock(Together(observer, Journal(folder), tracker, energy))
        data = load_data(config, clock)
        resident_bytes_before = resident_bytes()
        job = prepare(config, data, clock, recovery, group)
        energy.add(card_energy(job.device))
        reading = read_texts(job)
        recovery, checkpoints = open_states(job, reading.tokens, recovery, energy)
        agreed = agree_on(job, reading.tokens, recovery)
        trainee = make_trainee(job, agreed, reading, recovery)
        trained = train_within(
            job, agreed, trainee, reading.tokens, folder,
            checkpoints=checkpoints, resident_bytes_before=resident_bytes_before,
        )  # fmt: skip
        model = on_published_weights(job, trainee.model, agreed)
        logits = held_out_logits(job, model, reading.tokens, agreed.guard)
        model = in_one_piece(job, model)
        if not group.is_first:
            return Path(out)
        audit = audit_data(job, reading.tokens, trainee.frozen, folder)
        baselines = fit_baselines(job)
        decided = choose_decision(job, logits["validation"], baselines.chosen_with, trainee.balanced)
        decision = decided.model.decision
        scores = score(job, reading.tokens, logits, baselines, decided)
        judged = judge(job, decided, scores)
        saved = save(job, model, baselines.final, decision, folder)
        reload = check_saved(job, model, saved, logits["validation"], trainee.parameters)
        trained.result.note(agreed.guard.new_events())
        cost = bill(job, agreed.spending, trained, energy, scores)
        done = Finished(
            reading, trainee, trained, decision, scores, judged, saved, reload, cost, audit, recovery
        )
        tracker.log_result(write(job, done, folder))
    return Path(out)
