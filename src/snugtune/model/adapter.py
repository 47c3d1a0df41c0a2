"""From a plain model to what is trained: an adapter through PEFT, the head alone, or everything."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.boft import layer as boft_layer
from peft.tuners.lora import LoraLayer
from peft.tuners.oft import OFTLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from snugtune.config import FitConfig
from snugtune.errors import UserInputError
from snugtune.methods import METHODS
from snugtune.model.dora import wake_dead_rows
from snugtune.model.head import find_head
from snugtune.model.peft_config import DECOMPOSING_INITS, peft_config
from snugtune.model.quantization import full_matrix
from snugtune.model.sharding import whole, write

QUIET = (
    r"Invalid `.*block_size`",
    # Those of AdaLoRA are read by its own code, elsewhere.
    r"The following rank_pattern keys did not match",
    r"lora with eva initialization used with low_cpu_mem_usage=False",
)
"""Beginnings of PEFT's remarks that are no news to a user."""


def wrap(model: PreTrainedModel, config: FitConfig, *, like: nn.Module | None = None) -> nn.Module:
    """Make trainable what ``config.method`` says, in float32, and nothing else.

    ``like`` is a model that was wrapped so before: the new one gets adapters of the very same shapes, also
    where training has changed them (AdaLoRA, EVA).

    Raises:
        UserInputError: PEFT finds no module of a name in ``target_modules``, a layer of
            ``layers_to_transform`` does not exist, the settings do not go together, or the method cannot be
            applied to this architecture.
    """
    head = find_head(model, config.modules_to_save)
    wrapped: nn.Module = model
    if config.method == "full":
        wrapped.float().requires_grad_(True)
        return wrapped
    if config.method == "head":
        _train_only(model, lambda name: any(part in head.modules_to_save for part in name.split(".")))
    else:
        _check_architecture(model, config.method)
        wrapped = _with_adapter(model, config, head.modules_to_save, like)
    if config.method == "bitfit":
        _check_biases(wrapped, model, head.modules_to_save)
    for name, parameter in wrapped.named_parameters():
        if "ranknum" in name.split("."):
            # AdaLoRA's own constant; on the meta device PEFT leaves it trainable.
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    _norms_of_one_format(wrapped)
    if config.init_lora_weights in DECOMPOSING_INITS:
        start_from_factors(wrapped, config.r, config.init_lora_weights)
    if config.use_dora:
        wake_dead_rows(wrapped)
    _compute_heads_in_float32(wrapped, head.modules_to_save)
    return wrapped


def _with_adapter(
    model: PreTrainedModel, config: FitConfig, modules_to_save: tuple[str, ...], like: nn.Module | None
) -> nn.Module:
    title = METHODS[config.method].title
    try:
        if isinstance(like, PeftModel):
            chosen = copy.deepcopy(like.peft_config["default"])
            # What was pruned of AdaLoRA's ranks is found in the weights again.
            chosen.modules_to_save = list(modules_to_save)
            if config.method == "adalora":
                chosen.rank_pattern = None
        else:
            chosen = peft_config(model, config, modules_to_save)
        with quiet_attaching():
            wrapped: nn.Module = get_peft_model(model, chosen, revision=config.revision)
    except (ValueError, TypeError) as error:
        raise UserInputError(f"{title} cannot be attached to this model: {_one_line(error)}") from error
    layers = {name: module for name, module in wrapped.named_modules() if isinstance(module, BaseTunerLayer)}
    if not config.use_dora:
        for layer in layers.values():
            if isinstance(layer, LoraLayer):
                _leave_input_to_autocast(layer)
    # EVA may have left layers out that were asked for.
    if METHODS[config.method].limits_layers and like is None:
        _check_targets(config.target_modules, list(layers), title)
        _check_layers(
            config.layers_to_transform, list(layers), model.config.get_text_config().num_hidden_layers, title
        )
    if config.oft_block_size is not None:
        _check_block_size(wrapped, config.oft_block_size)
    return wrapped


@contextmanager
def quiet_attaching() -> Iterator[None]:
    """PEFT's remarks on what is meant so, or is looked at afterwards.

    Nor does PEFT compile its CUDA kernel for BOFT meanwhile, which takes a toolkit and minutes, and prints:
    PyTorch's operators give the same, on every machine.
    """
    boft_layer._FBD_CUDA = False
    with warnings.catch_warnings():
        for message in QUIET:
            warnings.filterwarnings("ignore", message=message)
        yield


def _check_architecture(model: PreTrainedModel, method: str) -> None:
    """What PEFT or Transformers would do wrongly, or fail at with the first text."""
    others = "; method='lora' and most others can"
    if method in ("prompt", "p-tuning") and not _reads_first_token(model):
        # Transformers 5.23, modeling_layers.py: without input_ids such heads read the last position, which is
        # padding in all but the longest text of a batch.
        raise UserInputError(
            f"method={method!r} cannot be used with models of type {model.config.model_type}: Transformers "
            "then reads padding where the text should end; take method='prefix' or 'lora'."
        )
    takes = (
        inspect.signature(model.forward).parameters | inspect.signature(model.base_model.forward).parameters
    )
    if method == "prefix" and "past_key_values" not in takes:
        raise UserInputError(
            f"method='prefix' cannot be used with models of type {model.config.model_type}, whose attention "
            f"takes no keys and values from elsewhere{others}."
        )
    if method in ("prefix", "prompt", "p-tuning") and getattr(model.config, "is_encoder_decoder", False):
        raise UserInputError(
            f"method={method!r} cannot be used with models of type {model.config.model_type}, which have an "
            f"encoder and a decoder{others}."
        )


def _reads_first_token(model: PreTrainedModel) -> bool:
    """Whether the head finds its token without token ids, which virtual tokens do not have."""
    # ``score`` is Transformers' name for the last linear of heads that look for the last real token.
    return not hasattr(model, "score") and not getattr(model.config, "is_encoder_decoder", False)


def _check_biases(wrapped: nn.Module, model: PreTrainedModel, heads: tuple[str, ...]) -> None:
    trained = [name for name, parameter in wrapped.named_parameters() if parameter.requires_grad]
    if all(any(part in heads for part in name.split(".")) for name in trained):
        raise UserInputError(
            f"method='bitfit' trains biases, and models of type {model.config.model_type} have none outside "
            "the head; take method='lora' or 'ia3'."
        )


def _norms_of_one_format(model: nn.Module) -> None:
    """Normalisation layers with a trained bias in float32 as a whole: the kernels take no mixture."""
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if any(p.requires_grad for p in own.values()) and all(p.dim() == 1 for p in own.values()):
            for parameter in own.values():
                parameter.data = parameter.data.float()


def _check_block_size(wrapped: nn.Module, wanted: int) -> None:
    """PEFT takes another one where a layer's input is no multiple of it."""
    for name, module in wrapped.named_modules():
        found = getattr(module, "oft_block_size", None)
        if isinstance(module, OFTLayer) and isinstance(found, dict) and found["default"] != wanted:
            raise UserInputError(
                f"oft_block_size={wanted} does not divide the {module.in_features} inputs of "
                f"{name.removeprefix('base_model.model.')}; take {found['default']}, or leave it out."
            )


def _leave_input_to_autocast(layer: LoraLayer) -> None:
    """Keep PEFT from casting a half-precision input to the adapter's float32: autocast would cast it back.

    The numbers stay the same bit for bit (with LoRA dropout, to rounding); two copies of the input fall away,
    one of which is held for the backward pass. DoRA's norms do depend on the cast.
    """
    cast = layer._cast_input_dtype

    def unless_autocast(x: Any, dtype: torch.dtype) -> Any:
        leave = x is not None and torch.is_autocast_enabled(x.device.type)
        return x if leave else cast(x, dtype)

    layer._cast_input_dtype = unless_autocast


def _check_targets(targets: tuple[str, ...] | str | None, adapted: list[str], title: str) -> None:
    """PEFT is silent about a name that fits nothing if another one fits."""
    if isinstance(targets, tuple):
        for target in targets:
            if not any(name.endswith(f".{target}") for name in adapted):
                raise UserInputError(
                    f"target_modules names {target}, but {title} finds no such layer in this model; "
                    f"the others fit {', '.join(sorted({name.rpartition('.')[2] for name in adapted}))}."
                )


def _check_layers(layers: tuple[int, ...] | None, adapted: list[str], count: int, title: str) -> None:
    numbers = {int(part) for name in adapted for part in name.split(".") if part.isdigit()}
    if lost := sorted(set(layers or ()) - numbers):
        raise UserInputError(
            f"layers_to_transform names layer {lost[0]}, but {title} fits no layer of that number in this "
            f"model of {count} layers; count them from 0."
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def start_from_factors(model: nn.Module, r: int, init_lora_weights: str | bool) -> None:
    """Start rank-2r LoRA layers as PiSSA or OLoRA of rank ``r``, the weights W themselves untouched.

    Both train A (r, in) and B (out, r) from factors A0, B0 of W, on the remainder W - s B0 A0 (s is LoRA's
    scaling). Here the remainder is written as LoRA too: A = [A; A0] and B = [B, -B0], whose second halves
    get no gradient. It is the form to which PEFT converts such adapters (``subtract_mutated_init``), from the
    first step on: what is saved is plain LoRA on the published weights, exact in every number format.

    PiSSA: B0 A0 = the r largest singular components of W / s, split evenly (Meng et al. 2024,
    arXiv:2404.02948, section 3). OLoRA: B0 and A0 are the first r columns of Q and rows of R in W = QR
    (Bueyuekakyuez 2024, arXiv:2406.01775, section 3).

    Raises:
        UserInputError: ``r`` is larger than a weight matrix has rows or columns.
    """
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or "default" not in layer.lora_A:
            continue
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        weight = full_matrix(layer.get_base_layer())
        if min(a.shape[1], b.shape[0]) < r:
            raise UserInputError(
                f"init_lora_weights={init_lora_weights} needs r of at most {min(a.shape[1], b.shape[0])}, "
                f"the size of {name.removeprefix('base_model.model.')}, not {r}; lower it."
            )
        a.register_hook(_first_rows(r))
        b.register_hook(_first_columns(r))
        # Meta tensors have no values to decompose.
        if weight.device.type != "meta":
            matrix = weight.detach().float()
            if not matrix.any():
                continue  # without factors: it begins as LoRA does, else nothing would ever move it
            a0, b0 = _factors(
                matrix.T if layer.fan_in_fan_out else matrix, r, layer.scaling["default"], init_lora_weights
            )
            with torch.no_grad():
                a.copy_(torch.cat([a0, a0]))
                b.copy_(torch.cat([b0, -b0], dim=1))


def _first_rows(r: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def keep(gradient: torch.Tensor) -> torch.Tensor:
        return torch.cat([gradient[:r], torch.zeros_like(gradient[r:])])

    return keep


def _first_columns(r: int) -> Callable[[torch.Tensor], torch.Tensor]:
    keep = _first_rows(r)
    return lambda gradient: keep(gradient.T).T


def _factors(
    matrix: torch.Tensor, r: int, scaling: float, init_lora_weights: str | bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """A0 (r, in) and B0 (out, r) of ``matrix`` (out, in)."""
    if init_lora_weights == "olora":
        q, upper = torch.linalg.qr(matrix)
        return upper[:r], q[:, :r]
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    root = (s[:r] / scaling).sqrt()
    return root[:, None] * vh[:r], u[:, :r] * root


def trainable_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy on the host of every trained tensor, by name; whole, also of weights that are divided."""
    return {
        name: whole(parameter.detach()).to("cpu", copy=True)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def load_trainable_state(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Write back what ``trainable_state`` copied."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in state:
                write(parameter, state[name])


def on_trained(model: nn.Module, plain: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of the plain model under the names that they have, as far as they are trained, in ``model``.

    PEFT keeps the trained copy of a module ``X`` as ``base_model.model.X.modules_to_save.default``; with
    methods of virtual tokens as ``base_model.X.modules_to_save.default``.
    """
    names = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
    around = "base_model." if virtual_tokens(model) else "base_model.model."
    pairs = ((name, name.removeprefix(around).replace(".modules_to_save.default", "")) for name in names)
    return {name: plain[plain_name] for name, plain_name in pairs if plain_name in plain}


def virtual_tokens(model: nn.Module) -> int:
    """Tokens that the model's adapter puts before each text."""
    if not isinstance(model, PeftModel) or not model.active_peft_config.is_prompt_learning:
        return 0
    return int(model.active_peft_config.num_virtual_tokens)


def merged(model: PeftModel) -> PreTrainedModel:
    """The plain model, its adapter merged into its weights.

    As PEFT's ``merge_and_unload``, which fails for all but LoRA where a trained head has several layers
    (0.21, ``tuners/tuners_utils.py``, ``_replace_module``: it looks for one weight in it).
    """
    inner: PreTrainedModel = model.get_base_model()
    for name, module in list(inner.named_modules()):
        plain = None
        if isinstance(module, BaseTunerLayer):
            module.merge()
            plain = module.get_base_layer()
        elif isinstance(module, ModulesToSaveWrapper):
            plain = module.modules_to_save["default"]
        if plain is not None:
            parent, _, own = name.rpartition(".")
            setattr(inner.get_submodule(parent), own, plain)
    return inner


def is_peft(model: nn.Module) -> bool:
    """Whether the model carries a PEFT adapter."""
    return isinstance(model, PeftModel)


def _train_only(model: nn.Module, chosen: Callable[[str], bool]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(chosen(name))


def _compute_heads_in_float32(model: nn.Module, names: tuple[str, ...]) -> None:
    for name, module in model.named_modules():
        trained = next(iter(module.parameters(recurse=True)), None)
        is_head = name.split(".")[-1] in (*names, "default") and any(
            part in names for part in name.split(".")
        )
        if (
            is_head
            and trained is not None
            and trained.requires_grad
            and not hasattr(module, "modules_to_save")
        ):
            module.forward = _in_float32(module.forward)


def _in_float32(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Run ``forward`` outside autocast on float32 inputs: logits keep all their digits."""

    def run(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(hidden.device.type, enabled=False):
            return forward(hidden.float(), *args, **kwargs)

    return run
