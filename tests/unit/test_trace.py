import inspect
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from snugtune.memory.trace import ACTIVATIONS, BACKWARD, GRADIENTS, INPUTS, UPDATE, WEIGHTS, Ledger

MIB = 1 << 20


def mebibyte(*, requires_grad=False):
    return torch.zeros(512, 512, requires_grad=requires_grad)


def peak_of(run):
    with Ledger() as ledger:
        run()
    return ledger.close().peak_bytes


def test_views_and_in_place_results_count_nothing():
    def run():
        x = mebibyte()
        y = x.view(-1)
        y.add_(1).mul_(2)
        x.t().expand(1, 512, 512)

    assert peak_of(run) == MIB


def test_what_is_dropped_is_freed():
    def run():
        for _ in range(5):
            mebibyte() + 1

    assert peak_of(run) == 2 * MIB


def test_a_chain_of_results_holds_two_at_a_time():
    def run():
        x = mebibyte()
        for _ in range(5):
            x = x + 1

    assert peak_of(run) == 2 * MIB


def test_tensors_saved_for_backward_are_counted_until_backward():
    x = mebibyte(requires_grad=True)
    with Ledger() as ledger:
        out = x
        for _ in range(3):
            # Each exp saves its result.
            out = out.exp()
        with ledger.during("loss"):
            total = out.sum()
        del out
        assert ledger_bytes(ledger) == 3 * MIB + 4
        total.backward()
        del total
    trace = ledger.close()
    assert x.grad is not None
    assert trace.running_bytes()[-1] == MIB


def ledger_bytes(ledger):
    return sum(ledger._n_bytes[index] for index, _ in ledger._alive.values())


def test_frozen_and_trained_weights_and_the_batch_have_their_categories():
    model = nn.Sequential(nn.Linear(512, 512, bias=False), nn.ReLU(), nn.Linear(512, 512, bias=False))
    model[0].weight.requires_grad_(False)
    ledger = Ledger(model)
    ledger.mark(model.parameters(), WEIGHTS)
    with ledger:
        with ledger.during(INPUTS):
            x = mebibyte()
        loss = model(x).square().mean()
        loss.backward()
        ledger.mark([p.grad for p in model.parameters()], GRADIENTS)
        with ledger.during(UPDATE):
            model[2].weight.grad * 2
    trace = ledger.close()
    by_category = {}
    for storage in trace.storages:
        by_category[storage.category] = by_category.get(storage.category, 0) + storage.n_bytes
    assert by_category[WEIGHTS] == 2 * MIB
    assert by_category[INPUTS] == MIB
    assert by_category[GRADIENTS] == MIB
    assert by_category[UPDATE] == MIB
    assert by_category[BACKWARD] >= MIB
    assert {s.module for s in trace.storages if s.category == ACTIVATIONS} >= {"0", "1", "2"}


def test_composition_adds_up_to_the_peak_and_the_place_is_a_module():
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 8))
    ledger = Ledger(model)
    ledger.mark(model.parameters(), WEIGHTS)
    with ledger:
        model(torch.zeros(512, 64)).sum().backward()
    trace = ledger.close()
    parts = trace.composition()
    assert sum(parts.values()) == trace.peak_bytes == trace.running_bytes()[trace.peak_event]
    assert parts["activations: linear"] >= 4 * 512 * 256
    assert trace.peak_place().split(" ")[0] in {"0", "1", "2"}


def test_cublas_takes_its_workspace_at_a_thread_s_first_product_and_keeps_it():
    model = nn.Sequential(nn.GELU(), nn.Linear(8, 8), nn.Linear(8, 8))
    x = torch.zeros(4, 8, requires_grad=True)
    with Ledger(model, workspaces=True) as ledger:
        for _ in range(2):
            model(x).sum().backward()
    trace = ledger.close()
    found = np.flatnonzero(trace.is_library)
    assert [trace.storages[i].module for i in found] == ["1", "2"]
    assert set(found + 1) <= set(trace.events)
    assert not set(-found - 1) & set(trace.events)
    assert trace.sized(trace.sizes, 5)[found].tolist() == [5, 5]
    with Ledger(model) as without:
        model(x).sum()
    assert not without.close().is_library.any()


def test_storages_of_backward_lie_in_the_module_whose_gradient_it_is():
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16))
    with Ledger(model) as ledger:
        model(torch.zeros(4, 16)).sum().backward()
    places = {s.module for s in ledger.close().storages if s.category == BACKWARD}
    assert {"0", "1", "2"} <= places


def test_the_hooks_are_gone_after_closing():
    model = nn.Linear(4, 4)
    ledger = Ledger(model)
    ledger.close()
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def test_a_category_can_be_left_out():
    with Ledger() as ledger:
        x = mebibyte()
        ledger.mark([x], "host")
        y = mebibyte()
        del x, y
    trace = ledger.close().without("host")
    assert trace.peak_bytes == MIB
    assert trace.running_bytes()[-1] == 0


def test_work_counts_flops_and_traffic():
    a, b = torch.zeros(8, 16), torch.zeros(16, 4)
    with Ledger(work=True) as ledger:
        a @ b
    work = ledger.close().work
    assert work.flops.tolist() == [2 * 8 * 16 * 4]
    assert work.n_bytes.tolist() == [4 * (8 * 16 + 16 * 4 + 8 * 4)]
    assert work.phase.tolist() == [ACTIVATIONS]


def test_storages_name_the_line_of_the_model_forward_and_backward():
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16
    )
    model = BertForSequenceClassification(config)
    lines = Path(inspect.getfile(BertForSequenceClassification)).read_text().splitlines()
    with Ledger(model) as ledger:
        model(input_ids=torch.ones(2, 4, dtype=torch.int64)).logits.sum().backward()
    storages = ledger.close().storages
    for category in (ACTIVATIONS, BACKWARD):
        dense = [s for s in storages if s.category == category and s.module.endswith("intermediate.dense")]
        assert dense
        for storage in dense:
            name, number = storage.line.split(" line ")
            assert name == "modeling_bert.py"
            assert "self.dense(hidden_states)" in lines[int(number) - 1]
    with Ledger() as outside:
        mebibyte()
    assert outside.close().storages[0].line == ""


def test_gradients_that_autograd_alone_holds_are_added_in_place():
    """Two products' gradients of one tensor take the room of the first, but one that others hold does not."""
    other = mebibyte()

    def backward_mebibytes(outputs):
        x = 2 * mebibyte(requires_grad=True)
        with Ledger() as ledger:
            torch.autograd.backward(outputs(x), mebibyte())
        return [s.n_bytes / MIB for s in ledger.close().storages if s.category == BACKWARD]

    one, two = (backward_mebibytes(lambda x, n=n: sum((x @ other for _ in range(n)), other)) for n in (1, 2))
    assert len(two) == len(one) + 1
    # The gradient of a sum is that of both its terms: adding to the one would change the other.
    plain, shared = (backward_mebibytes(f) for f in (lambda x: x + other, lambda x: x + x))
    assert len(shared) == len(plain) + 1
