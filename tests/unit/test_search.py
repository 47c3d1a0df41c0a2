"""The search without training: spaces, the shared study, budget, pruning, and a fit that is made up."""

import inspect
import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import optuna
import polars as pl
import pytest

from snugtune.cli.options import SHORTHANDS
from snugtune.cli.search import NOT_SETTINGS
from snugtune.cli.search import search as command
from snugtune.config import FitConfig, make_config
from snugtune.cost.budget import Allowance
from snugtune.errors import ConfigError, TrainingError, UserInputError
from snugtune.methods import METHODS
from snugtune.progress import Observer, QuoteInfo, ResumedInfo, StepInfo, TrainedInfo, ValidationInfo
from snugtune.scale import search as searching
from snugtune.scale import study as shared
from snugtune.scale.forecast import Forecast, Room, Taken, forecast
from snugtune.scale.page import search_html
from snugtune.scale.record import pareto
from snugtune.scale.search import make_plan, search
from snugtune.scale.space import ALL, EPOCHS, LAYERS, UPPER, Facts, make_space
from snugtune.scale.study import busy_s, completed, counted, epochs_cap, open_study, suggest
from snugtune.scale.trial import EnoughError, Watch
from snugtune.train.optim import learning_rates
from snugtune.train.recovery import states_folder
from tiny import texts_and_labels, write_model

MATCHING = ("learning_rate", "head_learning_rate", "effective_batch_size")
"""Settings that a fit leaves open and a trial writes out."""


def facts(**given):
    rates = {
        method: learning_rates(make_config({"train": "", "method": method, **given})) for method in METHODS
    }
    return Facts(4, ("dense", "key"), 128, rates)


def space_of(*methods, **given):
    return make_space({"train": "t.csv", **given}, methods, facts())


def always(method, epochs):
    return True


# The space


@pytest.mark.parametrize("method", METHODS)
def test_the_defaults_of_a_space_are_the_settings_of_a_fit(method):
    space = space_of(method)
    defaults = {name: one.default for name, one in space.dimensions[method].items()}
    tried = space.config(method, defaults)
    fit = make_config({"train": "t.csv", "method": method})
    assert learning_rates(tried) == pytest.approx(learning_rates(fit))
    assert tried.step_examples == fit.step_examples
    left = dict.fromkeys(MATCHING)
    assert tried.model_copy(update=left) == fit.model_copy(update=left)


@pytest.mark.parametrize("method", METHODS)
def test_every_point_of_a_space_is_a_valid_fit_that_differs_in_what_is_varied_only(method):
    space = space_of(method)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    fit = make_config({"train": "t.csv", "method": method})
    seen = set()
    for _ in range(40):
        chosen, values = suggest(study.ask(), space, 8, always)
        config = space.config(chosen, values)
        seen |= {name for name in FitConfig.model_fields if getattr(config, name) != getattr(fit, name)}
        assert values.keys() == space.dimensions[method].keys()
    assert seen - {"lora_alpha", "layers_to_transform", "init_r"} <= set(space.dimensions[method])
    assert len(seen) > 4


def test_what_the_user_gives_is_not_varied():
    space = space_of("lora", r=8, learning_rate=1e-3, per_device_train_batch_size=4, num_train_epochs=2.5)
    names = space.dimensions["lora"]
    assert not {"r", "learning_rate", "effective_batch_size", EPOCHS} & names.keys()
    # A fit of rank 8 has alpha 32, so four times the rank is the default here.
    assert names["lora_alpha / r"].default == 4
    config = space.config("lora", {"lora_alpha / r": 4, "weight_decay": 0.1})
    assert (config.r, config.lora_alpha, config.num_train_epochs) == (8, 32, 2.5)


def test_layers_go_with_all_linear_modules_and_not_with_a_pattern_of_the_user():
    space = space_of("lora")
    config = space.config("lora", {LAYERS: UPPER, "target_modules": "all-linear"})
    assert config.layers_to_transform == (2, 3)
    assert config.target_modules == ("dense", "key")
    assert space.config("lora", {LAYERS: ALL, "target_modules": "all-linear"}).target_modules == "all-linear"
    assert LAYERS not in space_of("lora", target_modules="all-linear").dimensions["lora"]


def test_settings_of_one_method_hold_for_it_alone():
    space = space_of("lora", "full", r=8)
    assert space.config("lora", {}).r == 8
    assert space.config("full", {}).method == "full"
    assert space.default("full")["full: learning_rate"] == pytest.approx(5e-5)
    with pytest.raises(ConfigError, match="target_r has no effect with lora or full"):
        space_of("lora", "full", target_r=4)


def test_short_trials_come_first():
    space = space_of("lora")
    caps = [epochs_cap(space, begun, 12) for begun in range(12)]
    assert caps == [2] * 4 + [4] * 4 + [8] * 4
    assert epochs_cap(space_of("lora", num_train_epochs=3), 5, 12) == 0


def test_the_command_offers_every_setting_of_a_fit():
    offered = set(inspect.signature(command).parameters) - NOT_SETTINGS - SHORTHANDS - {"context"}
    assert offered == set(FitConfig.model_fields)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"method": "lora,laura"}, "laura"),
        ({"method": "ia3", "r": 4}, "r has no effect"),
        ({"learning_rate": -1}, "learning_rate=-1"),
        ({"no_such": 1}, "no_such"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_anything_is_read(given, says, tmp_path):
    with pytest.raises(UserInputError, match=says):
        make_plan({"train": "nowhere.csv", **given}, tmp_path / "s", trials=3)
    with pytest.raises(UserInputError, match="--trials must be at least 1"):
        make_plan({"train": "nowhere.csv"}, tmp_path / "s", trials=0)


# Time and money


def test_a_forecast_rests_on_the_quote_and_then_on_trials():
    quoted = {"around_s": 5.0, "epoch_s": 20.0, "after_s": 7.0}
    first = forecast([], quoted, "lora")
    assert first.trial_s("lora", 3) == pytest.approx(5 + 60)
    # Full fine-tuning makes gradients of all weights: three passes for two.
    assert first.trial_s("full", 3) == pytest.approx(5 + 90)
    later = forecast([Taken("lora", 2.0, 30.0, 3.0), Taken("full", 2.0, 45.0, 3.0)], quoted, "lora")
    assert later.trial_s("lora", 3) == pytest.approx(2 + 30)
    assert later.finish_s == 7.0


def test_no_trial_begins_that_would_not_end_in_time():
    room = Room(Allowance(100.0, "100 s"), 30.0, Forecast(5.0, 10.0, 20.0))
    assert room.left_s == pytest.approx(50)
    assert room.fits("lora", 4)
    assert not room.fits("lora", 5)
    assert Room(None, 1e9, room.forecast).fits("lora", 100)


def test_a_trial_gets_as_many_epochs_as_there_is_room_for():
    space, study = space_of("lora"), optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=2))
    drawn = [suggest(study.ask(), space, 8, lambda _, epochs: epochs <= 3)[1][EPOCHS] for _ in range(30)]
    assert set(drawn) == {1, 2, 3}
    assert suggest(study.ask(), space, 8, lambda *_: False) is None
    fixed = space_of("lora", num_train_epochs=4)
    assert suggest(study.ask(), fixed, 0, lambda _, epochs: epochs <= 3) is None


class Ended:
    def __init__(self, state="COMPLETE", **notes):
        self.state, self.user_attrs = type("State", (), {"name": state}), notes


def test_trials_that_ran_at_once_are_paid_for_once():
    trials = [
        Ended(began=0, ended=10),
        Ended(began=5, ended=12),
        Ended(began=20, ended=30, earlier=[[14, 16]]),
        Ended("RUNNING", began=29),
        Ended("FAIL", began=100),  # died; what it took is with the one that goes on from it
    ]
    assert busy_s(trials, now=35) == 12 + 2 + 15


# Listening to a fit


def look(step, score, epoch=None, log_loss=1.0):
    return ValidationInfo(step, step if epoch is None else epoch, score, log_loss, True)


def test_a_fit_ends_when_a_look_says_so_but_not_at_the_probe():
    asked = []
    watch = Watch(4.0, lambda share, score: asked.append((share, score)) or score < 0.5)
    watch.on_validation(look(0, 0.1))
    watch.on_validation(look(1, 0.9))
    with pytest.raises(EnoughError):
        watch.on_validation(look(2, 0.4))
    assert asked == [(0.25, 0.9), (0.5, 0.4)]
    assert watch.pruned
    assert watch.best["score"] == 0.9


def test_the_score_is_the_probes_where_training_loses_but_the_sampler_hears_of_training():
    watch = Watch(2.0)
    for one in (look(0, 0.8), look(1, 0.6), look(2, 0.7)):
        watch.on_validation(one)
    assert (watch.best["score"], watch.best_trained) == (0.8, 0.7)


def test_a_fit_that_goes_on_tells_of_the_looks_before():
    watch = Watch(2.0)
    watch.on_validation(look(7, 0.7))
    lines = [{"step": 0, "epoch": 0.0, "eval_score": 0.2, "eval_loss": 2.0}, {"step": 1, "loss": 1.0}]
    watch.on_resumed(ResumedInfo(1, 2, 0.0, lines, []))
    assert watch.looks == [{"step": 0, "epoch": 0.0, "score": 0.2, "log_loss": 2.0}]


def test_looks_of_different_schedules_are_compared_at_the_same_shares():
    def entered(*looks):
        pairs = zip([None, *looks[:-1]], looks, strict=True)
        return [one for pair in pairs for one in shared.steps_between(*pair)]

    assert entered((1.0, 0.9)) == [(10, 0.9)]
    assert entered((0.05, 0.1)) == []
    halves = entered((0.5, 0.6), (1.0, 0.8))
    assert [step for step, _ in halves] == [5, 6, 7, 8, 9, 10]
    assert [score for _, score in halves] == pytest.approx([0.6, 0.64, 0.68, 0.72, 0.76, 0.8])
    thirds = entered((1 / 3, 0.3), (2 / 3, 0.6), (1.0, 0.9))
    assert thirds[0] == (3, 0.3)
    assert [step for step, _ in thirds] == list(range(3, 11))
    assert all(score == pytest.approx(step * 0.09) for step, score in thirds[1:])
    # Rounding takes no step away.
    assert [step for step, _ in entered((0.1 + 0.2, 0.5), (0.7, 0.5))] == [3, 4, 5, 6, 7]


# The study that processes share


def test_a_trial_whose_process_died_is_begun_again_with_its_state(tmp_path):
    study, space = open_study(tmp_path, seed=0), space_of("lora")
    (tmp_path / "trials").mkdir()
    first = study.begin(space, 5, always)
    states = states_folder(first.out)
    (states / "000001-step-3").mkdir(parents=True)
    first.out.with_name(f".{first.out.name}.partial").mkdir()
    first.lock.release()  # as the system does when a process is killed
    again = open_study(tmp_path, seed=0).begin(space, 5, always)
    assert again.number == 1
    assert again.values == first.values
    assert (states_folder(again.out) / "000001-step-3").is_dir()
    assert not states.exists()
    assert not first.out.with_name(f".{first.out.name}.partial").exists()
    assert counted(study.trials()) == 1
    assert [one.state.name for one in study.trials()] == ["FAIL", "RUNNING"]
    again.lock.release()


def test_a_trial_that_runs_elsewhere_is_left_alone(tmp_path):
    one, other, space = open_study(tmp_path, seed=0), open_study(tmp_path, seed=0), space_of("lora")
    (tmp_path / "trials").mkdir()
    first, second = one.begin(space, 2, always), other.begin(space, 2, always)
    assert (first.number, second.number) == (0, 1)
    assert first.values != second.values
    assert other.begin(space, 2, always) is None
    assert other.waits_for_others()
    for study, trial in ((one, first), (other, second)):
        study.end(trial, "COMPLETE", 0.5, {"score": 0.6, "log_loss": 1.0, "seconds": 1.0})
    assert not other.waits_for_others()


def test_what_kills_every_process_is_given_up(tmp_path):
    study, space = open_study(tmp_path, seed=0), space_of("lora")
    (tmp_path / "trials").mkdir()
    for _ in range(3):
        study.begin(space, 1, always).lock.release()
    assert study.begin(space, 1, always) is None
    assert counted(study.trials()) == 1


def test_half_a_line_that_a_power_cut_left_is_cut_off_and_a_damaged_journal_told_of(tmp_path):
    open_study(tmp_path, seed=0).put("identity", {"a": 1})
    journal = tmp_path / "study.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 2, "wor')
    study = open_study(tmp_path, seed=0)
    assert study.note("identity") == {"a": 1}
    study.put("more", 2)
    assert open_study(tmp_path, seed=0).note("more") == 2
    journal.write_bytes(b"no journal\n" + whole)
    with pytest.raises(UserInputError, match=r"study\.journal cannot be read"):
        open_study(tmp_path, seed=0)


def test_without_optuna_the_install_command_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserInputError, match=r"pip install 'snugtune\[search\]'"):
        search(make_plan({"train": "t.csv"}, tmp_path / "s", trials=1))
    assert not (tmp_path / "s").exists()


# The whole search, with a fit that is made up


class FakeFit:
    """Scores by its settings at once; ``ends`` says what happens in the n-th call that trains, from 0."""

    def __init__(self, score=None, ends=None, quote=None):
        self.score = score or (lambda config, epoch: 0.5 + 0.1 * math.tanh(epoch) + config.weight_decay)
        self.ends, self.calls, self.finished = ends or {}, [], []
        self.quote = quote or QuoteInfo(10.0, 8.0, 2.0, 2.0, None, None)

    def __call__(self, config, out, *, observer, trained_as=None, **_):
        states = states_folder(out)
        if trained_as is not None:
            self.finished.append((config, trained_as, states.is_dir()))
            out.mkdir(exist_ok=True)
            (out / "run.json").write_text("{}")
            return out
        observer.on_quote(self.quote)
        observer.on_validation(ValidationInfo(0, 0.0, 0.4, 2.0, True))
        call = len(self.calls)
        self.calls.append(config)
        states.mkdir(parents=True, exist_ok=True)
        if call in self.ends:
            raise self.ends[call]
        epochs = int(config.num_train_epochs)
        for epoch in range(1, epochs + 1):
            observer.on_step(StepInfo(epoch, epochs, 1.0, 1e-3, 1.0, 1.0))
            observer.on_validation(look(epoch, self.score(config, epoch)))
        observer.on_trained(TrainedInfo(epochs, epochs, 0.0))
        raise AssertionError("whoever watches wants no more")


class Notes(Observer):
    def __init__(self):
        self.said, self.done = [], 0

    def say(self, sentence):
        self.said.append(sentence)

    def advance(self, done):
        self.done += done


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny model and a table."""
    folder = tmp_path_factory.mktemp("search")
    write_model(folder / "model", layers=2)
    texts, labels = texts_and_labels(90)
    texts = [f"{text} {i % 10} {i // 10 % 10}" for i, text in enumerate(texts)]
    pl.DataFrame({"text": texts, "label": labels}).write_csv(folder / "table.csv")
    return folder


@pytest.fixture
def run(place, tmp_path):
    """Searches: ``run(fit, **settings)``; returns the record, with the sentences that were said."""

    def run(fit, *, trials=6, out="s", keep=False, overwrite=False, **settings):
        given = {"train": str(place / "table.csv"), "model": str(place / "model"), **settings}
        notes = Notes()
        plan = make_plan(given, tmp_path / out, trials=trials, keep=keep)
        folder = search(plan, fit=fit, observer=notes, overwrite=overwrite)
        record = json.loads((folder / "search.json").read_text(encoding="utf-8"))
        return record, notes

    return run


def test_a_mistake_in_the_command_leaves_nothing_and_takes_nothing(tmp_path):
    table, out = tmp_path / "t.csv", tmp_path / "s"
    table.write_text("text,label\na b,X\nc d,Y\n", encoding="utf-8")
    plan = make_plan({"train": str(table), "label": "nope"}, out, trials=1)
    with pytest.raises(UserInputError, match="no column 'nope'"):
        search(plan)
    assert not out.exists()
    out.mkdir()
    (out / shared.JOURNAL).write_text("what was searched before", encoding="utf-8")
    with pytest.raises(UserInputError, match="no column 'nope'"):
        search(plan, overwrite=True)
    assert (out / shared.JOURNAL).read_text(encoding="utf-8") == "what was searched before"


def test_a_search_begins_with_the_defaults_and_ends_with_one_finished_run(run, tmp_path):
    fit = FakeFit()
    record, notes = run(fit)
    first, best = record["trials"][0], record["trials"][record["best"]]
    assert first["default"]
    assert first["settings"][EPOCHS] == 4
    assert best["score"] == max(one["score"] for one in record["trials"])
    assert [one["state"] for one in record["trials"]].count("complete") >= 4
    assert notes.done == 6
    # The probe's call, six trials, and the winner goes on from what it has trained.
    assert len(fit.calls) == 6
    ((config, told, had_state),) = fit.finished
    assert had_state
    assert told == f"Trained as trial {best['number']} of a search."
    assert config.weight_decay == best["settings"]["weight_decay"]
    assert record["finished"] == best["number"]
    trials = tmp_path / "s" / "trials"
    assert not list(trials.glob(".*.states"))
    assert len(list(trials.glob("*.yaml"))) == 6
    assert (record["probe"]["score"], record["baseline"]["score"]) == (0.4, pytest.approx(1.0))
    assert "Trial 0 begins: the default settings." in notes.said
    assert (tmp_path / "s" / "search.html").read_text(encoding="utf-8").count("<circle") >= 6


def test_the_same_command_does_nothing_more_and_more_trials_go_on(run):
    fit = FakeFit()
    before, _ = run(fit)
    again, notes = run(fit)
    assert len(fit.calls) == 6
    assert len(fit.finished) == 1
    assert again["trials"] == before["trials"]
    assert notes.said[-1].startswith("Going on with a search of 6 trials")
    more, _ = run(fit, trials=8)
    assert len(more["trials"]) == 8
    assert more["trials"][:6] == before["trials"]


def test_an_interrupted_search_goes_on_as_if_nothing_had_happened(run):
    undisturbed, _ = run(FakeFit(), out="a", metric="f1_macro")
    with pytest.raises(KeyboardInterrupt):
        run(FakeFit(ends={3: KeyboardInterrupt()}), out="b", metric="f1_macro")
    resumed, _ = run(FakeFit(), out="b", metric="f1_macro")

    def tried(record):
        return [one["settings"] for one in record["trials"] if one["state"] != "failed"]

    assert len(tried(resumed)) == 6
    assert tried(resumed)[:4] == tried(undisturbed)[:4]
    assert counted_states(resumed) == counted_states(undisturbed)


def counted_states(record):
    states = [one["state"] for one in record["trials"]]
    return {state: states.count(state) for state in set(states)}


def test_trials_below_the_others_end_early_and_leave_nothing(run, tmp_path):
    # The later, the worse: all but the first ones fall below the median of those before.
    order = iter(range(1000))
    worse = {}

    def score(config, epoch):
        return 0.9 - 0.01 * worse.setdefault(id(config), next(order)) - 0.001 * epoch

    fit = FakeFit(score)
    record, notes = run(fit, trials=9, early_stopping_patience=9, keep=True)
    pruned = [one for one in record["trials"] if one["state"] == "pruned"]
    assert pruned
    assert all(one["number"] > 3 and one["epochs"] < one["settings"][EPOCHS] for one in pruned)
    assert any("was ended at" in sentence for sentence in notes.said)
    kept = {int(path.name[1:4]) for path in (tmp_path / "s" / "trials").glob(".*.states")}
    complete = {one["number"] for one in record["trials"] if one["state"] == "complete"}
    assert kept == complete - {record["best"]}


def test_a_trial_that_fails_is_told_of_and_the_others_go_on(run):
    record, notes = run(FakeFit(ends={2: TrainingError("The loss is not finite.")}))
    assert counted_states(record)["failed"] == 1
    assert record["trials"][2]["error"] == "The loss is not finite."
    assert any(told.startswith("Trial 2 failed: The loss is not finite.") for told in notes.said)
    with pytest.raises(UserInputError, match="No room on the disk"):
        run(FakeFit(ends={0: UserInputError("No room on the disk.")}), out="other")
    always_failing = FakeFit(ends=dict.fromkeys(range(99), TrainingError("The loss is not finite.")))
    with pytest.raises(TrainingError, match="The last one: The loss is not finite"):
        run(always_failing, out="third", trials=50)
    assert len(always_failing.calls) == searching.MOST_FAILURES


OTHERS = [{"learning_rate": 1e-3}, {"method": "ia3"}, {"validation_fraction": 0.3}]


@pytest.mark.parametrize("changed", OTHERS)
def test_another_search_is_not_gone_on_with(run, changed):
    run(FakeFit(), trials=1)
    with pytest.raises(UserInputError, match=r"was begun otherwise .*--overwrite"):
        run(FakeFit(), trials=2, **changed)
    record, _ = run(FakeFit(), trials=1, overwrite=True, **changed)
    assert len(record["trials"]) == 1


def test_data_that_changed_are_told_of(run, place, tmp_path):
    table = tmp_path / "own.csv"
    table.write_bytes((place / "table.csv").read_bytes())
    run(FakeFit(), trials=1, train=str(table))
    table.write_text(table.read_text().replace("stolen", "lost"))
    with pytest.raises(UserInputError, match="data are others"):
        run(FakeFit(), trials=2, train=str(table))


def test_a_folder_of_something_else_is_left_alone(run, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserInputError, match="holds something that is no search"):
            run(FakeFit(), overwrite=overwrite)
    assert (tmp_path / "s" / "thesis.txt").read_text() == "mine"


def test_a_budget_shortens_the_first_trial_ends_the_search_or_is_too_small(run):
    slow = QuoteInfo(1000.0, 400.0, 100.0, 50.0, None, None)
    record, notes = run(FakeFit(quote=slow), max_time_s=300, trials=1)
    assert record["trials"][0]["settings"][EPOCHS] == 2
    assert "There is room for 2 epochs of the default settings, not 4." in notes.said
    assert record["cost"]["allowed_s"] == 300
    with pytest.raises(UserInputError, match="A single epoch of the default settings takes about 2 min"):
        run(FakeFit(quote=slow), max_time_s=100, out="other")


def test_money_needs_a_price_before_anything_is_read(run, monkeypatch):
    monkeypatch.setattr(searching, "has_gpu", lambda: False)
    fit = FakeFit()
    with pytest.raises(UserInputError, match="give --price"):
        run(fit, max_cost_usd=5)
    assert not fit.calls
    record, _ = run(fit, max_cost_usd=5, price_per_hour_usd=2.0, trials=1)
    assert record["cost"]["usd"] == pytest.approx(record["cost"]["seconds"] / 1800)
    assert record["cost"]["allowed"] == "5.00 USD at 2.00 USD an hour"


def test_several_methods_are_each_tried_with_their_defaults_first(run):
    record, _ = run(FakeFit(), method="lora,head", trials=5)
    assert [one["method"] for one in record["trials"][:2]] == ["lora", "head"]
    assert all(one["default"] for one in record["trials"][:2])
    assert not any(one["default"] for one in record["trials"][2:])


# What is shown


def test_the_front_has_what_nothing_cheaper_reaches():
    trials = [
        {"number": i, "state": state, "seconds": seconds, "score": score}
        for i, (state, seconds, score) in enumerate(
            [
                ("complete", 10, 0.8),
                ("complete", 5, 0.7),
                ("complete", 20, 0.8),
                ("pruned", 1, 0.99),
                ("complete", 30, 0.9),
            ]
        )
    ]
    assert pareto(trials) == [1, 0, 4]


def test_the_page_is_complete_and_takes_no_word_for_a_command(run, monkeypatch):
    monkeypatch.setattr(shared, "LEAST_FOR_IMPORTANCE", 4)
    record, _ = run(FakeFit(), trials=5, method="lora,ia3", price_per_hour_usd=1.0)
    assert record["importance"]
    page = search_html(record)
    for text in ("Score and cost", "What mattered", "lora: learning_rate", "Trials on the line", "USD"):
        assert text in page
    hostile = replace_everywhere(record, "<script>alert(1)</script>")
    assert "<script>alert" not in search_html(hostile)
    empty = {**record, "trials": [], "best": None, "finished": None, "pareto": [], "importance": {}}
    assert "No trial is complete" in search_html(empty)


def replace_everywhere(record, text):
    named = {"label": text, "target_modules": [text]}
    trials = [{**one, "error": text} for one in record["trials"]]
    return {**record, "model": text, "trials": trials, "fixed": named, "versions": {"snugtune": text}}


def test_times_are_those_of_the_clock(tmp_path):
    study, space = open_study(tmp_path, seed=0), space_of("lora")
    (tmp_path / "trials").mkdir()
    trial = study.begin(space, 1, always)
    study.end(trial, "COMPLETE", 0.5, {"score": 0.6, "log_loss": 1.0, "seconds": 1.0})
    assert 0 <= busy_s(study.trials(), time.time()) < 60
    assert completed(study.trials())[0].values == [0.5]
    assert isinstance(replace(space).digest(), str)
    assert Path(trial.lock.lock_file).parent == tmp_path / "trials"


CHILD = """
import time
from snugtune.scale import processes
processes._run = lambda plan: time.sleep(0.2) or plan["code"]
processes.main()
"""


@pytest.mark.parametrize("code", [0, 2])
def test_a_child_that_is_done_ends_in_silence_while_its_parent_waits(code):
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        child.stdin.write(f'{{"code": {code}}}\n'.encode())
        child.stdin.flush()
        assert child.wait(30) == code
        assert child.stdout.read() + child.stderr.read() == b""


def test_a_child_without_a_parent_is_told_to_stop():
    with subprocess.Popen(
        [sys.executable, "-c", CHILD.replace("0.2", "60")], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        child.stdin.write(b'{"code": 0}\n')
        child.stdin.close()
        assert child.wait(30) == -signal.SIGTERM
