"""Rates, quotes and bills, checked against sums done by hand."""

import json
from dataclasses import replace

import pytest

from snugtune.cost.bill import EARLIER, START, Terms, Usage, bill
from snugtune.cost.budget import Allowance
from snugtune.cost.meter import Counter, Energy, EnergyMeter, processor_counters
from snugtune.cost.prices import Price, prices
from snugtune.cost.quote import (
    LEARNING_CURVE,
    Work,
    baseline_s,
    budget_warning,
    features_s,
    linear_s,
    pass_s,
    quote,
    quote_as_dict,
    quote_sentence,
)
from snugtune.cost.rates import Rates, rates
from snugtune.evaluate.label_quality import MAX_FIT_ROWS
from snugtune.evaluate.learning_curve import SHARES

OWN = rates("", own_price=2.0, memory_gb=None)
SECONDS = {"data": 10.0, "probe": 20.0, "train": 100.0, "evaluate": 6.0, "baseline": 4.0, "total": 142.0}


def look(step, epoch, score):
    return {"step": step, "epoch": epoch, "eval_score": score, "eval_loss": 1.0, "best": True}


def step(n, elapsed_s):
    return {"step": n, "loss": 1.0, "learning_rate": 1e-3, "elapsed_s": elapsed_s}


METRICS = [
    look(0, 0.0, 0.5), step(1, 15.0), step(2, 30.0), look(2, 1.0, 0.4), step(3, 45.0), step(4, 60.0),
    look(4, 2.0, 0.8), step(5, 75.0), step(6, 90.0), look(6, 3.0, 0.7),
]  # fmt: skip


def made(usage=None, terms=None, **changes):
    usage = usage or Usage(
        SECONDS, on_card=False, scored_rows=3000, metrics=METRICS, baseline_score=0.6, train_s=100.0
    )  # fmt: skip
    return bill(usage, terms or Terms(OWN, own_price=2.0), budget_ended_run=False, **changes)


def test_a_bill_adds_up():
    cost = made()
    assert cost["usd"] == pytest.approx(142 / 3600 * 2)
    assert cost["price_per_hour_usd"] == 2.0
    assert cost["price"]["provider"] == "your own price"
    assert sum(phase["seconds"] for phase in cost["phases"]) == pytest.approx(142)
    assert sum(phase["usd"] for phase in cost["phases"]) == pytest.approx(cost["usd"])
    assert [phase["name"] for phase in cost["phases"]] == [START, *list(SECONDS)[:-1]]
    assert cost["gpu_hours"] == 0
    assert cost["compute_units"] is None
    assert cost["energy_wh"] is None
    json.dumps(cost, allow_nan=False)


def test_processes_that_died_are_paid_for_too():
    usage = Usage(SECONDS, on_card=True, scored_rows=1, earlier_s=58.0)
    cost = made(usage)
    assert cost["usd"] == pytest.approx(200 / 3600 * 2)
    assert cost["gpu_hours"] == pytest.approx(200 / 3600)
    assert cost["phases"][0] == {"name": EARLIER, "seconds": 58.0, "usd": pytest.approx(58 / 1800)}


def test_predictions_are_priced_by_the_measured_throughput():
    cost = made(terms=Terms(OWN, predictions_per_month=10_000))
    assert cost["per_1000_predictions"] == {"seconds": 2.0, "usd": pytest.approx(2 / 1800)}
    year = cost["per_year"]
    assert year["predictions"] == 120_000
    assert year["seconds"] == pytest.approx(240)
    assert year["usd"] == pytest.approx(240 / 1800)
    assert made()["per_year"] is None


def test_without_a_price_there_is_time_but_no_money():
    cost = made(terms=Terms(Rates(), predictions_per_month=10))
    assert cost["usd"] is None
    assert cost["price"] is None
    assert {phase["usd"] for phase in cost["phases"]} == {None}
    assert cost["per_1000_predictions"] == {"seconds": 2.0, "usd": None}
    assert cost["per_year"]["usd"] is None


def test_alternatives_that_the_run_itself_measured():
    found = {one["what"]: one for one in made()["alternatives"]}
    assert list(found) == ["TF-IDF baseline alone", "probe without training", "1 epoch", "2 epochs"]
    assert found["TF-IDF baseline alone"]["time_s"] == 14
    assert found["TF-IDF baseline alone"]["score"] == 0.6
    assert found["probe without training"]["time_s"] == 42
    assert found["probe without training"]["score"] == 0.5
    # After the first epoch the start was still the best.
    assert (found["1 epoch"]["time_s"], found["1 epoch"]["score"]) == (42 + 30, 0.5)
    assert (found["2 epochs"]["time_s"], found["2 epochs"]["score"]) == (42 + 60, 0.8)
    assert found["2 epochs"]["usd"] == pytest.approx(102 / 1800)


def test_training_of_processes_that_died_counts_once():
    """Of 160 s of training, 60 were another process's, which took 75 in all."""
    usage = Usage(
        SECONDS, on_card=False, scored_rows=3000, metrics=METRICS, earlier_s=75.0, train_s=160.0
    )  # fmt: skip
    found = {one["what"]: one for one in made(usage)["alternatives"]}
    assert found["probe without training"]["time_s"] == 142 + 75 - 160
    assert found["2 epochs"]["time_s"] == 142 + 75 - 160 + 60


def test_a_last_look_in_the_middle_of_an_epoch_is_no_alternative():
    metrics = [*METRICS[:7], step(5, 75.0), look(5, 2.5, 0.9)]
    usage = Usage(SECONDS, on_card=False, scored_rows=3000, metrics=metrics)
    assert [one["what"] for one in made(usage)["alternatives"]] == [
        "probe without training",
        "1 epoch",
        "2 epochs",
    ]


def test_the_recipes_units_and_colabs():
    t4 = rates("t4", own_price=None, memory_gb=15.0)
    assert t4.units(9 * 3600)["blog_formula"] == pytest.approx(135)
    assert t4.units(3600)["colab"] == pytest.approx(1.96)
    assert t4.price == prices("t4")[0]
    assert rates("t4", own_price=3.0, memory_gb=1.0).price.usd_per_hour == 3.0
    assert rates("cpu", own_price=None, memory_gb=None).price is None


# Quote


def work(**changes):
    default = {
        "train_rows": 900, "validation_rows": 100, "test_rows": 200, "words": 10_000, "classes": 20,
        "epochs": 4, "train_s": 360.0, "load_s": 2.0, "probe": True,
    }  # fmt: skip
    return Work(**{**default, **changes})


def test_a_quote_adds_up():
    # A pass of 90 s, so 0.1 s a row and a third of that forward.
    found = quote(work())
    look_s = 100 * 0.1 / 3
    after = 15 + 4 + 2 * baseline_s(10_000, 20)
    assert found.epoch_s == pytest.approx(90 + look_s)
    assert found.train_s == pytest.approx(4 * 90 + 5 * look_s)
    assert found.time_s == pytest.approx(1000 * 0.1 / 3 + found.train_s + 3 * look_s + after)
    assert not found.confirmed


def test_looks_are_shorter_where_lower_layers_are_kept_and_final_scores_are_not():
    whole, kept = quote(work()), quote(work(look_share=0.25))
    assert kept.after_s == pytest.approx(whole.after_s)
    assert kept.train_s < whole.train_s
    assert pass_s(work(look_share=0.25), 10) == pass_s(work(), 10) > 0


def test_earlier_runs_put_a_quote_right():
    half = quote(work(pace=0.5))
    assert half.train_s == pytest.approx(quote(work()).train_s / 2)
    assert half.confirmed
    assert "as earlier runs here took" in quote_sentence(half, Rates())
    assert "no run here has confirmed it" in quote_sentence(quote(work()), Rates())


def test_a_short_pass_is_believed_where_it_was_measured():
    # 0.1 s a row, half of it forward, which earlier runs put right for training alone.
    found = quote(work(measured=True, forward_share=0.5, pace=2.0))
    look_s = 100 * 0.05
    assert found.epoch_s == pytest.approx(900 * 0.2 + look_s)
    assert found.time_s == pytest.approx(1000 * 0.05 + found.train_s + 3 * look_s + work().after_s)
    assert "by a short pass over some of the texts" in quote_sentence(quote(work(measured=True)), Rates())
    assert quote_as_dict(found, Rates())["measured"] is True


def test_an_audit_takes_its_time():
    audit_s = work(audit=True).after_s - work().after_s
    assert audit_s == pytest.approx(features_s(10_000) + (5 * 0.8 + 1.55) * linear_s(10_000, 20))


def test_the_labels_judges_learn_from_no_more_rows_than_they_do():
    """Of a table of five times the rows that they read at most, a judge reads a fifth."""
    large = replace(work(audit=True), train_rows=5 * MAX_FIT_ROWS)
    small = replace(large, train_rows=MAX_FIT_ROWS)
    judges_s = 5 * linear_s(large.words, large.classes)
    assert small.audit_s - large.audit_s == pytest.approx((0.8 - 0.2) * judges_s)
    assert pytest.approx(0.8 * sum(SHARES)) == LEARNING_CURVE


def test_a_quote_needs_a_plan_with_a_time():
    assert quote(work(train_s=None)) is None
    assert quote_as_dict(None, Rates()) is None


def test_a_quote_tells_money_with_its_date_and_units():
    found = quote(work())
    told = quote_sentence(found, rates("t4", own_price=None, memory_gb=4.0))
    price = prices("t4")[0]
    assert f"{found.time_s / 3600 * price.usd_per_hour:.2f} USD" in told
    assert price.date in told
    assert "Colab compute units" in told


def test_a_budget_below_the_quote_is_told_before_with_what_would_fit():
    found = quote(work())
    assert budget_warning(found, work(), Allowance(found.time_s + 5, "x"), 5.0) is None
    told = budget_warning(found, work(), Allowance(found.time_s + 5 - 1.5 * found.epoch_s, "x"), 5.0)
    assert "--epochs 2 would fit" in told
    told = budget_warning(found, work(), Allowance(1.0, "x"), 5.0)
    assert "training will end early" in told
    assert "--epochs" not in told


# Energy


def test_energy_is_what_counters_advance():
    readings = {"gpu": 1000.0, "cpu": 90.0}
    meter = EnergyMeter(
        [Counter("GPU", lambda: readings["gpu"]), Counter("CPU packages", lambda: readings["cpu"], 100.0)]
    )
    assert meter.used() == Energy(0.0, "GPU + CPU packages")
    readings["gpu"] = 4000.0
    readings["cpu"] = 40.0  # began again at 100
    assert meter.used().wh == pytest.approx((3000 + 50) / 3600)
    readings["cpu"] = 60.0
    meter.phase("train")
    readings["cpu"] = 10.0
    assert meter.used().wh == pytest.approx((3000 + 50 + 20 + 50) / 3600)


def test_a_counter_that_fails_is_left_out():
    working = {"is": True}

    def read():
        if not working["is"]:
            raise OSError
        return 1.0

    meter = EnergyMeter([Counter("GPU", read)])
    assert meter.used() == Energy(0.0, "GPU")
    working["is"] = False
    assert meter.used() is None
    assert EnergyMeter().used() is None


def test_counters_are_added_from_the_moment_they_are_known():
    value = {"j": 100.0}
    meter = EnergyMeter()
    value["j"] = 200.0
    meter.add([Counter("GPU", lambda: value["j"])])
    value["j"] = 236.0
    assert meter.used() == Energy(pytest.approx(0.01), "GPU")


def zone(folder, name, joules, wraps_at=262_144):
    folder.mkdir()
    (folder / "name").write_text(name + "\n")
    (folder / "energy_uj").write_text(f"{joules * 10**6}\n")
    (folder / "max_energy_range_uj").write_text(f"{wraps_at * 10**6}\n")


def test_processors_are_read_by_package_alone(tmp_path):
    zone(tmp_path / "intel-rapl:0", "package-0", 5)
    zone(tmp_path / "intel-rapl:0:0", "core", 3)
    zone(tmp_path / "intel-rapl:1", "psys", 7)
    zone(tmp_path / "intel-rapl:2", "package-1", 11)
    (tmp_path / "intel-rapl:3").mkdir()
    counters = processor_counters(tmp_path)
    assert [counter.read_j() for counter in counters] == [5.0, 11.0]
    assert {counter.wraps_at for counter in counters} == {262_144.0}
    meter = EnergyMeter(counters)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("3600000005000000")
    assert processor_counters(tmp_path / "nowhere") == []
    assert meter.used().of == "CPU packages"


def test_a_price_is_told_with_its_source():
    known = Rates(Price("x", "y", 1.5, "2026-01-01", "https://example.org", confirmed=False))
    assert known.price_as_dict() == {
        "usd_per_hour": 1.5, "provider": "y", "source": "https://example.org", "date": "2026-01-01",
        "confirmed": False,
    }  # fmt: skip
