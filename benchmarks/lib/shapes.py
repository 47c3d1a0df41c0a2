"""Models of a given shape with random weights: as fast and as large as the published ones, without them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    PretrainedConfig,
    XLMRobertaConfig,
)

from snugtune.model import attention
from snugtune.model.quantization import compute_as_trained, quantizable

DEVIATION = 0.02

WORDS = tuple(f"w{i}" for i in range(32))
"""All that the tokenizer knows."""

PAD_ID = 1


def minilm(*, tiny: bool = False) -> PretrainedConfig:
    """The shape of ``all-MiniLM-L6-v2``; ``tiny`` keeps its kind and nothing else."""
    sizes = (
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128,
         "vocab_size": 128}
        if tiny
        else {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
              "intermediate_size": 1536, "vocab_size": 30_522}
    )  # fmt: skip
    return BertConfig(**sizes, max_position_embeddings=512, pad_token_id=PAD_ID)


def xlm_roberta_large(*, tiny: bool = False) -> PretrainedConfig:
    """The shape of ``xlm-roberta-large``; ``tiny`` keeps its kind and nothing else."""
    sizes = (
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128,
         "vocab_size": 128}
        if tiny
        else {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
              "intermediate_size": 4096, "vocab_size": 250_002}
    )  # fmt: skip
    return XLMRobertaConfig(**sizes, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5)


def llama_8b(*, tiny: bool = False) -> PretrainedConfig:
    """The shape of Llama 3 with 8 billion parameters."""
    sizes = (
        {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 256, "vocab_size": 128}
        if tiny
        else {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
              "num_key_value_heads": 8, "intermediate_size": 14_336, "vocab_size": 128_256}
    )  # fmt: skip
    return LlamaConfig(
        **sizes, max_position_embeddings=8192, rope_theta=500_000.0, rms_norm_eps=1e-5, use_cache=False,
        bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip


def write_model(config: PretrainedConfig, folder: Path) -> Path:
    """A model folder of this shape, random weights in bfloat16, with a tokenizer of a few words."""
    torch.manual_seed(0)
    AutoModel.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    """``WORDS`` behind the special tokens of XLM-RoBERTa, at its ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "<pad>", "</s>", "<unk>", *WORDS]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        cls_token="<s>", sep_token="</s>", model_max_length=512,
    )  # fmt: skip


def classifier_in_4bit(
    config: PretrainedConfig, classes: int, dtype: torch.dtype, device: torch.device
) -> Any:
    """A classifier of this shape on ``device``, its layers' matrices in NF4 with double quantisation.

    Weights are drawn and rounded one matrix at a time, so that the whole never exists in full precision.
    """
    import bitsandbytes as bnb

    config.num_labels = classes
    config._attn_implementation = attention.register()
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config, dtype=dtype)
    for name, module in list(quantizable(model, ("score",))):
        parent, _, own = name.rpartition(".")
        layer = bnb.nn.Linear4bit(
            module.in_features, module.out_features, bias=module.bias is not None, compute_dtype=dtype,
            compress_statistics=True, quant_type="nf4", device="meta",
        )  # fmt: skip
        drawn = torch.empty(module.weight.shape, dtype=dtype, device=device).normal_(0, DEVIATION)
        layer.weight = bnb.nn.Params4bit(
            drawn.cpu(), requires_grad=False, quant_type="nf4", compress_statistics=True
        ).to(device)
        setattr(model.get_submodule(parent), own, layer)
    _materialize(model, device)
    model.is_loaded_in_4bit = True
    compute_as_trained(model)
    return model.requires_grad_(False)


def _materialize(model: nn.Module, device: torch.device) -> None:
    """Everything that is still on the meta device becomes real: matrices random, norms ones, biases zeros."""
    for module, name, tensor in _of_no_storage(model):
        if isinstance(tensor, nn.Parameter):
            made = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            if tensor.dim() > 1:
                made.normal_(0, DEVIATION)
            else:
                made.fill_(0.0 if name == "bias" else 1.0)
            setattr(module, name, nn.Parameter(made, requires_grad=False))
        else:
            # Rotary frequencies: their module computes them when it is made.
            fresh: Any = type(module)(model.config)
            module._buffers[name] = fresh._buffers[name].to(device)


def _of_no_storage(model: nn.Module) -> Iterator[tuple[nn.Module, str, torch.Tensor]]:
    for module in list(model.modules()):
        for held in (module._parameters, module._buffers):
            for name, tensor in list(held.items()):
                if tensor is not None and tensor.device.type == "meta":
                    yield module, name, tensor
