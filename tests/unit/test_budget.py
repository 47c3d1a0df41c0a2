"""A budget ends training in time, keeps the best weights, and says so."""

from itertools import count

import pytest
import torch

from snugtune.config import make_config
from snugtune.cost.budget import Allowance, Budget, allowance
from snugtune.cost.prices import Price
from snugtune.cost.rates import Rates, rates
from snugtune.errors import ConfigError, UserInputError
from snugtune.model.adapter import trainable_state
from snugtune.progress import Observer
from snugtune.train.engine import Services
from snugtune.units import parse_duration
from tiny_training import train_tiny

TWO_USD = Rates(Price("x", "y", 2.0, "2026-01-01", ""))


def limits(known, **given):
    none = {"max_time_s": None, "max_cost_usd": None, "max_units": None}
    return allowance(known, **{**none, **given})


def test_without_a_limit_there_is_no_allowance():
    assert limits(TWO_USD) is None


def test_the_tightest_limit_counts():
    found = limits(TWO_USD, max_time_s=7200.0, max_cost_usd=1.0)
    assert found == Allowance(1800.0, "1.00 USD at 2.00 USD an hour")
    assert limits(TWO_USD, max_time_s=60.0, max_cost_usd=1.0) == Allowance(60.0, "1 min 00 s")


def test_units_are_colabs_where_known_and_the_formula_elsewhere():
    t4 = rates("t4", own_price=None, memory_gb=5.0)
    assert limits(t4, max_units=1.96).seconds == pytest.approx(3600)
    unknown = rates("rtx3090", own_price=None, memory_gb=5.0)
    assert limits(unknown, max_units=10).seconds == pytest.approx(7200)


@pytest.mark.parametrize(
    ("given", "words"), [({"max_cost_usd": 1.0}, "--price"), ({"max_units": 1.0}, "GPU")]
)
def test_a_limit_without_a_rate_is_refused(given, words):
    with pytest.raises(UserInputError, match=words):
        limits(Rates(), **given)


def test_a_machine_that_costs_nothing_has_no_limit_of_money():
    assert limits(Rates(Price("x", "y", 0.0, "", "")), max_cost_usd=1.0) is None


class Clock:
    """Time that goes by only when told."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_time_is_kept_for_another_step_a_last_look_and_the_rest():
    clock = Clock()
    budget = Budget(Allowance(100.0, "100 s"), elapsed=clock, after_s=20.0, looks_after=2.0)
    budget.looked(5.0)
    assert budget.reserve_s == 35.0
    clock.now = 10.0
    assert budget.exhausted() is None
    clock.now = 14.0
    assert budget.exhausted() is None  # steps of 4 s
    clock.now = 60.9
    budget.looked(5.0)
    assert budget.exhausted() is None
    clock.now = 61.0
    why = budget.exhausted()
    assert why is not None
    assert "100 s" in why
    assert "35.0 s" in why


def test_final_scores_go_through_all_layers_where_looks_do_not():
    budget = Budget(
        Allowance(100.0, "100 s"), elapsed=Clock(), after_s=20.0, looks_after=2.0, whole_look_s=15.0
    )  # fmt: skip
    budget.looked(5.0)
    assert budget.reserve_s == 5.0 + 2 * 15.0 + 20.0
    budget.looked(40.0)
    assert budget.reserve_s == 40.0 + 2 * 40.0 + 20.0


def test_the_longest_step_is_kept_free_too():
    clock = Clock()
    budget = Budget(Allowance(100.0, "100 s"), elapsed=clock, after_s=0.0, looks_after=0.0)
    assert budget.exhausted() is None
    clock.now = 40.0
    assert budget.exhausted() is None
    clock.now = 60.0
    assert budget.exhausted() is not None


class Told(Observer):
    def __init__(self):
        self.sentences, self.looks, self.steps = [], [], []

    def say(self, sentence):
        self.sentences.append(sentence)

    def on_step(self, info):
        self.steps.append(info.step)

    def on_validation(self, info):
        self.looks.append(info)


def trained(allowed_s, told):
    # A step takes a second of this clock: it is asked once after each.
    budget = Budget(
        Allowance(allowed_s, f"{allowed_s} s"), elapsed=count(1).__next__, after_s=1.0, looks_after=0.0
    )
    budget.looked = lambda seconds: None
    settings = {"num_train_epochs": 4, "effective_batch_size": 8, "early_stopping_patience": None}
    return train_tiny(
        settings | {"learning_rate": 5e-3, "head_learning_rate": 5e-3}, rows=48, held_out=40,
        services=lambda _: Services(observer=told, budget=budget),
    )  # fmt: skip


def test_training_ends_within_the_budget_after_a_last_look_and_keeps_the_best():
    told = Told()
    result, model = trained(11, told)
    # After step 9: 9 s, 1 s for another step, 1 s for the rest.
    assert told.steps[-1] == result.steps == 9
    assert result.over_budget
    assert [look.step for look in told.looks] == [0, 6, 9]
    assert result.best_score == max(look.score for look in told.looks)
    assert sum("budget of 11 s is used up" in sentence for sentence in told.sentences) == 1
    best = next(look.step for look in told.looks if look.score == result.best_score)
    assert result.best_step == best
    assert all(torch.isfinite(tensor).all() for tensor in trainable_state(model).values())


def test_a_budget_that_suffices_changes_nothing():
    told = Told()
    limited, limited_model = trained(1000, told)
    settings = {"num_train_epochs": 4, "effective_batch_size": 8, "early_stopping_patience": None}
    free, free_model = train_tiny(
        settings | {"learning_rate": 5e-3, "head_learning_rate": 5e-3}, rows=48, held_out=40
    )
    assert not limited.over_budget
    assert limited.steps == free.steps == 24
    states = trainable_state(limited_model), trainable_state(free_model)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_the_last_step_needs_no_more_budget():
    told = Told()
    result, _ = trained(26, told)
    assert result.steps == 24
    assert not result.over_budget


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90min", 5400), ("1.5 h", 5400), ("1h30min", 5400), ("45s", 45), ("2H", 7200), ("10 m", 600)],
)
def test_time_spans(text, seconds):
    assert parse_duration(text) == seconds
    assert make_config({"train": "x", "max_time_s": text}).max_time_s == seconds


@pytest.mark.parametrize("text", ["90", "", "1h 5", "ten minutes", "-5min"])
def test_no_time_spans(text):
    with pytest.raises(ConfigError, match="time span needs its unit"):
        make_config({"train": "x", "max_time_s": text})


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="max_time_s"):
        make_config({"train": "x", "max_time_s": "0min"})
