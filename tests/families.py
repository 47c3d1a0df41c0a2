"""Tiny random model folders of every usual architecture: configuration, safetensors, fast tokenizer."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

TOPICS = ("card stolen wallet", "fee charged twice", "loan interest rate")
FILLER = ("please", "help", "me", "the", "bank", "did", "not", "answer", "my", "call", "about", "it")
LABELS = ("Card", "Fees", "Lo/an ü")
HIDDEN, LAYERS, VOCABULARY = 32, 2, 200

_SIZES = {
    "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 66, "vocab_size": VOCABULARY, "pad_token_id": 1,
}  # fmt: skip
_DECODER = {**_SIZES, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": None}
_DEBERTA = {
    "relative_attention": True, "position_buckets": 16, "norm_rel_ebd": "layer_norm", "type_vocab_size": 0,
    "share_att_key": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False,
    "pooler_hidden_size": HIDDEN,
}  # fmt: skip

FAMILIES = {
    "bert": _SIZES,
    "roberta": _SIZES,
    "xlm-roberta": _SIZES,
    "distilbert": {
        "dim": HIDDEN, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 66,
        "vocab_size": VOCABULARY, "pad_token_id": 1,
    },
    "deberta-v2": {**_SIZES, **_DEBERTA},
    "electra": {**_SIZES, "embedding_size": 16},
    "albert": {**_SIZES, "embedding_size": 16},
    "mpnet": _SIZES,
    "modernbert": {**_SIZES, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
    "camembert": _SIZES,
    "gpt2": {
        "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4, "n_positions": 66, "vocab_size": VOCABULARY,
        "bos_token_id": 3, "eos_token_id": 3,
    },
    "llama": _DECODER,
    "qwen2": _DECODER,
    "qwen3": _DECODER,
    "gemma2": {**_DECODER, "pad_token_id": 1, "query_pre_attn_scalar": 8},
    "gemma3_text": {**_DECODER, "pad_token_id": 1, "query_pre_attn_scalar": 8},
    "mistral": _DECODER,
}  # fmt: skip
"""Settings of a tiny configuration by model type."""

WIDE = {
    family: {"n_embd": 64}
    if family == "gpt2"
    else {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    for family in FAMILIES
}
"""Settings by model type with which each row of a weight matrix is one block of 4-bit weights or two."""

DECODERS = ("gpt2", "llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral")
WITHOUT_PAD_TOKEN = ("gpt2", "llama", "mistral")
"""Whose tokenizers, as published, have no pad token."""


def texts_and_labels(n, seed=0):
    """``n`` texts of 3 to 12 words whose class id can be read off them."""
    generator = torch.Generator().manual_seed(seed)
    texts, y = [], []
    for i in range(n):
        count = int(torch.randint(0, 10, (1,), generator=generator))
        words = [FILLER[j] for j in torch.randint(0, len(FILLER), (count,), generator=generator)]
        texts.append(" ".join([*TOPICS[i % 3].split(), *words]))
        y.append(i % 3)
    return texts, y


def make_tokenizer(family, size=VOCABULARY):
    """A fast tokenizer of whole words with ``size`` ids, and the special tokens of its kind."""
    if family == "qwen2":
        return _byte_level_tokenizer()
    words = [*dict.fromkeys(word for topic in TOPICS for word in topic.split()), *FILLER]
    tokens = ["<unk>", "<pad>", "<s>", "</s>", *words]
    tokens += [f"word{i}" for i in range(size - len(tokens))]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if family not in DECODERS:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
        )
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    if family not in WITHOUT_PAD_TOKEN:
        special["pad_token"] = "<pad>"
    if family not in DECODERS:
        special |= {"cls_token": "<s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=64, model_input_names=["input_ids", "attention_mask"],
        **special,
    )  # fmt: skip


def _byte_level_tokenizer():
    """Byte-pair encoding: Transformers rebuilds Qwen2's tokenizer as such, whatever the file says."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<unk>", "<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([" ".join([topic, *FILLER]) for topic in TOPICS], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=64, pad_token="<pad>", eos_token="</s>"
    )


def write_family(folder, family, *, tokenizer_size=VOCABULARY, **more):
    """A bare pre-trained model (no classification head) of ``family`` in ``folder``; returns the path.

    ``more`` are settings of its configuration that go before those of ``FAMILIES``.
    """
    torch.manual_seed(0)
    settings = {"initializer_range": 0.2, **FAMILIES[family], **more}
    model = AutoModel.from_config(AutoConfig.for_model(family, **settings))
    model.save_pretrained(folder)
    make_tokenizer(family, tokenizer_size).save_pretrained(folder)
    return Path(folder)
