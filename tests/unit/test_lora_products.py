"""LoRA's products without PEFT's detours give the same bits."""

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer

from snugtune.config import make_config
from snugtune.model.adapter import wrap
from snugtune.train.forward import collate
from snugtune.train.step import MicroBatch, add_gradients
from tiny_training import CPU, examples, tiny_model


def _trained(*, as_peft_does, dtype=torch.bfloat16, **settings):
    """The loss and the gradients of one micro-batch."""
    config = make_config({"train": "x", "r": 4, **settings})
    model = wrap(tiny_model().to(dtype), config).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    if as_peft_does:
        for layer in layers:
            layer.__dict__.pop("_cast_input_dtype", None)
    data = examples(6, 1)
    batch = MicroBatch(collate(data.tokens, np.arange(6), 0, CPU), torch.from_numpy(data.y))
    torch.manual_seed(0)
    loss = add_gradients(
        model, batch, 6, autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        backward=lambda value: value.backward(),
    )  # fmt: skip
    return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"lora_alpha": 7.0}])
def test_an_input_left_to_autocast_gives_the_same_bits(settings):
    (loss, gradients), (expected_loss, expected) = (
        _trained(as_peft_does=as_peft_does, **settings) for as_peft_does in (False, True)
    )
    assert torch.equal(loss, expected_loss)
    assert gradients.keys() == expected.keys()
    assert all(torch.equal(gradients[name], gradient) for name, gradient in expected.items())


def test_without_autocast_the_input_is_cast_as_before():
    model = wrap(tiny_model().to(torch.bfloat16), make_config({"train": "x"}))
    layer = next(module for module in model.modules() if isinstance(module, LoraLayer))
    x = torch.ones(2, 32, dtype=torch.bfloat16)
    assert layer._cast_input_dtype(x, torch.float32).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer._cast_input_dtype(x, torch.float32) is x
    assert layer._cast_input_dtype(None, torch.float32) is None
