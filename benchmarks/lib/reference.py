"""The recipe that everyone copies: Transformers Trainer and PEFT, as a popular blog post has it.

LoRA of rank 16 on query and value, dropout of .1 in adapter and model, the classifier in ``modules_to_save``,
small batches with gradient accumulation, float32 weights under autocast, linear decay. Where the post leaves
a choice, the one that is usual or kinder to the recipe was taken: ``lora_alpha`` is twice the rank; the
learning rate is 1e-4; the rows of a batch are padded to the longest of them unless told otherwise; and the
decay is spread over more epochs than the time limit allows, so that the rate stays high. What the installed
Trainer makes of these settings (some releases sum the loss over accumulated batches) is left as it is.
"""

from __future__ import annotations

import shutil
import tempfile
import time
import weakref
from collections.abc import Callable
from typing import Any, Literal

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from snugtune.model.backbone import set_dropout
from snugtune.model.first_token import read_first_token_only

Padding = Literal["longest", "max_length"]

SETTINGS: dict[str, Any] = {
    "r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.1,
    "target_modules": ["query", "value"],
    "modules_to_save": ["classifier"],
    "learning_rate": 1e-4,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "gradient_accumulation_steps": 4,
    "num_train_epochs": 20,
    "train_sampling_strategy": "random",
    "hidden_dropout": None,
    "weights": "float32",
    "attention": None,
    "first_token_only": False,
}
"""``hidden_dropout`` None is the model's own, ``attention`` None what Transformers chooses, and with
``first_token_only`` the last layer computes what the head reads: our levers, for the ladder."""

TRAINER_SETTINGS = (
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
    "learning_rate", "num_train_epochs", "train_sampling_strategy",
)  # fmt: skip


class TargetReachedError(Exception):
    """Raised out of a training loop when there is nothing left to wait for."""


class Rows(Dataset[dict[str, Any]]):
    """Tokenized examples as the Trainer takes them."""

    def __init__(self, examples: Any) -> None:
        self._ids = [row.tolist() for row in examples.tokens.ids]
        self._y = examples.y.tolist()

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"input_ids": self._ids[i], "attention_mask": [1] * len(self._ids[i]), "labels": self._y[i]}


class StepCallback(TrainerCallback):
    """Calls ``on_step`` after each optimiser step, and notes when training proper began and ended."""

    def __init__(
        self,
        on_step: Callable[[int], None] = lambda _step: None,
        on_begin: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_step, self._on_begin = on_step, on_begin
        self.began_s = self.ended_s = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._on_begin()
        self.began_s = time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ended_s = time.perf_counter()

    def on_step_end(self, _args: Any, state: Any, _control: Any, **__: Any) -> None:
        self._on_step(state.global_step)


def reference_model(source: str, n_classes: int, settings: dict[str, Any]) -> nn.Module:
    """The stock model with PEFT's adapter; float32 and dropout as published unless ``settings`` differ."""
    config = AutoConfig.from_pretrained(source, num_labels=n_classes, trust_remote_code=False)
    if settings["hidden_dropout"] is not None:
        set_dropout(config, settings["hidden_dropout"])
    model = AutoModelForSequenceClassification.from_pretrained(
        source, config=config, dtype=getattr(torch, settings["weights"]),
        attn_implementation=settings["attention"], trust_remote_code=False,
    )  # fmt: skip
    if settings["first_token_only"] and not read_first_token_only(model):
        raise ValueError(f"the last layer of {source} cannot compute the first token alone")
    names = ("r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save")
    lora = LoraConfig(task_type=TaskType.SEQ_CLS, **{name: settings[name] for name in names})
    wrapped = get_peft_model(model, lora)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return wrapped


def make_trainer(
    source: str,
    examples: Any,
    n_classes: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
    padding: Padding = "longest",
    max_length: int = 512,
    seed: int = 0,
    callback: TrainerCallback | None = None,
    **overrides: Any,
) -> Trainer:
    """A Trainer as the recipe sets it up; ``overrides`` replace single ``SETTINGS``.

    Nothing is saved, logged or evaluated on the way: the recipe pays for its training steps alone.
    """
    settings = SETTINGS | overrides
    folder = tempfile.mkdtemp(prefix="reference-")  # the Trainer insists on one
    arguments = TrainingArguments(
        output_dir=folder,
        **{name: settings[name] for name in TRAINER_SETTINGS},
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        use_cpu=device.type == "cpu",
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
    )
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    collator = DataCollatorWithPadding(
        tokenizer, padding=padding, max_length=max_length if padding == "max_length" else None
    )
    trainer = Trainer(
        model=reference_model(source, n_classes, settings),
        args=arguments,
        train_dataset=Rows(examples),
        data_collator=collator,
        callbacks=[callback] if callback else None,
    )
    trainer.remove_callback(PrinterCallback)
    weakref.finalize(trainer, shutil.rmtree, folder, ignore_errors=True)
    return trainer


def train_reference(
    source: str,
    examples: Any,
    n_classes: int,
    look: Callable[[nn.Module, int], bool],
    *,
    look_every: int = 100,
    on_step: Callable[[], bool] = lambda: False,
    on_begin: Callable[[], None] = lambda: None,
    **options: Any,
) -> None:
    """Train until ``look(model, step)``, called every ``look_every`` steps, or ``on_step()`` says to stop.

    Otherwise training ends with its epochs. ``on_begin`` is called when all is loaded and training begins.
    ``options`` are those of ``make_trainer``.
    """

    def after(step: int) -> None:
        over = on_step()
        if (over or step % look_every == 0) and (look(trainer.model, step) or over):
            raise TargetReachedError

    trainer = make_trainer(source, examples, n_classes, callback=StepCallback(after, on_begin), **options)
    try:
        trainer.train()
    except TargetReachedError:
        return
    look(trainer.model, trainer.state.global_step)
