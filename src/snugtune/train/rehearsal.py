"""The training step run on shapes alone: the engine's own functions on fake tensors, under the ledger.

Fake tensors have no memory behind them and carry a device type, so that casts, attention and the backward
pass are chosen as in a real run. Two optimiser steps are taken, the second of two micro-batches, because the
later one runs beside gradients; and one batch without gradients, because validation runs between steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, PretrainedConfig

from snugtune.config import FitConfig
from snugtune.errors import UserInputError
from snugtune.memory import card, trace
from snugtune.memory.quantized import quantize_shapes
from snugtune.memory.setup import Setup
from snugtune.memory.shapes import Shapes
from snugtune.memory.trace import Ledger, Trace
from snugtune.model import attention
from snugtune.model.adapter import trainable_state, wrap
from snugtune.model.backbone import set_dropout, supported_attention, without_cache
from snugtune.model.checkpointing import checkpoint_layers, encoder_layers
from snugtune.model.first_token import read_first_token_only
from snugtune.model.head import find_head
from snugtune.model.known import find_config, no_text_classifier
from snugtune.model.offload import embedding_to_host, word_embedding
from snugtune.model.packing import PackedTexts
from snugtune.model.parameters import meta_model
from snugtune.model.pooling import planned_config
from snugtune.train.forward import INFERENCE_TOKENS, classify
from snugtune.train.optim import allocate_state, make_optimizer
from snugtune.train.ranks import add_penalty_gradients, forget_importance, watch_importance
from snugtune.train.step import MicroBatch, accumulate_gradients, clip_gradients, trained_parameters
from snugtune.train.transaction import UpdateSnapshot, is_copied_before_update

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Rehearsal:
    """A model of shapes, built once, and its step at any micro-batch and length.

    Raises:
        UserInputError: the model cannot be found, or is no text classifier, or lacks the target modules.
    """

    def __init__(self, config: FitConfig, num_labels: int, setup: Setup) -> None:
        self.config, self.num_labels, self.setup = config, num_labels, setup
        self._fake = Shapes()
        self.model, self.head_names = _build(config, num_labels, setup, self._fake)
        self._traces: dict[tuple[int, int, int, bool], Trace] = {}

    def trace(self, micro_batch: int, length: int, *, work: bool = False, tokens: int | None = None) -> Trace:
        """Everything the step allocates on the device with texts of ``length`` tokens, virtual ones included.

        Packed texts may have other lengths: so many ``tokens`` in all, and ``length`` is the longest's.
        Validation, where micro-batches are cut by tokens, is part of it (see ``validation_rows``).
        """
        tokens = micro_batch * length if tokens is None else tokens
        with_work = self._traces.get((micro_batch, length, tokens, True))
        if with_work is not None:
            return with_work
        key = (micro_batch, length, tokens, work)
        if key not in self._traces:
            self._traces[key] = self._run(micro_batch, length, tokens, work)
        return self._traces[key]

    def _run(self, micro_batch: int, length: int, tokens: int, work: bool) -> Trace:
        on_card = self.setup.device == "cuda"
        labels = self.num_labels if self.config.is_multi_label else None
        ledger = Ledger(self.model, workspaces=on_card, work=work)
        with ExitStack() as stack:
            stack.enter_context(self._fake)
            if on_card:
                stack.enter_context(card.CardSemantics())
            self._mark_weights(ledger)
            stack.enter_context(ledger)
            run_steps(
                self.model, self.config, self.head_names, ledger,
                batch=lambda: self._batch(micro_batch, length, tokens, labels), autocast=self._autocast,
                accumulates=self.setup.accumulates, on_card=on_card,
                evaluate=lambda: self._evaluate(ledger, length, tokens),
            )  # fmt: skip
        return ledger.close().without(trace.HOST)

    def _mark_weights(self, ledger: Ledger) -> None:
        if self.setup.embedding_on_host:
            ledger.mark([word_embedding(self.model).weight], trace.HOST)
        known = {id(word_embedding(self.model).weight)} if self.setup.embedding_on_host else set()
        tensors = (*self.model.parameters(), *self.model.buffers())
        ledger.mark((t for t in tensors if id(t) not in known), trace.WEIGHTS)

    def _batch(self, micro_batch: int, length: int, tokens: int, labels: int | None) -> MicroBatch:
        if self.setup.attention == "packed":
            return _packed_batch(micro_batch, length, tokens, labels)
        return _batch(micro_batch, self._text_length(length), labels)

    def _text_length(self, length: int) -> int:
        """Of the ``length`` tokens that are computed for a text, its own."""
        return max(1, length - self.config.virtual_tokens)

    def _autocast(self, *, cache_enabled: bool = True) -> AbstractContextManager[Any]:
        dtype = DTYPES[self.setup.compute]
        if dtype == torch.float32:
            return nullcontext()
        return torch.autocast("cpu", dtype=dtype, cache_enabled=cache_enabled)

    def _evaluate(self, ledger: Ledger, length: int, tokens: int) -> None:
        rows = validation_rows(tokens, length, chunked=self.setup.chunked_evaluation)
        self.model.eval()
        # Inference mode, which fake tensors have not, keeps none of autocast's casts of weights.
        autocast = self._autocast(cache_enabled=False)
        with ledger.during(trace.EVALUATION), torch.no_grad(), autocast:
            classify(self.model, _batch(rows, self._text_length(length)).inputs).float()


def validation_rows(tokens: int, length: int, *, chunked: bool) -> int:
    """Rows of ``length`` tokens that validation takes at a time: of training's ``tokens`` if ``chunked``."""
    return max(1, (tokens if chunked else INFERENCE_TOKENS) // length)


def model_shape(config: FitConfig, num_labels: int) -> PretrainedConfig:
    """The configuration of the model as the fit will build it, with the averaging layer where it adds one.

    Raises:
        UserInputError: the model cannot be found, or Transformers has no text classifier of its kind.
    """
    published = find_config(config.model, num_labels, revision=config.revision)
    shape = planned_config(published, config.model, config.pooling)
    shape.problem_type = config.problem_type
    if type(shape) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserInputError(no_text_classifier(shape.model_type))
    return shape


def run_steps(
    model: nn.Module,
    config: FitConfig,
    head_names: tuple[str, ...],
    ledger: Ledger,
    *,
    batch: Any,
    autocast: Any,
    accumulates: bool,
    on_card: bool,
    evaluate: Callable[[], None],
) -> None:
    """Two optimiser steps as the engine takes them and a look at validation, on fake tensors or real ones.

    The look comes beside the optimiser's state and the last step's gradients, which the next step drops. On a
    CPU the copy of the best weights so far lies in the same memory.
    """
    model.train()
    forget_importance(model)
    optimizer = make_optimizer(model, config, head_names)
    allocate_state(optimizer)
    trained = trained_parameters(model)
    for state in optimizer.state.values():
        ledger.mark(state.values(), trace.STATE)
    with ledger.during(trace.BEST):
        best = {} if on_card else trainable_state(model)
    for micro_batches in (1, 2 if accumulates else 1):
        optimizer.zero_grad(set_to_none=True)
        batches = _inputs(ledger, batch, micro_batches)
        accumulate_gradients(
            model, batches, 2, autocast=autocast, backward=_backward(ledger, model),
            label_smoothing=config.label_smoothing,
        )  # fmt: skip
        with ledger.during(trace.UPDATE):
            copied = is_copied_before_update(config)
            snapshot = UpdateSnapshot(trained, optimizer, None) if copied else None
            add_penalty_gradients(model)
            clip_gradients(trained, config.max_grad_norm)
            optimizer.step()
            watch_importance(model)
            del snapshot
    evaluate()
    optimizer.zero_grad(set_to_none=True)
    del best


def _inputs(ledger: Ledger, batch: Any, count: int) -> Iterator[MicroBatch]:
    for _ in range(count):
        with ledger.during(trace.INPUTS):
            made = batch()
        yield made
        del made


def _backward(ledger: Ledger, model: nn.Module) -> Any:
    def backward(loss: Tensor) -> None:
        # What loss.backward() ends in; called by that name, the card's mode would sleep meanwhile, and
        # checkpointed layers be recomputed without it.
        torch.autograd.Variable._execution_engine.run_backward(
            (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
        )
        ledger.mark((p.grad for p in model.parameters() if p.requires_grad), trace.GRADIENTS)

    return backward


def _batch(micro_batch: int, length: int, labels: int | None = None) -> MicroBatch:
    """Texts of one class each or, given their number, of any of the ``labels``."""
    # Both come to the device as one (see ``forward.collate``).
    both = torch.ones(2, micro_batch, length, dtype=torch.int64)
    inputs = {"input_ids": both[0], "attention_mask": both[1]}
    return MicroBatch(inputs, _target(micro_batch, labels))


def _packed_batch(micro_batch: int, length: int, tokens: int, labels: int | None = None) -> MicroBatch:
    ids, positions = (torch.ones(1, tokens, dtype=torch.int64) for _ in range(2))
    boundaries = torch.zeros(micro_batch + 1, dtype=torch.int32)
    read_at = torch.zeros(micro_batch, dtype=torch.int64)
    texts = PackedTexts(ids, positions, boundaries, read_at, length)
    return MicroBatch(texts, _target(micro_batch, labels))


def _target(micro_batch: int, labels: int | None) -> Tensor:
    one = torch.zeros(micro_batch, dtype=torch.int64)
    return one if labels is None else torch.zeros(micro_batch, labels)


def _build(
    config: FitConfig, num_labels: int, setup: Setup, fake: Shapes
) -> tuple[nn.Module, tuple[str, ...]]:
    if not setup.dropout:
        config = config.model_copy(update={"hidden_dropout": 0.0, "lora_dropout": 0.0})
    shape = model_shape(config, num_labels)
    set_dropout(shape, config.hidden_dropout)
    without_cache(shape)
    for key in ("attention_probs_dropout_prob", "attention_dropout"):
        if hasattr(shape, key):
            setattr(shape, key, setup.attention_dropout)
    if getattr(shape, "pad_token_id", None) is None:
        shape.pad_token_id = 0
    kernel = card.register() if setup.device == "cuda" else attention.register()
    fused = supported_attention(shape, kernel)
    shape._attn_implementation = "eager" if setup.attention == "eager" else fused
    plain = meta_model(shape, dtype=DTYPES[setup.weights])
    if setup.first_token_only:
        read_first_token_only(plain)
    if setup.top_layers is not None:
        count = len(encoder_layers(plain))
        top = tuple(range(count - min(setup.top_layers, count), count))
        config = config.model_copy(update={"layers_to_transform": top})
    head_names = find_head(plain, config.modules_to_save).modules_to_save
    model = wrap(plain, config)
    if setup.quantized:
        kept, on_card = config.modules_to_save or (), setup.device == "cuda"
        quantize_shapes(model, DTYPES[setup.compute], modules_to_save=kept, on_card=on_card)
    with fake, _no_values():
        _fake_tensors(model)
    if setup.embedding_on_host:
        embedding_to_host(model)
    if setup.activation_checkpointing:
        checkpoint_layers(model, setup.activation_checkpointing)
    return model, head_names


@contextmanager
def _no_values() -> Iterator[None]:
    with torch.no_grad():
        yield


def _fake_tensors(model: nn.Module) -> None:
    """Replace meta tensors by fake ones that say they are on the CPU; shared ones stay shared."""
    _remake(model, lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))


def materialise(model: nn.Module, device: torch.device | str = "cpu") -> None:
    """Zeros on ``device`` in place of a rehearsal's fake tensors, for real steps of its model.

    Whole numbers are zero, too, a row that every table has. Real tensors stay, and shared ones stay shared.
    """

    def zeros(tensor: Tensor) -> Tensor:
        is_fake = isinstance(tensor.data, FakeTensor)
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=device) if is_fake else tensor

    _remake(model, zeros)


def _remake(model: nn.Module, make: Callable[[Tensor], Tensor]) -> None:
    """Put what ``make`` makes of each parameter and buffer in its place."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    fresh = make(tensor)
                    is_new_parameter = isinstance(tensor, nn.Parameter) and fresh is not tensor
                    made[id(tensor)] = (
                        nn.Parameter(fresh, requires_grad=tensor.requires_grad) if is_new_parameter else fresh
                    )
                held[name] = made[id(tensor)]  # type: ignore[assignment]
        # PEFT keeps the numbers of its virtual tokens beside parameters and buffers.
        numbers = getattr(module, "prompt_tokens", {})
        for name in numbers:
            numbers[name] = torch.zeros(numbers[name].shape, dtype=torch.int64)
