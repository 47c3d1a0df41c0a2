"""Peers on the same task, as contestants in processes of their own: SetFit, and a frozen sentence encoder.

SetFit (Tunstall et al. 2022, arXiv:2209.11055) trains a sentence encoder on pairs of texts and fits logistic
regression on its embeddings at the end. To see its way, that end is tried now and then on the encoder as it
stands; each such point counts the training so far and the fit of its own head, but not the looks before.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from .common import quiet_libraries
from .datasets import Texts, banking77
from .turns import Report, WorkClock

FIRST_LOOK_S = 20.0
"""Seconds of work before the first look; each next one comes after twice as many."""


def setfit(clock: WorkClock, report: Report, *, options: dict[str, Any], shots: int, iterations: int) -> None:
    """SetFit's own trainer on ``shots`` rows a class (0: all), ``iterations`` pairs of each kind a row.

    It trains to its end or until ``limit_s``.
    """
    import torch
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments
    from sklearn.linear_model import LogisticRegression
    from transformers import PrinterCallback, TrainerCallback

    texts = _prepare(options)
    rows = few_shots(texts.train_labels, shots, options["seed"])
    train = [texts.train[i] for i in rows]
    given = [texts.train_labels[i] for i in rows]
    torch.manual_seed(options["seed"])
    model = SetFitModel.from_pretrained(_minilm())
    model.model_body.max_seq_length = options["max_length"]
    model.model_head = LogisticRegression(max_iter=1000)
    clock.restart()

    def fit_head() -> Any:
        body = model.model_body.eval()
        return LogisticRegression(max_iter=1000).fit(body.encode(train), given)

    def score(head: Any, step: int, more_s: float = 0.0) -> None:
        right = head.predict(model.model_body.encode(texts.test)) == np.array(texts.test_labels)
        report({"work_s": clock.work_s + more_s, "step": step, "accuracy": float(right.mean())})

    def look(step: int) -> None:
        """What the end would give now; only if training ended here, its head would be work."""
        with clock.paused():
            began = time.perf_counter()
            head = fit_head()
            score(head, step, time.perf_counter() - began)
            model.model_body.train()

    class Looks(TrainerCallback):
        due_s = FIRST_LOOK_S

        def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.offer_turn()
            if clock.work_s >= options["limit_s"]:
                control.should_training_stop = True
            elif clock.work_s >= self.due_s:
                look(state.global_step)
                self.due_s = 2 * clock.work_s

    arguments = TrainingArguments(
        num_iterations=iterations, num_epochs=1, batch_size=16, seed=options["seed"], report_to="none",
        save_strategy="no", logging_strategy="no", show_progress_bar=False,
        output_dir=options["scratch"],
    )  # fmt: skip
    trainer = Trainer(
        model=model, args=arguments, train_dataset=Dataset.from_dict({"text": train, "label": given}),
        callbacks=[Looks()],
    )  # fmt: skip
    trainer.st_trainer.remove_callback(PrinterCallback)
    trainer.train_embeddings(train, given)
    head = fit_head()
    with clock.paused():
        score(head, trainer.st_trainer.state.global_step)


def frozen(clock: WorkClock, report: Report, *, options: dict[str, Any]) -> None:
    """sentence-transformers' embeddings of every row, and logistic regression on them."""
    from sentence_transformers import SentenceTransformer
    from sklearn.linear_model import LogisticRegression

    texts = _prepare(options)
    encoder = SentenceTransformer(_minilm(), device=None)
    encoder.max_seq_length = options["max_length"]
    clock.restart()
    head = LogisticRegression(max_iter=1000).fit(encoder.encode(texts.train), texts.train_labels)
    with clock.paused():
        right = head.predict(encoder.encode(texts.test)) == np.array(texts.test_labels)
        report({"work_s": clock.work_s, "step": 0, "accuracy": float(right.mean())})


def few_shots(labels: list[str], shots: int, seed: int) -> list[int]:
    """Up to ``shots`` rows of each label at random, in order; all rows for 0."""
    if not shots:
        return list(range(len(labels)))
    order = np.random.default_rng(seed).permutation(len(labels)).tolist()
    taken: dict[str, list[int]] = {}
    for i in order:
        if len(taken.setdefault(labels[i], [])) < shots:
            taken[labels[i]].append(i)
    return sorted(i for rows in taken.values() for i in rows)


def _prepare(options: dict[str, Any]) -> Texts:
    import torch

    quiet_libraries()
    torch.set_num_threads(options["threads"])
    return banking77(Path(options["folder"]))


def _minilm() -> str:
    """The published model's folder: sentence-transformers reads its pooling from there."""
    from snugtune.model.backbone import resolve

    return resolve("minilm")
