"""The guard's benchmark without a card: its draws, its comparison, its verdict, its processes."""

import importlib
import importlib.util
import io
import json
import math
import sys
import time
import types
from contextlib import closing
from unittest.mock import Mock

import numpy as np
import pytest

from benchmarking import BENCHMARKS, load_package

MACHINE = {"cpu": "Some CPU", "cores": 2, "ram_gib": 8.0, "cpu_bf16": True, "gpu": None}

load_package()
capped_worker = importlib.import_module("benchmark_lib.capped_worker")
engine = importlib.import_module("benchmark_lib.guard_engine")
fits = importlib.import_module("benchmark_lib.guard_fits")
hog = importlib.import_module("benchmark_lib.hog")
memory = importlib.import_module("benchmark_lib.memory")
scarcity = importlib.import_module("benchmark_lib.scarcity")
shapes = importlib.import_module("benchmark_lib.shapes")
turns = importlib.import_module("benchmark_lib.turns")


def _script():
    spec = importlib.util.spec_from_file_location("guard_gpu", BENCHMARKS / "guard_gpu.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["guard_gpu"] = module
    spec.loader.exec_module(module)
    return module


guard_gpu = _script()
cases = guard_gpu.guard_cases


# Draws


@pytest.mark.parametrize("draw", [cases.engine_cases, cases.cap_cases, cases.hog_cases])
def test_a_case_is_the_same_however_many_are_drawn_and_half_are_in_each_precision(draw):
    drawn = draw(100)
    assert drawn[:7] == draw(7)
    assert len({cases.key_of(case) for case in drawn}) == 100
    assert sum(case.precision == "bfloat16" for case in drawn) == 50


def test_cases_go_from_generous_to_absurd_and_their_moments_over_all_of_training():
    drawn = cases.engine_cases(200)
    assert sum(case.room > 1 for case in drawn) > 5
    assert sum(case.room < 0 for case in drawn) == 20
    assert sum(case.from_share == 0 for case in drawn) > 50
    assert all(case.until_share is None or case.until_share >= case.from_share for case in drawn)
    assert {case.stage for case in cases.hog_cases(9)} == set(cases.STAGES)


def test_parts_are_all_cases_and_none_twice():
    drawn = cases.cap_cases(10)
    parts = [cases.part_of(drawn, (i, 3)) for i in (1, 2, 3)]
    assert sorted((case for part in parts for case in part), key=lambda case: case.number) == drawn
    with pytest.raises(ValueError, match="4/3"):
        guard_gpu._part("4/3")


# What is compared


def test_distances_are_relative_and_what_began_at_zero_is_looked_at_apart():
    expected = {"x.lora_A": np.full(9, 100.0), "x.lora_B": np.array([3.0, 4.0])}
    moved = {"x.lora_A": np.full(9, 100.0), "x.lora_B": np.array([3.0, 4.5])}
    assert cases.distance(expected, expected) == 0
    assert cases.distance(moved, expected) == pytest.approx(0.1)
    assert cases.distance({**moved, "x.lora_B": np.array([np.nan, 4.0])}, expected) == math.inf


def test_losses_of_other_steps_are_infinitely_far():
    assert cases.losses_apart([1.0, 2.5], [1.0, 2.0]) == 0.5
    assert cases.losses_apart([1.0], [1.0, 2.0]) == math.inf
    assert cases.losses_apart([math.nan], [1.0]) == math.inf


def test_a_limit_is_three_times_the_noise_or_the_floor():
    assert cases.limit_of("float32", [0.0, None]) == cases.FLOOR["float32"]
    assert cases.limit_of("bfloat16", [0.0, 0.1]) == pytest.approx(0.3)
    with pytest.raises(ValueError, match="not finite"):
        cases.limit_of("float32", [math.inf, 0.0])


def _told(level="cap", ended="card", events=1, weights=0.0, **more):
    told = {"level": level, "precision": "float32", "ended": ended, "seconds": 1.0}
    told["events"] = {"out_of_memory, training: cut in two": events} if events else {}
    return cases.judged(told | more, weights=(weights, 0.1), losses=(0.0, 0.1))


PLANTED = {"float32": _told("planted", weights=0.5)}


def _verdict(*told, planted=PLANTED, levels=("cap",)):
    return cases.summary({str(i): of for i, of in enumerate(told)}, planted, levels)


def test_all_passes_where_memory_ran_out_and_nothing_came_of_it():
    found = _verdict(_told(), _told(ended="cpu", weights=0.9), _told("engine"), levels=("engine", "cap"))
    assert found["passed"]
    assert found["levels"]["cap"]["ended"] == {"card": 1, "cpu": 1}
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("told", "fault"),
    [
        ([], "there was no case"),
        ([_told(events=0)], "memory ran out in no case"),
        ([_told(ended="cpu")], "memory ran out in no case"),
        ([_told(), _told(weights=0.2)], "1 cases trained another model"),
        ([_told(), {**_told(), "failed": "so"}], "1 of 2 cases failed"),
        ([_told(weights=math.inf), _told()], "1 of 2 cases failed"),
    ],
)
def test_it_does_not_pass_with_a_failure_another_model_or_nothing_tested(told, fault):
    found = _verdict(*told)
    assert not found["passed"]
    assert fault in "; ".join(found["faults"])


@pytest.mark.parametrize("planted", [{}, {"float32": _told("planted", weights=0.01)}])
def test_it_does_not_pass_where_a_planted_fault_would_not_be_found(planted):
    assert not _verdict(_told("engine"), planted=planted, levels=("engine",))["passed"]


# Results that grow


def _options(folder, **more):
    named = {
        "out": folder, "resume": None, "dry_run": False, "part": (1, 2), "only": ["cap"], "model": None,
        "rows": 500, "max_length": 256, "epochs": 4.0, "engine_rows": 192, **more,
    }  # fmt: skip
    return types.SimpleNamespace(**named)


def test_a_result_is_on_disk_after_each_case_and_can_be_gone_on_with(tmp_path, capsys):
    first, second = cases.cap_cases(2)
    record = guard_gpu.Record(_options(tmp_path), MACHINE)
    assert "-guard-1-of-2-" in record.file.path.name
    guard_gpu._note(record, first, _told())
    written = json.loads(record.file.path.read_text(encoding="utf-8"))
    assert list(written["cases"]) == ["cap-0"]
    assert written["summary"]["passed"]
    again = guard_gpu.Record(_options(tmp_path, resume=record.file.path, only=["hog"]), MACHINE)
    assert again.is_done(first)
    assert not again.is_done(second)
    assert again.levels == ["cap", "hog"]
    again.fault("something else")
    assert "something else" in again.summary()["faults"]
    with pytest.raises(SystemExit, match="other settings: rows"):
        guard_gpu.Record(_options(tmp_path, resume=record.file.path, rows=5), MACHINE)
    assert "1 events, 0 restarts, ended on card" in capsys.readouterr().out


def test_a_dry_run_writes_nothing(tmp_path):
    record = guard_gpu.Record(_options(tmp_path, dry_run=True), MACHINE)
    record.add("cases", {"cap-0": _told()})
    assert record.file is None
    assert not list(tmp_path.iterdir())


def test_nothing_begins_that_would_end_after_the_deadline_and_errors_are_kept():
    done = []
    pool = guard_gpu.Pool(2, guard_gpu.common.Deadline(0.3))
    pool.run([lambda: done.append(1), lambda: 1 / 0])
    pool.one_at_a_time([lambda: time.sleep(0.2), lambda: done.append(2)])
    assert done == [1]
    assert "ZeroDivisionError" in pool.errors[0]


# The process that takes the memory


def test_greed_takes_all_that_is_free_and_what_gets_free_later():
    free = [3 * 2**27 + 2**22]

    def take(size):
        if size > free[0]:
            raise MemoryError
        free[0] -= size
        return size

    told = []
    greed = hog.Greed(take)
    greed.fill()
    assert greed.held_bytes == 3 * 2**27 + 2**22
    free[0] = 2**21
    hog.hold(greed, 0.0, lambda **event: told.append(event))
    assert [event["event"] for event in told] == ["full", "lets go"]
    assert told[-1]["bytes"] == 3 * 2**27 + 2**22 + 2**21


def test_a_hog_waits_for_its_word_takes_its_share_and_lets_go():
    with closing(hog.Hog(host_mib=5)) as process:
        assert process.told == {}
        heard = []
        process.take(0.05, heard.append)
        process._listener.join(20)
        assert heard == ["full", "lets go"]
        assert process.told["lets go"]["bytes"] == 4 * 2**20


def test_a_hog_that_is_not_needed_ends(tmp_path):
    process = hog.Hog(host_mib=1)
    process.close()
    assert process._process.returncode is not None


def test_the_hog_process_ends_with_its_input(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    hog.main(["--host-mib", "1"])
    assert json.loads(capsys.readouterr().out) == {"event": "ready"}


# Fits


def test_a_watcher_knows_stages_and_their_times():
    entered = []
    watcher = fits.Watcher(entered.append)
    watcher.phase("data")
    watcher.say("Plan: 1 GiB")
    watcher.phase("probe", 9)
    watcher.phase("train")
    watcher.phase("data")  # of a new process
    assert watcher.stage == "load"
    watcher.on_trained(None)
    assert entered == [*cases.STAGES, "after"]
    assert all(seconds >= 0 for seconds in watcher.seconds().values())


def _fitted(**more):
    told = {"ended": "card", "events": {}, "restarts": [], "seconds": 1.0, "packed": False}
    return fits.Fitted(told, 3, {"lora_B": np.ones(4)}, [1.0, 0.5], **more)


def test_the_hog_strikes_at_its_stage_and_what_it_did_is_told(tmp_path, monkeypatch):
    def fit(_settings, _name, _config, watcher):
        watcher.phase("data")
        watcher.say("Plan: 1 GiB")
        time.sleep(2.0)
        return _fitted()

    monkeypatch.setattr(fits, "fit", fit)
    settings = fits.Settings(tmp_path, "model", tmp_path / "x.csv", 64, 1.0, 1, host_hog_mib=4)
    beside = fits.Undisturbed(_fitted(), 0.1, 0.1, dict.fromkeys(cases.STAGES, 0.1))
    told = fits.robbed(settings, cases.HogCase(0, "bfloat16", "prepare", 0.5, 0.1), beside)
    assert told["moment"]["stage"] == "prepare"
    assert told["moment"]["training_was_still_to_end"]
    assert told["taken_bytes"] == {"full": 2**22, "lets go": 2**22}
    assert told["within_limits"]
    json.dumps(told, allow_nan=False)


def test_undisturbed_fits_are_the_yardstick():
    again = fits.Fitted(_fitted().told, 3, {"lora_B": np.full(4, 1.01)}, [1.0, 0.5])
    cut = fits.Fitted(_fitted().told, 4, {"lora_B": np.full(4, 2.0)}, [1.0, 0.6])
    beside, told = fits.yardstick(
        "float32", {"first": (_fitted(), {"load": 1.0}), "again": (again, {}), "cut": (cut, {})}
    )
    assert beside.weights_limit == pytest.approx(0.03)  # the other's best step was another
    assert beside.losses_limit == pytest.approx(0.3)
    json.dumps(told, allow_nan=False)


def test_texts_are_read_by_the_tokenizer_that_is_made_beside_them(tmp_path):
    from snugtune.data.table import read_table

    fits.write_texts(tmp_path / "x.csv", 40, 64)
    frame = read_table(tmp_path / "x.csv").frame
    words = {word for text in frame["text"] for word in text.split()}
    assert words <= set(shapes.WORDS)
    assert frame["label"].n_unique() == fits.CLASSES


def test_the_cap_comes_after_the_choice_of_allocator_and_inside_what_the_worker_calls(monkeypatch):
    import torch

    from snugtune.memory import segments

    fit = importlib.import_module("snugtune.fit")
    did = []
    monkeypatch.setattr(segments, "prefer_expandable_segments", lambda: did.append("segments"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: types.SimpleNamespace(total_memory=8 * 2**30)
    )
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", did.append)
    monkeypatch.setattr(fit, "fit", lambda *arguments, **options: did.append((arguments, options)))
    called = capped_worker.capped_fit(2.0)
    assert did == []
    called("config", overwrite=True)
    assert did == ["segments", 0.25, (("config",), {"overwrite": True})]


@pytest.mark.slow
def test_a_supervised_fit_leaves_what_is_compared_and_nothing_else(tmp_path):
    model = shapes.write_model(shapes.minilm(tiny=True), tmp_path / "model")
    fits.write_texts(tmp_path / "x.csv", 60, 32)
    settings = fits.Settings(tmp_path / "fits", str(model), tmp_path / "x.csv", 32, 1.0, 1)
    fitted, stage_s = fits.undisturbed_fit(settings, "float32", "first")
    assert fitted.told["ended"] == "cpu"
    assert fitted.losses
    assert any("lora_B" in name for name in fitted.weights)
    assert all(seconds > 0 for seconds in stage_s.values())
    assert not list((tmp_path / "fits").iterdir())


# The engine's cases


def test_memory_that_is_cut_by_a_ledger_refuses_what_is_new_until_it_is_given_back():
    import torch

    memory_of = scarcity.scarcity_of(torch.device("cpu"))
    held, peak = memory_of.measured(lambda: torch.ones(1000).sum())
    assert (held, peak) == (0, 4004)
    with memory_of.cut(3000, 0.0, None), pytest.raises(torch.OutOfMemoryError):
        torch.ones(1000)
    with memory_of.cut(3000, 9.0, None):
        torch.ones(1000)
    with memory_of.cut(3000, 0.0, 0.02):
        time.sleep(0.1)
        torch.ones(1000)


@pytest.fixture
def own_precision():
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_engine_cases_train_the_same_model_and_a_lost_micro_batch_is_found(tmp_path, own_precision):
    model = shapes.write_model(shapes.minilm(tiny=True), tmp_path / "model")
    options = {"model": str(model), "rows": 64, "max_length": 48}
    trial = engine.Trial(options, "float32")
    undisturbed = trial.undisturbed()
    assert undisturbed["steps"] == 4
    planted = trial.planted()
    assert not planted["within_limits"]
    drawn = [
        cases.EngineCase(0, "float32", room=0.4, from_share=0.0, until_share=None),
        cases.EngineCase(1, "float32", room=-0.2, from_share=0.0, until_share=None),
        cases.EngineCase(2, "float32", room=1.5, from_share=0.5, until_share=0.9),
    ]
    told = {cases.key_of(case): trial.disturbed(case) for case in drawn}
    assert [of.get("ended") for of in told.values()] == ["card", "new process", "card"]
    assert told["engine-0"]["events"]
    found = cases.summary(told, {"float32": planted}, ["engine"])
    assert found["passed"], found["faults"]
    json.dumps([undisturbed, planted, told], allow_nan=False)


def test_the_engine_begins_no_case_after_the_deadline(monkeypatch):
    monkeypatch.setattr(engine, "Trial", lambda *_: pytest.fail("began"))
    for name in ("quiet_libraries", "cap_card", "gc"):  # what is of the whole process
        monkeypatch.setattr(engine, name, Mock())
    points = []
    drawn = cases.engine_cases(4)
    engine.run(turns.WorkClock(), points.append, cases=drawn, options={"deadline_at": 0.0})
    assert points == []


# Pools of a card


def test_a_cpu_has_no_pool_to_give_back():
    import torch

    with memory.CachedPool(torch.device("cpu")).given_back():
        pass
