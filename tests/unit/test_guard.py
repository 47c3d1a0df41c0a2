"""A lack of memory, wherever it strikes, must change neither the weights nor the course of a training."""

import errno
import gc
import sys

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from scarcity import MESSAGES, Cap, FailAt
from snugtune.errors import DEVICE, MEMORY, RestartNeededError
from snugtune.faults import is_out_of_memory, is_poisoned
from snugtune.memory.guard import (
    EVALUATION,
    GROW_AFTER,
    LEAK_BYTES,
    Guard,
    HostMemory,
    Limit,
    Retreat,
)
from snugtune.memory.guard import _failure as guarding
from snugtune.model.adapter import trainable_state
from snugtune.progress import Observer
from snugtune.train.checkpoints import Checkpoints
from snugtune.train.engine import Services
from snugtune.train.forward import predict_logits
from snugtune.train.retreats import retreats
from tiny_training import (  # noqa: F401 - a fixture
    CPU,
    examples,
    loss_scaler,
    tiny_model,
    train_tiny,
)

INJECTIONS = 200
BUDGETS = 20


def trained(mode=None, *, guard=None, dtype=torch.float32, **settings):
    """Result, final weights and guard of a short training inside ``mode``."""
    settings = {"num_train_epochs": 1, "effective_batch_size": 8, **settings}
    guard = guard or Guard(HostMemory())

    def services(model):
        guard.retreats = retreats(model, 0)
        return Services(guard=guard)

    result, model = train_tiny(settings, dtype=dtype, services=services, inside=mode)
    return result, trainable_state(model), guard


def assert_same_training(disturbed, undisturbed):
    (result, state, _), (expected, expected_state, _) = disturbed, undisturbed
    assert result.steps == expected.steps
    losses, expected_losses = ([m["loss"] for m in r.metrics if "loss" in m] for r in (result, expected))
    np.testing.assert_allclose(losses, expected_losses, rtol=0, atol=1e-6)
    scores, expected_scores = (
        [m["eval_loss"] for m in r.metrics if "eval_loss" in m] for r in (result, expected)
    )
    np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=1e-6)
    for name, tensor in expected_state.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=1e-6, msg=name)


@pytest.fixture(scope="module", autouse=True)
def _few_objects_to_collect():
    """Each recovery collects garbage, and all that pytest has imported would be looked through."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def undisturbed():
    return trained()


@pytest.fixture(scope="module")
def operators():
    counter = FailAt(-1, None)
    trained(counter)
    return counter.seen


def test_memory_running_out_at_any_operator_changes_nothing(undisturbed, operators):
    rng = np.random.default_rng(0)
    for case, at in enumerate(rng.choice(operators, INJECTIONS, replace=False).tolist()):
        failure = FailAt(at, MESSAGES[case % len(MESSAGES)])
        disturbed = trained(failure)
        assert failure.failed_in
        assert_same_training(disturbed, undisturbed)


class _SeesTheGuard(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        frame, names = sys._getframe(), set()
        while frame is not None:
            names.add(frame.f_code.co_name)
            frame = frame.f_back
        assert guarding.__name__ in names, f"{func} runs unguarded"
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("loss_scaler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_operator_of_training_runs_unguarded(dtype):
    trained(_SeesTheGuard(), dtype=dtype)


def test_it_changes_nothing_with_several_micro_batches_in_a_step(undisturbed):
    rng = np.random.default_rng(1)
    counter = FailAt(-1, None)
    trained(counter, tokens_per_micro_batch=64)
    for at in rng.choice(counter.seen, 20, replace=False).tolist():
        assert_same_training(trained(FailAt(at, MESSAGES[0]), tokens_per_micro_batch=64), undisturbed)


@pytest.mark.usefixtures("loss_scaler")
def test_float16_steps_are_undone_with_their_loss_scale():
    """What is scaled, unscaled or skipped by the loss scaler must not happen twice."""
    undisturbed = trained(dtype=torch.float16)
    counter = FailAt(-1, None)
    trained(counter, dtype=torch.float16)
    rng = np.random.default_rng(2)
    for at in rng.choice(counter.seen, 20, replace=False).tolist():
        disturbed = trained(FailAt(at, MESSAGES[0]), dtype=torch.float16)
        losses, expected = (
            [m["loss"] for m in result.metrics if "loss" in m] for result, _, _ in (disturbed, undisturbed)
        )
        np.testing.assert_allclose(losses, expected, rtol=0.02)


def test_who_watches_is_told_of_each_piece_of_work_and_of_its_end_also_when_it_fails():
    told = []
    guard = Guard(HostMemory(), at_work=told.append)
    guard.again(lambda: told.append("works"), during="work")
    assert told == [True, "works", False]
    told.clear()
    with pytest.raises(KeyError):
        guard.again(lambda: {}["a"], during="work")
    assert told == [True, False]
    told.clear()
    trained(guard=guard)
    assert told[::2] == [True] * (len(told) // 2)
    assert told[1::2] == [False] * (len(told) // 2)
    # Four steps, and two looks at validation.
    assert len(told) > 2 * 6


def test_a_device_that_is_lost_is_told_from_memory_that_ran_out():
    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def full():
        raise torch.OutOfMemoryError("no more")

    for work, kind in ((lost, DEVICE), (full, MEMORY)):
        with pytest.raises(RestartNeededError) as caught:
            Guard(HostMemory()).again(work, during="work")
        assert caught.value.kind == kind


def test_any_budget_trains_the_same_model(undisturbed):
    free = Cap(2**60)
    trained(free, guard=Guard(free))
    least = _least_budget(free.peak_bytes)
    for budget in np.random.default_rng(3).integers(least, free.peak_bytes, BUDGETS).tolist():
        cap = Cap(int(budget))
        disturbed = trained(cap, guard=Guard(cap))
        assert cap.failures
        assert cap.peak_bytes <= budget
        assert_same_training(disturbed, undisturbed)


def _least_budget(most):
    """The smallest capacity in which a single example can be trained, within one part in fifty."""
    low, high = most // 10, most
    while high - low > most // 50:
        middle = (low + high) // 2
        cap = Cap(middle)
        try:
            trained(cap, guard=Guard(cap))
            high = middle
        except RestartNeededError:
            low = middle
    return high


def test_what_does_not_fit_at_all_asks_for_a_restart_and_says_what_would_help():
    cap = Cap(1000)
    with pytest.raises(RestartNeededError, match=r"free some memory, shorten the texts"):
        trained(cap, guard=Guard(cap))


def test_at_one_example_layers_are_checkpointed_before_anything_is_given_up(undisturbed):
    drawn = []
    guard = Guard(HostMemory())
    failing = {"left": 4}  # with 8 examples, 4, 2 and 1

    class Fails(FailAt):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if failing["left"] and func is torch.ops.aten.gelu.default and guard_is_training():
                failing["left"] -= 1
                raise MESSAGES[0]()
            return func(*args, **(kwargs or {}))

    def guard_is_training():
        return torch.is_grad_enabled()

    guard.say = drawn.append
    assert_same_training(trained(Fails(-1, None), guard=guard), undisturbed)
    events = [event["event"] for event in guard.events]
    assert events.count("retreat") >= 1
    assert "activation checkpointing of all 2 layers" in [event["action"] for event in guard.events]
    assert all("nothing is lost" in sentence for sentence in drawn)


def test_what_happens_after_the_last_step_is_noted_too():
    guard, observer = Guard(HostMemory()), Observer()
    told = []
    observer.on_step = told.append

    class FailsOnceInTheLastLook(FailAt):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if len(told) == 4 and not guard.events:
                raise MESSAGES[0]()
            return func(*args, **(kwargs or {}))

    result, _ = train_tiny(
        {"num_train_epochs": 1, "effective_batch_size": 8},
        services=lambda _: Services(observer, guard),
        inside=FailsOnceInTheLastLook(-1, None),
    )
    assert [event["during"] for event in guard.events] == ["evaluation"]
    assert [row["step"] for row in result.memory if "event" in row] == [4]


def test_what_led_to_a_restart_is_in_the_state_that_is_left(tmp_path):
    guard, observer = Guard(HostMemory()), Observer()
    told = []
    observer.on_step = told.append

    class FailsFromThenOn(FailAt):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if len(told) == 2 and torch.is_grad_enabled() and func is torch.ops.aten.gelu.default:
                raise MESSAGES[0]()
            return func(*args, **(kwargs or {}))

    states = Checkpoints(tmp_path, fingerprint="a")
    with pytest.raises(RestartNeededError):
        train_tiny(
            {"num_train_epochs": 1, "effective_batch_size": 8},
            services=lambda _: Services(observer, guard, checkpoints=states),
            inside=FailsFromThenOn(-1, None),
        )
    left = Checkpoints(tmp_path, fingerprint="a").newest(balance="none")
    events = [line for line in left.memory if "event" in line]
    assert [event["action"] for event in events] == ["cut in two"] * 3
    assert {event["step"] for event in events} == {left.step}


def test_only_the_failing_micro_batch_is_repeated():
    lengths = np.full(16, 4)
    done, failed = [], []

    def work(part):
        if 5 in part and len(part) > 2 and not failed.append(part.tolist()):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        done.append(part.tolist())

    parts = [np.arange(0, 4), np.arange(4, 8), np.arange(8, 16)]
    Guard(HostMemory()).each(parts, lengths, work, Limit(1000), during="a test")
    assert failed == [[4, 5, 6, 7]]
    # The limit that was learned holds for what follows.
    assert done == [[0, 1, 2, 3], [4, 5], [6, 7], [8, 9], [10, 11], [12, 13], [14, 15]]


def test_limits_grow_back_carefully():
    limit = Limit(1000)
    limit.failed(100)
    for _ in range(GROW_AFTER):
        limit.fitted()
    assert limit.tokens == 126
    limit.failed(100)
    for _ in range(2 * GROW_AFTER - 1):
        limit.fitted()
    assert limit.tokens == 100, "after a failed attempt it waits twice as long"
    limit.fitted()
    assert limit.tokens == 126
    for _ in range(100 * GROW_AFTER):
        limit.fitted()
    assert limit.tokens == 1000


def test_evaluation_has_its_own_limit():
    model, tokens = tiny_model(), examples(40, 3).tokens
    expected = predict_logits(model, tokens, pad_token_id=0, device=CPU)
    free = Cap(2**60)
    with free:
        predict_logits(model, tokens, pad_token_id=0, device=CPU, guard=Guard(free))
    cap = Cap(free.peak_bytes // 3)
    guard = Guard(cap)
    with cap:
        logits = predict_logits(model, tokens, pad_token_id=0, device=CPU, guard=guard)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    assert guard.evaluation.tokens < 40 * 30 < guard.training.tokens


@pytest.mark.parametrize("message", range(len(MESSAGES)))
def test_a_lack_of_memory_is_known_in_every_form(message):
    assert is_out_of_memory(MESSAGES[message]())


def test_the_system_may_say_it_too():
    assert is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert not is_out_of_memory(OSError(errno.EACCES, "Permission denied"))


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: an illegal instruction was encountered",
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: the launch timed out and was terminated",
        "CUDA error: all CUDA-capable devices are busy or unavailable",
        "CUDA error: unknown error",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle)`",
    ],
)
def test_errors_that_stick_are_known(said):
    assert is_poisoned(RuntimeError(said))
    assert not is_out_of_memory(RuntimeError(said))


def test_other_errors_are_not_taken_for_it():
    def wrong(_part):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)")

    assert not is_out_of_memory(ValueError("out of memory"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Guard(HostMemory()).each([np.arange(2)], np.ones(2, int), wrong, Limit(10), during="a test")


def test_a_poisoned_context_asks_for_a_restart_at_once():
    def poisoned(_part):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert is_poisoned(RuntimeError("CUDA error: unspecified launch failure"))
    with pytest.raises(RestartNeededError, match="illegal memory access"):
        Guard(HostMemory()).each([np.arange(2)], np.ones(2, int), poisoned, Limit(10), during="a test")


class Leaky:
    """A device that keeps what a failure left."""

    def __init__(self, *, answers=True):
        self.allocated, self.answers = 0, answers

    def allocated_bytes(self):
        return self.allocated

    def free(self):
        if not self.answers:
            raise RuntimeError("CUDA error: out of memory")


def test_memory_that_does_not_come_back_asks_for_a_restart():
    memory = Leaky()
    guard = Guard(memory)

    def work(_part):
        memory.allocated += LEAK_BYTES + 1
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(RestartNeededError, match=r"0\.06 GiB did not come back"):
        guard.each([np.arange(4)], np.ones(4, int), work, Limit(10), during="a test")
    assert guard.events[-1]["event"] == "leak"


def test_a_device_that_no_longer_answers_asks_for_a_restart():
    def work(_part):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(RestartNeededError, match="no longer answers"):
        Guard(Leaky(answers=False)).each([np.arange(4)], np.ones(4, int), work, Limit(10), during="a test")


def test_the_tensors_of_a_failed_attempt_are_gone_when_memory_is_freed():
    """An error's traceback holds the frames and their tensors: it must be gone before memory is counted."""
    cap = Cap(2**60)
    seen = []

    def work(part):
        held = torch.zeros(10_000 * len(part))
        if len(part) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        del held

    def free():
        seen.append(cap.allocated_bytes())

    cap.free = free
    with cap:
        Guard(cap).each([np.arange(2)], np.ones(2, int), work, Limit(10), during="a test")
    assert seen == [0]


def test_a_lever_of_training_is_not_spent_on_evaluation():
    drawn = []
    guard = Guard(HostMemory())
    guard.retreats = [
        Retreat("checkpointing", lambda: not drawn.append("checkpointing"), of_training=True),
        Retreat("embedding", lambda: not drawn.append("embedding")),
    ]
    failures = iter([True, False])

    def work(_part):
        if next(failures):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    guard.each([np.arange(1)], np.ones(1, int), work, Limit(10), during=EVALUATION)
    assert drawn == ["embedding"]
    guard.give_way()
    assert drawn == ["embedding", "checkpointing"]
    assert guard.retreats == []


def test_a_plan_made_in_need_is_where_a_limit_begins_and_not_what_it_may_grow_to():
    assert Limit(0).tokens == Limit(0).planned == 1
    limit = Limit(1000, 10)
    for _ in range(100 * GROW_AFTER):
        limit.fitted()
    assert limit.tokens == 1000


def test_retreats_that_change_nothing_are_passed_over():
    failures = iter([True, True, False])

    def work(_part):
        if next(failures):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    drawn = []
    guard = Guard(HostMemory())
    guard.retreats = [
        Retreat("useless", lambda: bool(drawn.append("useless"))),
        Retreat("first", lambda: not drawn.append("first")),
        Retreat("second", lambda: not drawn.append("second")),
    ]
    guard.each([np.arange(1)], np.ones(1, int), work, Limit(10), during="a test")
    assert drawn == ["useless", "first", "second"]
    assert [event["action"] for event in guard.events] == ["first", "second"]
