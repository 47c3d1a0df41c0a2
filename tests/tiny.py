"""A tiny random BERT and a finished run made from it in about a second, for tests of what comes after fit."""

import json
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
)

TOPICS = {"Card": "card stolen wallet", "Fees": "fee charged twice", "Loan": "loan interest rate"}
FILLER = ["please", "help", "me", "the", "bank", "did", "not", "answer", "my", "call", "about", "it"]
LABELS = tuple(TOPICS)


def texts_and_labels(n, seed=0):
    """``n`` short texts whose label can be read off them."""
    rng = np.random.default_rng(seed)
    labels = [LABELS[i % len(LABELS)] for i in range(n)]
    texts = [
        " ".join([*rng.permutation(TOPICS[label].split()), *rng.choice(FILLER, rng.integers(0, 5))])
        for label in labels
    ]
    return texts, labels


def write_model(folder, layers=1):
    """A BERT of one layer (or more) with random weights, and its tokenizer of whole words."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    words = sorted({word for topic in TOPICS.values() for word in topic.split()} | set(FILLER))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *map(str, range(10))]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=64, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    return folder


def write_run(folder, model_folder, *, threshold=0.5):
    """A finished run whose classifier is a logistic regression; ``text`` and ``label`` are its columns."""
    folder = Path(folder)
    model = BertForSequenceClassification.from_pretrained(
        model_folder, id2label=dict(enumerate(LABELS)), label2id={name: i for i, name in enumerate(LABELS)}
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    texts, given = texts_and_labels(600)
    with torch.inference_mode():
        pooled = model.bert(**tokenizer(texts, padding=True, return_tensors="pt")).pooler_output.numpy()
    regression = LogisticRegression(C=10, max_iter=1000).fit(pooled, given)
    assert tuple(regression.classes_) == LABELS
    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(regression.coef_))
        model.classifier.bias.copy_(torch.from_numpy(regression.intercept_))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    record = {
        "labels": list(LABELS),
        "label_aliases": {"card": "Card"},
        "columns": {"text": ["text"], "label": "label"},
        "model": {"folder": "model", "max_length": 64},
        "decision": {"mixture": {}, "confidence_threshold": threshold, "precision_target": 0.95},
    }
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    return folder
