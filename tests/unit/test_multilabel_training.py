"""Label sets through probe, baseline, loss and engine: parity with others, whatever the cut."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import LinearSVC
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from snugtune.config import MULTI_LABEL, make_config
from snugtune.data.tokens import Tokens, Truncation
from snugtune.evaluate.baseline import ABSENT_SCORE, TfidfBaseline
from snugtune.evaluate.multilabel.linear import fit_each_label
from snugtune.model.adapter import wrap
from snugtune.model.head import find_head
from snugtune.train.engine import Examples, score_logits, train
from snugtune.train.probe import HeldOut, fit_probes
from snugtune.train.rehearsal import _batch
from snugtune.train.step import summed_loss
from tiny_training import CPU, examples, tiny_model


def set_examples(n, seed):
    """Texts in which each of the tokens 10 to 13 stands for a label that applies."""
    rng = np.random.default_rng(seed)
    y = (rng.random((n, 4)) < 0.4).astype(np.int8)
    ids = [
        np.r_[1, 10 + np.flatnonzero(row), rng.integers(20, 60, rng.integers(1, 25))].astype(np.int32)
        for row in y
    ]
    lengths = np.array([len(row) for row in ids])
    return Examples(Tokens(ids, lengths, Truncation(64, n, 0, int(lengths.sum()), 0)), y)


def trained(tokens_per_micro_batch, rows=32, **settings):
    config = make_config(
        {
            "train": "x", "problem_type": MULTI_LABEL, "effective_batch_size": 8, "num_train_epochs": 2,
            "tokens_per_micro_batch": tokens_per_micro_batch, **settings,
        }
    )  # fmt: skip
    plain = tiny_model()
    head_names = find_head(plain).modules_to_save
    model = wrap(plain, config)
    result = train(
        model, set_examples(rows, 1), set_examples(16, 2), config, head_names=head_names, pad_token_id=0,
        dtype=torch.float32, device=CPU,
    )  # fmt: skip
    return result, {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def test_the_loss_is_that_of_transformers():
    rng = np.random.default_rng(0)
    target = torch.from_numpy((rng.random((5, 3)) < 0.5).astype(np.float32))
    ids = torch.from_numpy(rng.integers(20, 60, (5, 7)))
    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        num_labels=3, problem_type=MULTI_LABEL,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    out = model(input_ids=ids, labels=target)
    assert summed_loss(out.logits, target).item() / 5 == pytest.approx(out.loss.item(), rel=1e-6)


def test_smoothing_draws_targets_towards_a_half():
    logits, target = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 0.0]])
    by_hand = nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor([[0.9, 0.1]]))
    assert summed_loss(logits, target, label_smoothing=0.2).item() == pytest.approx(by_hand.item())


def test_the_cut_changes_neither_loss_nor_weights():
    whole, weights = trained(4096)
    steps = [row["loss"] for row in whole.metrics if "loss" in row]
    for tokens in (40, 75):
        cut, others = trained(tokens)
        assert [row["loss"] for row in cut.metrics if "loss" in row] == pytest.approx(steps, abs=1e-6)
        for name, weight in weights.items():
            assert (weight - others[name]).abs().max() < 1e-6, name


def test_labels_are_learnt():
    result, _ = trained(
        4096, rows=240, method="full", num_train_epochs=5, learning_rate=3e-3, head_learning_rate=3e-3
    )
    first = next(row["eval_score"] for row in result.metrics if "eval_score" in row)
    assert result.best_score > first + 0.1


def test_looks_at_validation_score_the_best_common_threshold():
    y = np.array([[1, 0], [0, 1], [1, 1]], np.int8)
    logits = np.array([[-1.0, -3.0], [-3.0, -1.0], [-1.0, -1.0]], np.float32)
    score, loss = score_logits(logits, y, "f1_micro")
    assert score == 1.0
    expected = nn.functional.binary_cross_entropy_with_logits(
        torch.from_numpy(logits), torch.from_numpy(y.astype(np.float32))
    )
    assert loss == pytest.approx(expected.item())
    assert score_logits(logits, np.array([0, 1, 0]), "f1_micro")[0] == pytest.approx(1.0)


def features(rows=300, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, 20)).astype(np.float32)
    logits = X @ rng.normal(size=(20, 5)) - np.array([0, 1, 2, 0, 0])
    y = (logits + rng.logistic(size=logits.shape) > 0).astype(np.int8)
    return X, y


@pytest.mark.parametrize("biased", [True, False])
def test_all_labels_at_once_are_one_against_the_rest(biased):
    X, y = features()
    weights, bias = fit_each_label(X.astype(np.float64), y, 0.1, biased=biased)
    theirs = OneVsRestClassifier(
        LogisticRegression(C=0.1, tol=1e-8, max_iter=1000, fit_intercept=biased)
    ).fit(X, y)
    for k, one in enumerate(theirs.estimators_):
        assert weights[k] == pytest.approx(one.coef_[0], abs=2e-3)
        assert bias[k] == pytest.approx(one.intercept_[0] if biased else 0.0, abs=2e-3)


def test_the_probe_knows_labels_of_no_row_and_of_all_rows():
    X, y = features(500)
    y[:, 3], y[:, 4] = 0, 1
    config = BertConfig(vocab_size=60, hidden_size=20, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=16, num_labels=5)  # fmt: skip
    head = find_head(BertForSequenceClassification(config))
    best, _ = fit_probes(X[:400], y[:400], 5, head, HeldOut(X[400:], y[400:]))
    probabilities = torch.sigmoid(best.logits(torch.from_numpy(X), head.activation)).numpy()
    assert probabilities[:, 3].max() < 0.01
    assert probabilities[:, 4].min() > 0.99
    right = ((probabilities > 0.5) == (y > 0))[400:, :3]
    assert right.mean() > 0.8


TEXTS = ["card stolen", "fee charged", "card fee", "loan rate", "stolen wallet", "nothing here"] * 20
SETS = np.array(
    [[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]] * 20, np.int8
)


def test_the_baseline_tells_each_label_from_the_rest(tmp_path):
    baseline = TfidfBaseline().fit(TEXTS, SETS, 4)
    scores = baseline.decision(TEXTS)
    assert ((scores[:, :3] > 0) == (SETS[:, :3] > 0)).all()
    assert (scores[:, 3] == ABSENT_SCORE).all()
    X = baseline._features(TEXTS)
    theirs = LinearSVC(random_state=0).fit(X, SETS[:, 0])
    assert scores[:, 0] == pytest.approx(theirs.decision_function(X), abs=5e-3)  # weights are float16
    baseline.save(tmp_path)
    assert (TfidfBaseline.load(tmp_path).decision(TEXTS) == scores).all()


def test_the_baseline_leaves_out_rows_of_unseen_labels_and_knows_labels_of_all_rows():
    y = SETS.copy()
    y[:, 3] = 1
    y[0] = -1
    scores = TfidfBaseline().fit(TEXTS, y, 4).decision(TEXTS)
    assert (scores[:, 3] == 1).all()
    with pytest.raises(ValueError, match=r"shape \(N, 3\)"):
        TfidfBaseline().fit(TEXTS, y, 3)


def test_the_rehearsal_holds_a_target_for_each_label():
    assert _batch(2, 8, 5).target.shape == (2, 5)
    assert _batch(2, 8).target.shape == (2,)


def test_one_label_a_text_trains_as_before():
    y = examples(8, 0).y
    logits = torch.randn(8, 4)
    by_hand = nn.functional.cross_entropy(logits, torch.from_numpy(y), reduction="sum")
    assert summed_loss(logits, torch.from_numpy(y)).item() == pytest.approx(by_hand.item())
