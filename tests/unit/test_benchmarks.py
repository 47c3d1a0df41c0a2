"""The benchmarks' own arithmetic: ratios, time lines, turns, model FLOPs, and the page drawn from results."""

import importlib
import importlib.util
import itertools
import json
import subprocess
import sys
import types

import numpy as np
import pytest

from benchmarking import BENCHMARKS, load_package

load_package()
common = importlib.import_module("benchmark_lib.common")
page = importlib.import_module("benchmark_lib.page")
growth = importlib.import_module("benchmark_lib.growth")
lengths = importlib.import_module("benchmark_lib.lengths")
made_table = importlib.import_module("benchmark_lib.table")
memory = importlib.import_module("benchmark_lib.memory")
noise = importlib.import_module("benchmark_lib.noise")
picture = importlib.import_module("benchmark_lib.picture")
rounds = importlib.import_module("benchmark_lib.rounds")
timeline = importlib.import_module("benchmark_lib.timeline")
turns = importlib.import_module("benchmark_lib.turns")
flops = importlib.import_module("benchmark_lib.flops")
datasets = importlib.import_module("benchmark_lib.datasets")

MACHINE = {"cpu": "Some CPU (R) 9", "cores": 2, "ram_gib": 23.5, "cpu_bf16": True, "gpu": None}


# Ratios


def test_ratios_are_taken_turn_by_turn():
    found = common.ratio_spread([10.0, 5.0, 12.0], [2.0, 1.0, 4.0])
    assert found == {"median": 5.0, "min": 3.0, "max": 5.0, "n": 3}


@pytest.mark.parametrize(("ours", "theirs"), [([], []), ([1.0], [0.0]), ([1.0, 2.0], [1.0])])
def test_ratios_of_nothing_or_of_unequal_turns_are_refused(ours, theirs):
    with pytest.raises(ValueError, match=r".+"):
        common.ratio_spread(ours, theirs)


# Time lines


def _line(*points, work_s=100.0):
    return timeline.TimeLine(tuple(timeline.Point(*point) for point in points), work_s)


def test_speedup_compares_the_first_looks_that_saw_the_target():
    ours = _line((4.0, 0, 0.91), (10.0, 50, 0.93), (20.0, 100, 0.91))
    theirs = _line((50.0, 100, 0.5), (80.0, 200, 0.92))
    assert timeline.speedup(ours, theirs, 0.92) == {"ratio": 8.0, "lower_bound": False}


def test_speedup_is_a_lower_bound_where_the_other_never_arrives():
    ours, theirs = _line((10.0, 0, 0.92)), _line((50.0, 100, 0.5), work_s=1800.0)
    assert timeline.speedup(ours, theirs, 0.92) == {"ratio": 180.0, "lower_bound": True}


def test_speedup_is_none_where_ours_never_arrives():
    ours, theirs = _line((10.0, 0, 0.5)), _line((50.0, 100, 0.95))
    assert timeline.speedup(ours, theirs, 0.92)["ratio"] is None


def test_time_line_as_json_keeps_every_look():
    line = timeline.time_line([{"work_s": 1.5, "step": 3, "accuracy": 0.5}], 2.0)
    assert json.loads(json.dumps(line.as_dict(0.4))) == {
        "seconds_to_target": 1.5,
        "best_accuracy": 0.5,
        "work_s": 2.0,
        "points": [{"work_s": 1.5, "step": 3, "accuracy": 0.5}],
    }


# Turns


class Watch:
    """A clock that is moved by hand."""

    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time


def test_work_clock_counts_neither_pauses_nor_others_turns():
    watch = Watch()
    passed = []

    def pass_turn():
        passed.append(watch.time)
        watch.time += 100.0

    clock = turns.WorkClock(slice_s=5.0, pass_turn=pass_turn, now=watch)
    watch.time += 3.0
    clock.offer_turn()
    assert not passed
    with clock.paused():
        watch.time += 50.0
        assert clock.work_s == 3.0
    watch.time += 2.0
    clock.offer_turn()
    assert passed == [55.0]
    assert clock.work_s == 5.0
    watch.time += 4.0
    clock.offer_turn()
    assert len(passed) == 1
    clock.take_back(1.5)
    assert clock.work_s == 7.5


def test_work_clock_restarts_after_preparation():
    watch = Watch()
    clock = turns.WorkClock(now=watch)
    watch.time += 30.0
    clock.restart()
    watch.time += 1.0
    assert clock.work_s == 1.0


JOBS = """
import time

def count(clock, report, n):
    for i in range(n):
        time.sleep(0.02)
        report({"i": i})
        clock.offer_turn()

def fail(clock, report):
    raise RuntimeError("no luck")
"""

RACE = """
import sys
sys.path[:0] = sys.argv[1:3]
import jobs
from lib.turns import Job, run_in_turns

if __name__ == "__main__":
    seen = []
    found = run_in_turns(
        {"a": Job(jobs.count, {"n": 3}), "bad": Job(jobs.fail), "b": Job(jobs.count, {"n": 2})},
        0.001, on_point=lambda name, point: seen.append(name + str(point["i"])),
    )
    assert "no luck" in found["bad"].error, found
    assert found["a"].error is None and found["a"].work_s > 0.05, found
    assert found["a"].points == [{"i": 0}, {"i": 1}, {"i": 2}], found
    print(" ".join(seen))
"""


def test_contestants_alternate_and_one_that_fails_does_not_stop_the_others(tmp_path):
    (tmp_path / "jobs.py").write_text(JOBS, encoding="utf-8")
    (tmp_path / "race.py").write_text(RACE, encoding="utf-8")
    command = [sys.executable, str(tmp_path / "race.py"), str(tmp_path), str(BENCHMARKS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["a0", "b0", "a1", "b1", "a2"], done.stderr


# Model FLOPs


def _adapted(lowest=0, attention="eager"):
    from peft import LoraConfig, get_peft_model
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=40,
        max_position_embeddings=32, num_labels=5,
    )  # fmt: skip
    config._attn_implementation = attention
    adapter = LoraConfig(
        task_type="SEQ_CLS",
        r=4,
        target_modules=["query", "value"],
        modules_to_save=["pooler", "classifier"],
        layers_to_transform=list(range(lowest, 3)),
    )
    return get_peft_model(BertForSequenceClassification(config), adapter), config


@pytest.mark.parametrize("lowest", [0, 2])
@pytest.mark.parametrize("lengths", [(7,), (5, 11)])
def test_model_flops_agree_with_torchs_counter_on_unpadded_texts(lengths, lowest):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model, config = _adapted(lowest)
    with FlopCounterMode(display=False) as counter:
        for n in lengths:
            model(input_ids=torch.randint(1, 30, (1, n)), labels=torch.tensor([1])).loss.backward()
    shape = flops.Shape.of(config, 4, 5, lowest, first_token=False)
    assert flops.training_flops(shape, lengths) == counter.get_total_flops()


@pytest.mark.parametrize("lowest", [0, 2])
def test_of_the_last_layer_only_what_the_head_reads_must_be_computed(lowest):
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from snugtune.model.first_token import read_first_token_only

    model, config = _adapted(lowest, attention="sdpa")
    assert read_first_token_only(model.base_model.model)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(input_ids=torch.randint(1, 30, (1, 9)), labels=torch.tensor([1])).loss.backward()
    assert flops.training_flops(flops.Shape.of(config, 4, 5, lowest), (9,)) == counter.get_total_flops()


@pytest.mark.parametrize("merged", [False, True])
def test_forward_flops_agree_with_torchs_counter_too(merged):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model, config = _adapted()
    if merged:
        model = model.merge_and_unload()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.randint(1, 30, (2, 9)))
    shape = flops.Shape.of(config, 4, 5, first_token=False)
    assert flops.forward_flops(shape, (9, 9), merged=merged) == counter.get_total_flops()


# Lengths


@pytest.mark.parametrize("rows", [16, 96, 20_000])
def test_however_few_texts_are_drawn_they_are_as_long_as_complaints(rows):
    drawn = lengths.cfpb_lengths(rows)
    assert len(drawn) == rows
    assert drawn.max() == lengths.MAX_LENGTH
    assert drawn.mean() == pytest.approx(226.5, rel=0.01)
    assert drawn.tolist() == lengths.cfpb_lengths(rows).tolist() != sorted(drawn.tolist())


def test_random_ids_have_the_lengths_and_their_ends():
    tokens = lengths.random_tokens(np.array([2, 5, 3]), 100, (7, 8))
    assert [len(row) for row in tokens.ids] == tokens.lengths.tolist() == [2, 5, 3]
    assert [(row[0], row[-1]) for row in tokens.ids] == [(7, 8)] * 3
    assert min(int(row[1:-1].min(initial=99)) for row in tokens.ids) >= 50


def test_random_texts_are_tokenized_to_the_lengths(tmp_path):
    from transformers import AutoTokenizer

    from tiny import write_model

    tokenizer = AutoTokenizer.from_pretrained(write_model(tmp_path))
    texts = lengths.random_texts(np.array([3, 9, 20]), tokenizer)
    assert [len(row) for row in tokenizer(texts)["input_ids"]] == [3, 9, 20]


# Growth


def test_a_slope_of_one_is_linear_and_of_one_point_there_is_none():
    assert growth.slope([10, 100, 1000], [0.2, 2.0, 20.0]) == pytest.approx(1.0)
    assert growth.slope([10, 100], [1.0, 100.0]) == pytest.approx(2.0)
    assert growth.slope([10], [1.0]) is None


def test_the_generated_table_grows_without_changing_and_has_copies(tmp_path):
    import polars as pl

    for rows in (300, 900):
        made_table.write_table(tmp_path / f"{rows}.csv", rows, 10)
    small, large = (pl.read_csv(tmp_path / f"{rows}.csv") for rows in (300, 900))
    assert (small.height, large.height) == (300, 900)
    assert large["label"].n_unique() == made_table.CLASSES
    assert 5 <= large.height - large["text"].n_unique() <= 60
    assert 8 < large["text"].str.split(" ").list.len().mean() < 12


def test_preparation_prediction_and_evaluation_are_timed_step_by_step(tmp_path, monkeypatch):
    for name in ("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS"):  # put back afterwards
        monkeypatch.setenv(name, "1")
    run = made_table.write_run(tmp_path / "run")
    table = tmp_path / "table.csv"
    made_table.write_table(table, 400, 8)
    prepared, predicted, evaluated = (work(table, run, 1) for work in growth.WORK.values())
    assert set(prepared["seconds"]) == {*growth.STEPS.values(), "tokens"}
    assert prepared["rows_kept"] <= 400 == predicted["rows"] == evaluated["rows"]
    assert (tmp_path / "table.predicted.csv").read_text(encoding="utf-8").count("\n") == 401
    for of in (prepared, predicted, evaluated):
        assert min(of["seconds"].values()) >= 0
        assert of["memory"]["peak_gib"] > 0


def test_peak_memory_is_counted_from_the_restart_on():
    meter = memory.PeakMemory()
    meter.restart()
    before = meter.as_dict()["grown_gib"]
    held = np.ones(2**24)
    after = meter.as_dict()
    assert after["grown_gib"] >= before + 0.1
    assert after["grown_gib"] == pytest.approx(after["peak_gib"] - after["before_gib"])
    assert len(held)


# Contestants


def test_rounds_begin_with_one_to_warm_up_and_end_at_the_limit(capsys):
    class Counter:
        tokens_per_s, seconds = 10.0, 0.1
        taken = 0

        def turn(self, phase):
            self.taken += 1
            return self

    counter = Counter()
    assert len(rounds.take_turns({"a": counter}, "training", 3, 99.0)["a"]) == 3
    assert counter.taken == 4
    assert len(rounds.take_turns({"a": counter}, "training", 3, 0.0)["a"]) == 1
    assert "training, a: 10 real tokens/s in 0.1 s" in capsys.readouterr().out


@pytest.fixture
def own_precision():
    """Accelerate keeps one number format per process; other tests may have set another, or may yet."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def tiny_data(tmp_path_factory):
    from snugtune.config import FitConfig
    from tiny import texts_and_labels, write_model

    train, labels = texts_and_labels(60)
    test, given = texts_and_labels(9, seed=1)
    model = str(write_model(tmp_path_factory.mktemp("model")))
    config = FitConfig(train="", model=model, num_train_epochs=1, bf16=False)

    def load():
        return datasets.token_data(datasets.Texts(train, labels, test, given), config), config

    return load


def test_ours_and_the_recipe_take_turns_in_one_process_on_the_same_rows(tiny_data, own_precision):
    speed, kernels = (importlib.import_module(f"benchmark_lib.{name}") for name in ("speed", "kernels"))
    data, config = tiny_data()
    share = kernels.forward_shares(data)
    assert share["share"] == pytest.approx(share["bound_s"] / share["forward_s"])
    assert share["attention_bound_s"] > share["bound_s"]
    real = int(data.train.tokens.lengths.sum())
    contestants = [speed.Recipe(data, config, padding) for padding in ("max_length", "longest")]
    contestants.append(speed.Ours(data, config))
    for phase in speed.PHASES:
        for _ in range(2):
            full, longest, ours = (contestant.turn(phase) for contestant in contestants)
            seen = [(t.examples, t.real_tokens) for t in (full, longest, ours)]
            assert seen == [(len(data.train.y), real)] * 3, phase
            assert full.padded_tokens == len(data.train.y) * data.backbone.max_length
            assert ours.padding_waste < full.padding_waste
            assert longest.padding_waste < full.padding_waste
            assert min(full.seconds, longest.seconds, ours.seconds) > 0
    outside = kernels.outside_kernels(lambda: contestants[-1].turn("training"), data.device)
    assert 0 < outside["kernels_s"] < outside["wall_s"]


def test_the_bare_loop_has_every_product_of_the_encoder_and_nothing_else(tiny_data):
    kernels = importlib.import_module("benchmark_lib.kernels")
    data, _ = tiny_data()
    model = data.backbone.model

    def forward():
        model(input_ids=data_ids, attention_mask=data_ids.ne(0).long())

    import torch

    data_ids = torch.ones(3, 7, dtype=torch.long)
    found = kernels.observe(model, forward)
    # key and value of every token; query, output and feed-forward part of the one that is read
    assert sorted(rows for _, _, rows in found.linear) == [3] * 4 + [21] * 2
    assert found.attention == [(3 * 2, 1, 7, 32)]


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("aten::mm", True), ("mine::attention", True), ("MmBackward0", False),
        ("autograd::engine::evaluate_function: MmBackward0", False),
        ("torch::autograd::AccumulateGrad", False), ("Optimizer.step#AdamW.step", False),
    ],
)  # fmt: skip
def test_operators_are_told_from_what_calls_them(name, is_one):
    kernels = importlib.import_module("benchmark_lib.kernels")
    assert kernels.is_operator(name) == is_one


def test_predictor_and_pipeline_give_the_same_labels_of_the_same_tokens(tmp_path):
    from tiny import write_model

    contestants, ours = (importlib.import_module(f"benchmark_lib.{name}") for name in ("contestants", "ours"))
    run = ours.write_untrained_run(tmp_path, 9, str(write_model(tmp_path / "tiny")))
    texts, kind = contestants.texts_like_complaints(None, run, 12)
    assert kind == "texts as long as complaints"
    mine, default = contestants.Labels(run, texts), contestants.Pipeline(run, texts, 1)
    taken = {
        "ours": [mine.turn("prediction")],
        "ours, bfloat16": [contestants.Labels(run, texts, "bfloat16").turn("prediction")],
        "pipeline, batch size 1": [default.turn("prediction")],
        "pipeline, batch size 4": [contestants.Pipeline(run, texts, 4).turn("prediction")],
    }
    assert len({turn.tokens for (turn,) in taken.values()}) == 1
    for name in ("pipeline, batch size 1", "pipeline, batch size 4"):
        assert contestants.same_labels(taken[name][0].labels, taken["ours"][0].labels) == 1.0
    best = contestants.best_batch_size(taken)
    assert best in {1, 4}
    half = f"pipeline, batch size {best}, bfloat16"
    taken |= {half: taken["ours"], "ours, bfloat16, beside": taken["ours"]}
    found = contestants.ratios(taken)
    assert set(found["ours"]) == {"pipeline, batch size 1", "pipeline, batch size 4"}
    assert found["ours, bfloat16"][half]["median"] == 1.0
    assert contestants.best_batch_size(taken) == best


def test_few_shots_are_at_most_so_many_of_each_label_and_always_the_same():
    peers = importlib.import_module("benchmark_lib.peers")
    labels = ["a"] * 9 + ["b"] * 2 + ["c"] * 5
    rows = peers.few_shots(labels, 3, seed=0)
    assert [labels[i] for i in rows] == ["a"] * 3 + ["b"] * 2 + ["c"] * 3
    assert rows == peers.few_shots(labels, 3, seed=0) != peers.few_shots(labels, 3, seed=1)
    assert peers.few_shots(labels, 0, seed=0) == list(range(16))


def test_every_lever_of_the_ladder_sets_the_recipe_model(tiny_data):
    reference = importlib.import_module("benchmark_lib.reference")
    from snugtune.model import attention

    data, _ = tiny_data()
    recipes = [rung.recipe for rung in ladder.rungs("bfloat16", attention.register()) if rung.engine is None]
    model = reference.reference_model(data.backbone.source, 3, reference.SETTINGS | recipes[-1])
    trained = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    frozen = {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad}
    assert [str(dtype) for of in (trained, frozen) for dtype in of] == ["torch.float32", "torch.bfloat16"]
    assert model.config._attn_implementation == attention.NAME
    assert not [module for module in model.modules() if getattr(module, "p", 0.0)]
    (layer,) = model.base_model.model.bert.encoder.layer
    assert layer.forward.func.__module__ == "snugtune.model.first_token"


def test_both_are_looked_at_from_start_to_end_and_stop_when_told(tiny_data, own_precision):
    ours, reference = (importlib.import_module(f"benchmark_lib.{name}") for name in ("ours", "reference"))
    looks = {"ours": [], "recipe": []}

    def look(name, enough):
        return lambda _model, step: looks[name].append(step) or step >= enough

    data, config = tiny_data()
    clock = turns.WorkClock()
    ours.fit_until(data, config, clock, look("ours", 99), look_every=1, on_step=lambda: False)
    options = {"dtype": data.dtype, "device": data.device, "num_train_epochs": 9}
    reference.train_reference(data.backbone.source, data.train, 3, look("recipe", 4), look_every=2, **options)
    assert looks == {"ours": [0, 1, 2], "recipe": [2, 4]}
    reference.train_reference(
        data.backbone.source, data.train, 3, look("recipe", 99), on_step=lambda: True, **options
    )
    assert looks["recipe"] == [2, 4, 1]


# Results and page


def test_host_kind_names_the_gpu_or_the_cpu_with_its_cores():
    assert common.host_kind(MACHINE) == "2-cores-some-cpu-r-9"
    assert common.host_kind(MACHINE | {"gpu": {"name": "NVIDIA T4"}}) == "nvidia-t4"


def test_cpu_name_comes_from_the_system(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nmodel name\t: Fast 3000\n", encoding="utf-8")
    assert common.cpu_name(path) == "Fast 3000"
    numbers = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: Fast\n\n"
    path.write_text(numbers * 2, encoding="utf-8")
    assert common.cpu_name(path) == "Fast (family 25, model 17)"
    assert common.cpu_name(tmp_path / "absent")


def test_missing_data_is_said_and_skipped(tmp_path, capsys):
    assert common.data_folder("banking77", tmp_path) is None
    assert "banking77" in capsys.readouterr().out


def test_a_saved_result_carries_date_hardware_and_versions(tmp_path):
    path = common.save_result("prediction", {"ratios": {}}, tmp_path / "new", machine=MACHINE)
    record = json.loads(path.read_text(encoding="utf-8"))
    assert path.name == f"{record['date']}-prediction-2-cores-some-cpu-r-9.json"
    assert record["hardware"] == MACHINE
    assert {"python", "snugtune", "torch"} <= record["versions"].keys()


def test_rows_without_text_or_label_are_left_out(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text('text,label\n" a ",x\n,x\nb,\n"  ",y\nc,y\n', encoding="utf-8")
    assert datasets.read_table(path, "text", "label") == (["a", "c"], ["x", "y"])


def test_clinc_becomes_two_tables_of_in_scope_rows(tmp_path):
    parts = {"train": [["a", "x"]], "val": [["b", "y"]], "test": [["c", "x"]], "oos_test": [["d", "oos"]]}
    (tmp_path / "data_full.json").write_text(json.dumps(parts), encoding="utf-8")
    train, test = datasets.clinc150_csv(tmp_path, tmp_path)
    assert datasets.read_table(train, "text", "intent") == (["a", "b"], ["x", "y"])
    assert datasets.read_table(test, "text", "intent") == (["c"], ["x"])


def _spread(median):
    return {"median": median, "min": median * 0.9, "max": median * 1.1, "n": 3}


def _result(benchmark, date="2026-01-02", **values):
    head = {"benchmark": benchmark, "date": date, "hardware": MACHINE, "versions": {"torch": "9.9"}}
    return head | values


def _time_to_quality(date, seconds, *, lower_bound=True):
    settings = {"target": 0.92, "seed": 0, "threads": 2}
    return _result(
        "time-to-quality",
        date,
        settings=settings,
        matmul_fp32_flops_before_after=[1.5e11, 1.4e11],
        contestants={
            "ours": {"seconds_to_target": seconds, "best_accuracy": 0.93, "work_s": seconds, "points": []},
            "recipe": {"seconds_to_target": None, "best_accuracy": 0.5, "work_s": 1800.0, "points": []},
        },
        ratios={"recipe": {"ratio": 1800 / seconds, "lower_bound": lower_bound}},
    )


def _rung(name, speed, step):
    gain = None if step is None else _spread(step)
    pays = None if step is None else step >= 1.02
    return {
        "name": name, "tokens_per_s": _spread(speed), "padding_waste": 0.5, "step": gain, "total": gain,
        "pays": pays,
    }  # fmt: skip


def _every_result():
    speeds = (("ours", 8123.0), ("recipe, padded to the longest", 2000.0))
    phase = {
        "contestants": {
            name: {
                "tokens_per_s": _spread(speed),
                "examples_per_s": _spread(speed / 200),
                "padding_waste": 0.125,
                "mfu": _spread(0.4),
            }
            for name, speed in speeds
        },
        "ratios": {"recipe, padded to the longest": _spread(4.06)},
    }
    peak = {"before_gib": 0.5, "peak_gib": 1.25, "grown_gib": 0.75}
    throughput = _result(
        "throughput",
        settings={"model": "minilm", "rows": 96, "max_length": 512, "threads": 2, "pooling": "auto"},
        dtype="bfloat16",
        mean_length=226.4,
        matmul_peak_flops={"bfloat16": 3.21e11, "float32": 1.5e11},
        phases={"training": phase, "evaluation": phase},
        forward={"share": 0.75, "share_with_attention": 0.875},
        outside_kernels={"ours": {"share": 0.0625}},
        memory={"training": {name: peak for name, _ in speeds}},
    )
    prediction = _result(
        "prediction",
        settings={"rows": 96, "classes": 120, "threads": 2},
        texts="complaints",
        contestants={
            name: {"examples_per_s": _spread(77.0), "tokens_per_s": _spread(9e3), "same_label_as_ours": 1.0}
            for name in ("ours", "pipeline, batch size 1")
        },
        ratios={"ours": {"pipeline, batch size 1": _spread(5.55)}},
        memory={"ours": peak},
    )
    ladder = _result(
        "ladder",
        settings={"model": "minilm", "rows": 96, "max_length": 512, "threads": 2},
        dtype="bfloat16",
        pays_from=1.02,
        rungs=[
            _rung("the recipe", 900.0, None), _rung("buckets", 1800.0, 2.0), _rung("a charm", 1800.0, 1.0)
        ],
    )  # fmt: skip
    peers = _time_to_quality("2026-01-02", 36.0) | {
        "benchmark": "peers", "peer_versions": {"python": "3", "setfit": "1.2.0"},
        "settings": {"target": 0.92, "seed": 0, "threads": 2, "limit_s": 400.0},
    }  # fmt: skip
    for line in peers["contestants"].values():
        line["points"] = [{"work_s": 20.0, "step": 5, "accuracy": 0.9}]
    steps = {"preparation": ["read", "tokens"], "prediction": ["prediction"], "evaluation": ["evaluation"]}
    size = {"megabytes": 0.2} | {
        work: {"seconds": dict.fromkeys(of, 1.5), "memory": peak} for work, of in steps.items()
    }
    grown = _result(
        "growth",
        settings={"words": 30.0, "threads": 2, "slope_from": 10000},
        limit_gib=2.0,
        linear_up_to=1.1,
        sizes={"1000": size, "10000": size},
        slopes={step: 0.987 for of in steps.values() for step in of} | {"read": None},
    )
    on_card = {
        "examples_per_s": _spread(150.0), "tokens_per_s": _spread(33e3), "mfu": _spread(0.45),
        "peak_gib": 5.5, "packed": True,
    }  # fmt: skip
    card = _result(
        "speed-gpu",
        settings={"rows": 512, "max_length": 512, "batch": 32},
        matmul_peak_flops=7e14,
        speed={
            "16 GiB": {
                "contestants": {"ours, 4096": on_card, "recipe": on_card, "worse": {"error": "no memory"}},
                "ratios": {"recipe": _spread(5.25)},
                "of_bare_loop": {"ours, 4096": _spread(0.95)},
            }
        },
        blog={
            "rows": 120000, "epochs": 3, "published_hours": 9.0, "plan": {"time_s": 1800.0},
            "hours_at_measured_speed": {"ours, 4096": 0.6667},
        },
        decoder={"parameters": 7.5e9, "steps": 2, "tokens_per_s": 800.0, "peak_gib": 9.5, "finite": True},
    )  # fmt: skip
    scores = {"accuracy": 0.9321, "f1_macro": 0.9311, "rows": 3080, "seconds": 75.0}
    accuracy = _result(
        "accuracy",
        settings={"fit": []},
        data={
            "banking77": {"ours": scores, "baseline": scores | {"accuracy": 0.894}},
            "cfpb-issue": {"ours": {"error": "not finished after 9 s"}, "baseline": scores},
        },
    )
    recipe = _result(
        "recipe",
        recipe={
            "model": "large", "labels": 9, "rows": 1200, "epochs": 3, "micro_batch": 8, "max_length": 512,
            "device": "card-16", "predicted_peak_gib": 11.954, "time_s": 12533.0,
        },
        ours={"predicted_peak_gib": 4.285, "time_s": 3162.0},
        full_fine_tuning={"micro_batch_1": {"ratio": 3.378}, "micro_batch_8": {"ratio": 2.213}, "why": "so"},
    )  # fmt: skip
    judged = {key: _spread(0.75) for key in (*noise.COLUMNS, "seconds")}
    flipped = _result(
        "label-noise",
        settings={"flipped": 0.05, "seeds": 3, "max_length": 128},
        looked_at=0.08,
        data={"banking77": {"rows": 1000, "flipped_rows": 50, "methods": {"words": judged}}},
    )
    screen = {
        "size": [390, 844],
        "chromium": "1.2",
        **dict.fromkeys(("drawn_s", "filter_s", "sort_s"), _spread(0.5)),
    }
    report = _result(
        "report-page",
        settings={"classes": 200, "rows": 10_000, "repeats": 5},
        bytes=345_678,
        write_s=_spread(0.4),
        screens={"phone": screen},
    )
    server = {
        "requests_per_s": _spread(20.0), "p50_ms": _spread(40.0), "p99_ms": _spread(90.0), "errors": 0
    }  # fmt: skip
    served = _result(
        "serve",
        settings={"rows": 192, "model": "minilm", "threads": 2},
        texts="texts as long as complaints",
        litserve={"max_batch_size": 8, "batch_timeout": 0.01},
        server_versions={"litserve": "0.2"},
        clients={
            "8": {
                "contestants": {"ours": server, "LitServe": server},
                "ratios": {"LitServe": dict.fromkeys(("requests_per_s", "p50", "p99"), _spread(1.5))},
            }
        },
    )
    waits = {"p50": 0.4, "p99": 1.2}
    loaded = _result(
        "serve-load",
        settings={"minutes": 30.0, "model": "minilm", "threads": 2},
        capacity_rps=20.0, offered_rps=40.0, answers_compared=30_000, tolerance=1e-5, reloads=3, faults=0,
        statuses={"200": 30_000, "429": 25_000}, hostile=[{"count": 900}],
        growth={"worker_mib": {"per_hour": 0.4, "low": -0.5, "high": 1.2, "first": 400.0, "last": 401.0}},
        kills=[{"how": "SIGKILL", "at_s": 300.0, "to_answer_s": 0.2, "to_200_s": 4.0}],
        accepted_s=waits, refused_s=waits,
    )  # fmt: skip
    shared = _result(
        "share-weights",
        settings={"model": "minilm", "rows": 96, "clients": 8},
        texts="texts as long as complaints",
        classifiers=[
            {
                "classifiers": 16, "mib": {"own weights": 1800.0, "--share-weights": 500.0},
                "requests_per_s": {"own weights": _spread(20.0), "--share-weights": _spread(15.0)},
                "shared_by_own": _spread(0.75), "errors": 0,
            }
        ],
    )  # fmt: skip
    tried = {"0.0005": {"score": 0.91, "log_loss": 0.3, "seconds": 9.0, "trainable": 147_456}}
    methods = _result(
        "methods",
        settings={"data": "banking77", "rows": 3000, "rate_epochs": 2.0, "epochs": 4.0, "test": True},
        methods={
            "lora": {
                "rate": 5e-4, "tried": tried, "accuracy": 0.94, "f1_macro": 0.94, "trainable": 147_456,
                "predicted_peak_gib": 0.5, "measured_peak_gib": 0.6, "train_s": 90.0, "saved_bytes": 2**20,
            },
            "ia3": {"rate": 5e-4, "tried": tried, "error": "not finished after 9 s"},
            "head": {"rate": 5e-4, "tried": tried},
        },
    )  # fmt: skip
    curve = {n: {key: _spread(0.8) for key in ("held_out", "test", "classes")} for n in ("154", "308")}
    strategies = ["random", "typicality", "margin", "badge", "typicality to 4 a class, then badge"]
    chosen = _result(
        "active",
        settings={"seeds": 3, "max_length": 128, "a_class": [2, 4]},
        data={
            "banking77": {
                "classes": 77, "pool_rows": 7000, "switch": dict.fromkeys(strategies, 0.81),
                "strategies": dict.fromkeys(strategies, curve),
            }
        },
    )  # fmt: skip
    shot = {"accuracy": {**_spread(0.81), "n": 3}, "seconds": _spread(90.0), "cpu_s": _spread(90.0)}
    few = _result("few-shot", settings={"threads": 2}, shots={"8": {"snugtune fit": shot, "SetFit": shot}})
    scored = {"rows": 900, "accuracy": 0.91, "f1_macro": 0.9}
    near = _result("near-duplicates", data={"banking77": {"test_rows": 9, "ways": {"all rows": scored}}})
    errors = {"mean_error_percent": 0.5, "worst_error_percent": 1.5, "most_under_percent": -0.4}
    of_case = {
        "case": {"model": "minilm"},
        "measured_gib": {"reserved": 0.3},
        "error_percent": {"reserved": 1.5},
    }
    memory = _result(
        "memory",
        card="Hollow-H100", goal=memory_gpu.GOAL, cases=[of_case, {"case": {}, "left_out": "no kernel"}],
        summary={
            "cases": 1, "failed": 0, "left_out": 1, "goal_met": False, "reserved": errors,
            "allocated": errors,
        },
    )  # fmt: skip
    speed = [
        chosen,
        memory,
        few,
        near,
        methods,
        served,
        loaded,
        shared,
        throughput,
        prediction,
        ladder,
        peers,
        grown,
        card,
    ]
    return [
        _time_to_quality("2026-01-02", 40.0),
        *speed,
        accuracy,
        recipe,
        flipped,
        report,
        _result("trust", settings={"resplits": 100}, runs={"banking77": _trusted_run()}),
        _result(
            "choices",
            settings={"setting": "imbalance", "data": "banking77", "fit": ["--num-train-epochs", "1"]},
            values={
                "none": scores | {"log_loss": 0.31, "train_s": 30.0},
                "auto": scores | {"log_loss": 0.3, "train_s": 30.0, "told": {"chosen": "weights"}},
                "weights": {"error": "not finished after 9 s"},
            },
        ),
        *_computing_less(),
        _bulk(),
    ]


def _bulk():
    of = {
        "seconds": 400.0, "work_seconds": 390.0, "rows": 10_000_000, "rows_per_s": 25_000.0, "peak_gib": 0.7,
        "every_row_once": True,
    }  # fmt: skip
    settings = {"rows": 10_000_000, "shards": 40, "words": 10.0, "workers": 2, "threads": 2}
    return _result("bulk", settings=settings, megabytes=250.0, engines={"local": of, "ray": of})


def _computing_less():
    prefix_cache = _result(
        "prefix-cache",
        settings={"rows": 96, "max_length": 512, "threads": 2, "layers": [4, 5]},
        dtype="bfloat16",
        mean_length=226.4,
        layers=7,
        lower_layers=4,
        bytes_kept=17 * 2**20,
        tokens_per_s={"every layer in every epoch": _spread(5000.0), "lower layers kept": _spread(7500.0)},
        tokens_per_cpu_s={
            "every layer in every epoch": _spread(2500.0),
            "lower layers kept": _spread(4000.0),
        },
        first_epoch_tokens_per_cpu_s=2400.0,
        ratio=_spread(1.5),
        cpu_ratio=_spread(1.6),
    )
    found = {"rows": 2100, "tokens_trained": 126e3, "tokens_to_best": 84e3, "train_s": 30.0}
    way = {key: _spread(value) for key, value in (found | {"accuracy": 0.9, "validation_score": 0.9}).items()}
    pruning = _result(
        "pruning",
        settings={"share": 0.3, "rows": 3000, "seeds": 2, "epochs": 4.0},
        ways={"all rows": way, "easiest 30% dropped": way},
    )
    checkpoints = _result(
        "checkpoints",
        settings={"rows": 1600, "threads": 2, "every_s": 1.0},
        state_bytes=12 * 2**20, trained_parameters=500_000, commits=40, interval_s=30.0, largest_share=0.01,
        commit_s={**_spread(0.05), "n": 40}, share=_spread(0.002), seconds_ratio=_spread(1.01),
        cpu_ratio=_spread(1.01),
    )  # fmt: skip
    modes = {"PyTorch's fake mode": _spread(8.0), "plain operators at once": _spread(4.0)}
    rehearsal = _result(
        "rehearsal",
        settings={"repeats": 3, "max_length": 256, "micro_batch": 2},
        models={"minilm": {"allocations": 4000, "cpu_s": modes, "ratio": _spread(2.0)}},
    )
    linear = _result(
        "linear",
        settings={"repeats": 1, "classes": 150},
        rows=15_000, features=12_000, cpu_s={"primal": _spread(220.0), "dual": _spread(2.0)},
        accuracy={"primal": 0.91, "dual": 0.91}, ratio=_spread(110.0),
    )  # fmt: skip
    return prefix_cache, pruning, checkpoints, rehearsal, linear


_VERDICT = {"level": "ready_with_review", "against_baseline": "better"}


def _trusted_run():
    """What `trust.py` says of a run, as far as the page shows it."""
    kept, nothing = {"coverage": 0.8, "precision": 0.961}, {"coverage": 0.0, "precision": None}
    return {
        "rows": {"validation": 1000, "test": 3080}, "trained_with": {"num_train_epochs": 2.0},
        "test": {"accuracy": 0.9321, "f1_macro": 0.9311}, "ece": {"model": 0.04, "calibrated": 0.012},
        "targets": {
            target: {"test": kept, "baseline": {"test": nothing}, "verdict": _VERDICT}
            for target in ("0.9", "0.95")
        },
        "resplits": {
            target: {who: {"kept": 0.97, "mean_coverage": 0.75} for who in ("model", "baseline")}
            for target in ("0.9", "0.95")
        },
    }  # fmt: skip


@pytest.fixture
def results(tmp_path):
    for result in _every_result():
        path = tmp_path / f"{result['date']}-{result['benchmark']}-host.json"
        path.write_text(json.dumps(result), encoding="utf-8")
    return tmp_path


def test_the_page_says_whether_a_card_computed(results):
    drawn = page.draw(page.read_results(results))
    assert "on a card that computes nothing (`benchmarks/hollow`, by its description a H100)" in drawn
    assert "1 configurations, 1 left out" in drawn
    assert "| minilm | 1 | 0.30 to 0.30 | 1.50 % | +1.50 % | +0.00 % |" in drawn
    assert "is missed" in drawn


def test_the_page_shows_every_benchmark_with_its_source(results):
    drawn = page.draw(page.read_results(results))
    for title, _ in page.SECTIONS.values():
        assert f"## {title}\n" in drawn
    for path in results.glob("*.json"):
        assert f"`{path.name}`" in drawn
    assert "not within 30 min 00 s" in drawn
    assert "at least 45.0x" in drawn
    assert "| 8,123 (7,311 to 8,935) |" in drawn
    assert "4.06x (3.65 to 4.47)" in drawn
    assert "75 % of a bare loop over the same weight matrices, at 88 % of one with" in drawn
    assert "0.32 TFLOP/s in bfloat16 and 0.15 TFLOP/s in float32" in drawn
    assert "outside kernels, at most: 6 % (ours)" in drawn
    assert "| ours | 1.25 GiB (0.75) |" in drawn
    assert "| a charm | 1,800 (1,620 to 1,980) | 50.0 % | 1.00x (0.90 to 1.10) |" in drawn
    assert drawn.count("| yes |\n") == drawn.count("| no |\n") == 1
    assert "| `--engine ray`, 2 workers | 10,000,000 | 6 min 40 s | 25,000 | 0.70 GiB | all |" in drawn
    assert "setfit 1.2.0." in drawn
    assert "| tokens | 1.5 s | 1.5 s | 0.99 |" in drawn
    assert "| preparation | 0.75 GiB | 0.75 GiB |" in drawn
    assert "forecast 0.50 h; at the measured speed ours, 4096 0.67 h" in drawn
    assert "| worse | no memory |" in drawn
    assert "| yes | 95 % (86 to 104) |" in drawn
    assert "7.5 billion parameters in 4 bits trained 2 steps at 800 tokens/s within 9.50 GiB" in drawn
    assert "| banking77 | 3080 | 0.932 | 0.931 | 1 min 15 s | 0.894 |" in drawn
    assert "not finished after 9 s" in drawn
    assert "| banking77 | all rows | 900 | 0.910 | 0.900 |" in drawn
    assert "| badge | 0.800 (0.720 to 0.880) | 0.800 (0.720 to 0.880) | 0.8100 |" in drawn
    assert "| 8 texts a class | SetFit | 0.810 (0.729 to 0.891) | 3 | 90 (81 to 99) |" in drawn
    assert "| the recipe | 11.95 GiB | 3 h 28 min |" in drawn
    assert "| minilm | 4,000 | 8.00 (7.20 to 8.80) | 4.00 (3.60 to 4.40) | 2.00 (1.80 to 2.20) |" in drawn
    assert "| dual | 2.0 (1.8 to 2.2) | 0.9100 |" in drawn
    assert "3.4 at 1, 2.2 at 8 texts at a time" in drawn
    assert "| banking77 | 95 % | 80.0 % | 96.1 % | 0.0 % |  | 97.0 % | 75.0 % |" in drawn
    assert "200 classes, 10,000 test rows: 0.35 MB" in drawn
    assert "| phone, 390 x 844 | 0.50 s (0.45 to 0.55) |" in drawn
    assert "What is kept takes 17.0 MiB" in drawn
    assert "An epoch is over 1.50 (1.35 to 1.65) times sooner and takes 1.60 (1.44 to 1.76) times" in drawn
    assert "| easiest 30% dropped | 2,100 (1,890 to 2,310) | 126 (113 to 139) | 84 (76 to 92) |" in drawn


def test_pictures_are_drawn_of_results_of_a_cpu_alone(tmp_path):
    chosen = [
        result for result in _every_result() if result["benchmark"] in {"ladder", "peers", "growth", "active"}
    ]
    drawn = picture.draw_all([*chosen, _result("accuracy")], tmp_path)
    assert [path.name for path in drawn] == ["active.png", "ladder.png", "peers.png", "growth.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    on_card = [result | {"hardware": MACHINE | {"gpu": {"name": "T4"}}} for result in chosen]
    assert picture.draw_all(on_card, tmp_path / "none") == []


def test_every_row_of_a_table_has_as_many_cells_as_its_head(results):
    columns = None
    for line in page.draw(page.read_results(results)).splitlines():
        if not line.startswith("|"):
            columns = None
            continue
        columns = columns or line.count(" |")
        assert line.count(" |") == columns, line


def test_a_newer_result_of_the_same_host_replaces_the_older(results):
    newer = _time_to_quality("2026-03-04", 20.0, lower_bound=False)
    (results / "2026-03-04-time-to-quality-host.json").write_text(json.dumps(newer), encoding="utf-8")
    drawn = page.draw(page.read_results(results))
    assert "| 90.0x |" in drawn
    assert "45.0x" not in drawn
    assert "2026-01-02-time-to-quality" not in drawn


def test_results_of_other_kinds_are_left_out_of_the_page(results):
    before = page.draw(page.read_results(results))
    (results / "2026-03-04-other-host.json").write_text('{"cases": []}', encoding="utf-8")
    assert page.draw(page.read_results(results)) == before


def test_the_page_in_the_documentation_is_the_one_its_results_give():
    if not page.PAGE.exists():
        assert not list(common.RESULTS.glob("*.json")), "run a benchmark to draw docs/benchmarks.md"
        return
    assert page.PAGE.read_text(encoding="utf-8") == page.draw(page.read_results(common.RESULTS))


# The scripts' own


def _script(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


memory_gpu = _script("memory_gpu")
ladder = _script("ladder")
growth_script = _script("growth")
speed_gpu = _script("speed_gpu")


def test_each_rung_is_measured_against_the_one_below_and_the_first():
    turn = lambda speed: types.SimpleNamespace(tokens_per_s=speed, padding_waste=0.1)  # noqa: E731
    turns_ = {name: [turn(speed), turn(2 * speed)] for name, speed in (("a", 10.0), ("b", 20.0), ("c", 20.1))}
    first, second, third = ladder.summary(["a", "b", "c"], turns_)
    assert (first["step"], first["pays"]) == (None, None)
    assert (second["step"]["median"], second["pays"]) == (2.0, True)
    assert (third["total"]["median"], third["pays"]) == (pytest.approx(2.01), False)


def test_the_ladder_goes_from_the_recipe_to_our_defaults_one_setting_at_a_time():
    found = ladder.rungs("bfloat16", "ours")
    recipes = [rung.recipe for rung in found if rung.engine is None]
    assert recipes[0] == recipes[1] == {}
    assert all(before.items() <= after.items() for before, after in itertools.pairwise(recipes))
    assert [rung.padding for rung in found[:2]] == ["max_length", "longest"]
    assert found[-1].engine == {}


def test_slopes_leave_the_smallest_tables_out_where_two_larger_ones_are_left():
    def size(seconds):
        steps = {"preparation": ["read"], "prediction": ["prediction"], "evaluation": ["evaluation"]}
        return {work: {"seconds": dict.fromkeys(of, seconds)} for work, of in steps.items()}

    sizes = {1000: size(1.0), 10_000: size(1.0), 100_000: size(10.0)}
    assert growth_script.slopes(sizes, 10_000)["read"] == pytest.approx(1.0)
    assert growth_script.slopes(sizes, 100_000)["read"] == pytest.approx(0.5)


# One GPU, rehearsed on the CPU with tiny shapes


@pytest.fixture(scope="module")
def tiny_card(tmp_path_factory):
    shapes = importlib.import_module("benchmark_lib.shapes")
    config = shapes.xlm_roberta_large(tiny=True)
    model = shapes.write_model(config, tmp_path_factory.mktemp("shape") / "model")
    options = {
        "model": str(model), "rows": 6, "repeats": 2, "batch": 4, "max_length": 24, "classes": 5,
        "cap_gib": 16.0, "tiny": True, "deadline_at": float("inf"),
    }  # fmt: skip
    return config, options


def test_contestants_on_a_card_tell_speed_and_peak_of_each_turn(tiny_card, own_precision):
    card = importlib.import_module("benchmark_lib.card")
    config, options = tiny_card
    outcomes = {}
    for name, job in speed_gpu.jobs(options, [64]).items():
        outcome = outcomes[name] = turns.Outcome()
        named = {key: value for key, value in job.options.items() if key != "options"}
        card.train_turns(turns.WorkClock(), outcome.points.append, options=options, **named)
    outcomes["failed"] = turns.Outcome(error="Traceback\nRuntimeError: no memory\n")
    outcomes["late"] = turns.Outcome()
    found = speed_gpu.compared(outcomes, options, config, 1e12, speed_gpu.pairs([64]))
    assert found["best"].startswith("ours")
    assert set(found["ratios"]) == set(speed_gpu.RECIPES)
    assert list(found["of_bare_loop"]) == [
        "ours, 64 tokens a micro-batch",
        "ours, padded, 64 tokens a micro-batch",
    ]
    assert found["contestants"]["failed"] == {"error": "RuntimeError: no memory"}
    assert found["contestants"]["late"] == {"error": "no turn before the deadline"}
    waste = {}
    for name in outcomes.keys() - {"failed", "late"}:
        of = found["contestants"][name]
        assert of["examples_per_s"]["n"] == 2
        assert 0 < of["mfu"]["median"] < 1
        assert of["peak_gib"] > 0
        assert of.get("packed", False) is False  # on a CPU
        waste[name] = of["padding_waste"]
    assert waste[speed_gpu.BARE] == waste["ours, 64 tokens a micro-batch"]
    planned = found["contestants"][speed_gpu.PLANNED]
    assert planned["tokens_per_micro_batch"] > 0
    json.dumps(found, allow_nan=False)


def test_of_turns_that_one_had_no_time_for_no_ratio_is_taken():
    assert speed_gpu._ratio([4.0, 6.0, 1.0], [2.0, 2.0]) == {"median": 2.5, "min": 2.0, "max": 3.0, "n": 2}


def test_a_contestant_begins_nothing_after_the_deadline(tiny_card):
    card = importlib.import_module("benchmark_lib.card")
    options = tiny_card[1] | {"deadline_at": 0.0}
    with pytest.raises(RuntimeError, match="deadline"):
        card.train_turns(turns.WorkClock(), print, options=options, kind="ours")


def test_sections_are_written_one_by_one_and_put_beside_earlier_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(speed_gpu, "run_in_turns", lambda jobs, *_, **__: dict.fromkeys(jobs, "outcome"))
    monkeypatch.setattr(speed_gpu, "compared", lambda *_: {"contestants": {}})
    monkeypatch.setattr(speed_gpu, "blog", lambda found, _: {"of": found})
    monkeypatch.setattr(speed_gpu, "_decoder", lambda *_: {"steps": 1})
    monkeypatch.setattr(sys, "argv", ["speed_gpu.py", "--sections", "decoder", "capped"])
    options, written = speed_gpu._arguments(), []

    def measure():
        return speed_gpu.measure(
            options, "model", None, 1e12, common.Deadline(), lambda found: written.append(json.dumps(found))
        )

    first = measure()
    assert [list(json.loads(text)["speed"]) for text in written] == [["16 GiB"], ["16 GiB"]]
    assert "blog" not in first
    earlier = tmp_path / "earlier.json"
    earlier.write_text(written[-1], encoding="utf-8")
    options.resume, options.sections = earlier, ["forecast"]
    second = measure()
    assert second["blog"] == {"of": {"contestants": {}}}
    assert second["decoder"] == {"steps": 1}
    options.rows = 7
    with pytest.raises(SystemExit, match="other settings: rows"):
        measure()


def test_what_a_fit_packs_hangs_on_settings_too(monkeypatch):
    import torch
    from transformers import BertConfig

    ours = importlib.import_module("benchmark_lib.ours")
    from snugtune.config import make_config

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.setattr(ours, "kernel_takes", lambda _shape: True)
    shape = BertConfig(attention_probs_dropout_prob=0.0)
    card, cpu = torch.device("cuda"), torch.device("cpu")

    def packs(device=card, dtype=torch.bfloat16, **settings):
        return ours.packs(shape, make_config({"train": "x", **settings}), device, dtype)

    assert packs()
    assert not packs(packing="off")
    assert not packs(method="prompt")
    assert not packs(dtype=torch.float32)
    assert not packs(device=cpu)


def test_a_decoder_in_4_bits_trains_its_steps(tiny_card, own_precision):
    pytest.importorskip("bitsandbytes")
    card = importlib.import_module("benchmark_lib.card")
    points = []
    card.quantized_decoder(
        turns.WorkClock(), points.append, options=tiny_card[1] | {"max_length": 16}, rows=3
    )
    (told,) = points
    assert told["finite"]
    assert told["steps"] == len(told["losses"]) == 1
    # embedding, two layers, norms, and a score of five rows
    layer = 2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256 + 2 * 128
    assert told["parameters"] == 128 * 128 + 2 * layer + 128 + 5 * 128


# Predicted against measured memory


def _row(predicted, measured):
    peaks = {"allocated": predicted, "reserved": predicted, "place": "layer"}
    return memory_gpu.row(memory_gpu.Case("minilm", 2, 16), peaks, dict.fromkeys(memory_gpu.KINDS, measured))


def test_at_least_sixty_different_configurations_the_largest_first():
    found = memory_gpu.largest_first(memory_gpu.cases())
    assert len(set(found)) >= 60
    assert len(found) == len(memory_gpu.cases())
    assert (found[0].model, found[0].method, found[0].micro_batch) == ("minilm", "full", 512)
    assert found[1].model in {"xlm-roberta-large", "meta-llama/Llama-3.2-1B"}
    assert {case.method for case in found} > {"lora", "full", "head"}
    assert {case.attention for case in found} == {"packed", "fused", "eager"}
    assert {case.compute for case in found} == {"bfloat16", "float16", "float32"}
    assert {case.expandable for case in found} == {True, False}


def test_the_summary_takes_errors_of_both_kinds_and_judges_the_reserved():
    rows = [*[_row(102, 100), _row(99, 100)] * 30, {"case": {}, "left_out": "predicted not to fit"}]
    told = memory_gpu.summary(rows)
    assert (told["cases"], told["failed"], told["left_out"]) == (60, 0, 1)
    for kind in memory_gpu.KINDS:
        assert told[kind]["mean_error_percent"] == pytest.approx(1.5)
        assert told[kind]["worst_error_percent"] == pytest.approx(2)
        assert told[kind]["most_under_percent"] == pytest.approx(-1)
    assert told["goal_met"]


@pytest.mark.parametrize(
    "rows",
    [
        [_row(106, 100), *[_row(100, 100)] * 59],
        [_row(97, 100), *[_row(100, 100)] * 59],
        [_row(104, 100)] * 60,
        [*[_row(100, 100)] * 60, {"case": {}, "error": "out of memory"}],
        [_row(100, 100)] * 59,
    ],
)
def test_the_goal_is_missed_by_one_large_error_one_below_the_mean_a_failure_or_too_few_cases(rows):
    assert not memory_gpu.summary(rows)["goal_met"]


def test_a_configuration_that_fails_is_a_row(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nRuntimeError: no card\n")
    monkeypatch.setattr(memory_gpu.subprocess, "run", lambda *_, **__: failed)
    assert memory_gpu.run_case(memory_gpu.Case("minilm", 2, 16))["error"] == "RuntimeError: no card"


def test_the_dry_run_rehearses_without_a_card_and_with_the_depth_put_back():
    from snugtune.train import rehearsal

    shape = rehearsal.model_shape
    case = memory_gpu.Case("minilm", 2, 16, activation_checkpointing=6, top_layers=3, embedding_on_host=True)
    found = memory_gpu.dry(case)
    assert 0 < found["predicted_gib"]["allocated"] <= found["predicted_gib"]["reserved"]
    assert rehearsal.model_shape is shape
    assert found["case"]["activation_checkpointing"] == 6
