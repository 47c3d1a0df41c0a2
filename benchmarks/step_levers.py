"""Levers on one training step, tried on a CPU: LoRA without PEFT's detours, compiled layers.

Each contestant runs forward and backward over the same micro-batches of real complaints, in turns, with the
same adapter weights; its gradients are compared with those of PEFT's own forward. Seconds are of processor
time, so that other work on the machine counts little; with one thread none of them is spent waiting. What was
decided by these figures is in decisions/0014-lora-products.md.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

from lib import common

PEFT, UNCAST, FUSED, GROUPED, COMPILED = (
    "PEFT's own forward", "without the cast of the input", "product added in place",
    "query and value in one product", "compiled layers",
)  # fmt: skip


def main() -> None:
    options = _arguments()
    folder = common.data_folder("cfpb")
    if folder is None:
        return
    common.quiet_libraries()
    import torch

    torch.set_num_threads(options.threads)
    data, model = _model(folder, options)
    batches = _micro_batches(data, options)
    print(f"{len(batches)} micro-batches: {', '.join(f'{b} x {n}' for b, n in map(_shape, batches))}.")
    contestants = {name: copy.deepcopy(model) for name in _levers(options)}
    for name, lever in _levers(options).items():
        lever(contestants[name])
    seconds, first_s = _take_turns(contestants, batches, data, options)
    result = {
        "settings": {name: value for name, value in vars(options).items() if name != "out"},
        "dtype": str(data.dtype).removeprefix("torch."),
        "micro_batches": [_shape(batch) for batch in batches],
        "first_turn_cpu_s": first_s,
        "turn_cpu_s": {name: common.spread(taken) for name, taken in seconds.items()},
        "speed_over_peft": {n: common.ratio_spread(seconds[PEFT], taken) for n, taken in seconds.items()},
        "largest_gradient_difference": _differences(contestants),
    }
    for name, ratio in result["speed_over_peft"].items():
        print(f"{name}: {ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f}) of PEFT's speed")
    common.save_result(f"step-levers-{options.levers}", result, options.out, machine=common.hardware())


def _arguments() -> Any:
    parser = common.parser("LoRA's products and compiled layers against PEFT's forward, on one step.")
    parser.add_argument("--levers", choices=("lora", "compile"), default="lora")
    parser.add_argument("--tokens", type=int, default=8192, help="padded tokens in a micro-batch")
    parser.add_argument("--micro-batches", type=int, default=3, help="in a turn, drawn over all lengths")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each contestant")
    parser.add_argument("--model", default="minilm", help="'minilm', a folder, or a Hub name")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _model(folder: Any, options: Any) -> tuple[Any, Any]:
    from lib.datasets import cfpb, token_data
    from lib.ours import wrap_model

    from snugtune.config import FitConfig

    config = FitConfig(train="", model=options.model, seed=options.seed)
    data = token_data(cfpb(folder), config)
    model, _ = wrap_model(data, config)
    return data, model.train()


def _micro_batches(data: Any, options: Any) -> list[Any]:
    import numpy as np
    import torch

    from snugtune.data.batches import micro_batches
    from snugtune.train.forward import collate
    from snugtune.train.step import MicroBatch

    rng, lengths = np.random.default_rng(options.seed), data.train.tokens.lengths
    rows = rng.choice(len(lengths), 2000, replace=False)
    parts = micro_batches(rows, lengths, options.tokens)
    at = (np.arange(options.micro_batches) + 0.5) * len(parts) / options.micro_batches
    pad = data.backbone.tokenizer.pad_token_id
    return [
        MicroBatch(
            collate(data.train.tokens, parts[int(i)], pad, data.device),
            torch.from_numpy(data.train.y[parts[int(i)]]),
        )
        for i in at
    ]


def _shape(batch: Any) -> tuple[int, int]:
    return tuple(batch.inputs["input_ids"].shape)


def _levers(options: Any) -> dict[str, Callable[[Any], None]]:
    plain: dict[str, Callable[[Any], None]] = {PEFT: lambda _model: None}
    if options.levers == "compile":
        return plain | {COMPILED: _compile_layers}
    return plain | {UNCAST: _uncast, FUSED: _fuse, GROUPED: _group}


def _lora_layers(model: Any) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def _uncast(model: Any) -> None:
    for layer in _lora_layers(model):
        layer.cast_input_dtype_enabled = False


def _fuse(model: Any) -> None:
    """y + s B A x with the second product added into the frozen layer's output."""
    for layer in _lora_layers(model):
        layer.forward = _fused_forward(layer)


def _fused_forward(layer: Any) -> Callable[[Any], Any]:
    a, b, scaling = layer.lora_A["default"], layer.lora_B["default"], layer.scaling["default"]

    def forward(x: Any) -> Any:
        return _add_product(layer.base_layer(x), a(x), b.weight, scaling)

    return forward


def _add_product(y: Any, z: Any, b: Any, scaling: float) -> Any:
    flat = y.view(-1, y.shape[-1])
    return flat.addmm_(z.reshape(-1, z.shape[-1]), b.to(y.dtype).t(), alpha=scaling).view_as(y)


def _group(model: Any) -> None:
    """The A products of query and value, which read the same input, as one."""
    pairs = [(m.query, m.value) for m in model.modules() if hasattr(m, "query") and hasattr(m, "value")]
    for query, value in pairs[:-1]:
        _group_pair(query, value)
    # The last layer's query reads one token alone.
    for layer in pairs[-1]:
        layer.forward = _fused_forward(layer)


def _group_pair(query: Any, value: Any) -> None:
    import torch
    from torch.nn.functional import linear

    of_value: list[Any] = []
    r = query.r["default"]

    def query_forward(x: Any) -> Any:
        both = torch.cat([query.lora_A["default"].weight, value.lora_A["default"].weight])
        z = linear(x, both)
        of_value.append(z[..., r:])
        b, scaling = query.lora_B["default"].weight, query.scaling["default"]
        return _add_product(query.base_layer(x), z[..., :r], b, scaling)

    def value_forward(x: Any) -> Any:
        b, scaling = value.lora_B["default"].weight, value.scaling["default"]
        return _add_product(value.base_layer(x), of_value.pop(), b, scaling)

    query.forward, value.forward = query_forward, value_forward


def _compile_layers(model: Any) -> None:
    import torch

    from snugtune.model.checkpointing import encoder_layers

    torch._dynamo.config.cache_size_limit = 64
    for layer in encoder_layers(model):
        layer.compile(dynamic=True)


def _take_turns(
    contestants: dict[str, Any], batches: list[Any], data: Any, options: Any
) -> tuple[dict[str, list[float]], dict[str, float]]:
    from snugtune.train.forward import autocast
    from snugtune.train.step import accumulate_gradients

    def turn(model: Any) -> float:
        model.zero_grad(set_to_none=True)
        started = time.process_time()
        accumulate_gradients(
            model, batches, 64, autocast=lambda: autocast(data.device, data.dtype),
            backward=lambda loss: loss.backward(),
        )  # fmt: skip
        return time.process_time() - started

    first_s = {name: turn(model) for name, model in contestants.items()}
    print("First turns:", {name: round(s, 1) for name, s in first_s.items()})
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.repeats):
        for name, model in contestants.items():
            seconds[name].append(turn(model))
            print(f"{name}: {seconds[name][-1]:.2f} s")
    return seconds, first_s


def _differences(contestants: dict[str, Any]) -> dict[str, float]:
    """The largest difference of a gradient from PEFT's, as a share of that tensor's largest gradient."""
    expected = {n: p.grad for n, p in contestants[PEFT].named_parameters() if p.grad is not None}

    def difference(model: Any) -> float:
        found = {n.replace("_orig_mod.", ""): p.grad for n, p in model.named_parameters()}
        return max(
            float((found[name] - grad).abs().max() / grad.abs().max().clamp_min(1e-12))
            for name, grad in expected.items()
            if grad.abs().max() > 0
        )

    return {name: difference(model) for name, model in contestants.items()}


if __name__ == "__main__":
    main()
