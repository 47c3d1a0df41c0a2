"""The saved folder: a stock PEFT adapter (or Transformers model) that loads with nothing of ours."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from snugtune.container import available_memory_bytes
from snugtune.errors import ArtifactError, UserInputError
from snugtune.files import system_errors
from snugtune.model.adapter import is_peft, merged, quiet_attaching, virtual_tokens
from snugtune.model.backbone import check_vocabulary, supported_attention
from snugtune.model.folder import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    check_adapter_folder,
    check_model_folder,
    told_of,
)
from snugtune.model.precision import pick_device
from snugtune.model.quantization import (
    compute_as_trained,
    read_quantization,
    require_bitsandbytes,
    unpacked,
    write_quantization,
)

LOGIT_TOLERANCE = 1e-3
"""Largest difference of a logit between the trained model and the reloaded one, both in float32."""

QUANTIZED_TOLERANCE = 1e-2
"""The same on 4-bit weights: a card and a processor may round one weight in very many to different levels.
Weights that are not those of the training are off by ten times as much and more."""

_CHECK = """
import json, sys
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline

# In float32, whatever format the weights are published in: that is how the run was measured.
safe = {"trust_remote_code": False, "use_safetensors": True, "dtype": torch.float32}

def quantized(arguments):
    if not arguments:
        return {}
    from transformers import BitsAndBytesConfig
    return {"quantization_config": BitsAndBytesConfig(**arguments), "device_map": {"": "cpu"}}

def load(folder, peft, quantization):
    if not peft:
        return AutoModelForSequenceClassification.from_pretrained(folder, device_map={"": "cpu"}, **safe)
    from peft import AutoPeftModelForSequenceClassification
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return AutoPeftModelForSequenceClassification.from_pretrained(
        folder, id2label=config.id2label, label2id=config.label2id, pad_token_id=config.pad_token_id,
        ignore_mismatched_sizes=True, **quantized(quantization), **safe)

def answer(folder, peft, texts, max_length, quantization):
    model = load(folder, peft, quantization).eval()
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # Else bitsandbytes computes in bfloat16 on such processors, whatever it is told.
            module.support_avx512bf16_for_cpu = False
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    batch = tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**batch).logits.float().tolist()
    if peft:
        if quantization:
            # An adapter cannot be merged into 4-bit weights without rounding them again.
            model = model.get_base_model()
        elif model.active_peft_config.peft_type in ("LORA", "ADALORA"):
            # PEFT 0.21 fails at merging its other methods where a head of several layers is trained.
            model = model.merge_and_unload()
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
    rows = classify(texts, truncation=True, max_length=max_length)
    return {"logits": logits, "labels": [row["label"] for row in rows]}

for request in json.load(sys.stdin):
    try:
        print(json.dumps(answer(**request)), flush=True)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
"""
"""The program of the check, free of anything of ours: requests in, one line of JSON for each out."""


@dataclass(frozen=True)
class Saved:
    """A saved folder and what it must do: logits (N, K) on ``texts`` and the labels they mean."""

    folder: Path
    texts: Sequence[str]
    logits: NDArray[np.float32]
    label_names: Sequence[str]
    max_length: int
    peft: bool


def save_model(model: nn.Module, tokenizer: Any, folder: Path, max_length: int) -> None:
    """Save adapter (or model), configuration with the user's labels, and tokenizer into ``folder``.

    A 4-bit model without an adapter is saved as such, and its ``config.json`` tells Transformers so. With an
    adapter trained on one goes a ``quantization.json``, the arguments of ``BitsAndBytesConfig``.
    """
    with system_errors():
        model.save_pretrained(folder)  # type: ignore[operator]
    # PEFT leaves out the model's configuration; with it the user's labels travel in the folder.
    config: Any = copy.copy(model.config)
    # A published model's request for its own code: that code is not in this folder and was never run.
    for asks in ("auto_map", "custom_pipelines"):
        if hasattr(config, asks):
            delattr(config, asks)
    if is_peft(model) and hasattr(config, "quantization_config"):
        # Left there, it would say that the published weights under the adapter are quantised.
        write_quantization(config.quantization_config, folder)
        del config.quantization_config
    config.save_pretrained(folder)
    write_tokenizer(tokenizer, folder, max_length)


def write_tokenizer(tokenizer: Any, folder: Path, max_length: int) -> None:
    """Save the tokenizer into ``folder``, and beside it the length that texts are cut to."""
    tokenizer.save_pretrained(folder)
    text = json.dumps({"max_seq_length": max_length, "do_lower_case": False}) + "\n"
    (folder / "sentence_bert_config.json").write_text(text, encoding="utf-8")


def check_reloads(saved: Sequence[Saved]) -> list[float]:
    """Load each folder in one new process with stock classes and compare its logits.

    Returns the largest difference of a logit of each.

    Raises:
        ArtifactError: the first folder at fault does not load, gives other logits, or gives other labels.
    """
    done = _ask([_request(s, read_quantization(s.folder)) for s in saved])
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason was given"]
        raise ArtifactError(f"{saved[0].folder} cannot be checked in a new process: {reason[0]}")
    return [_compare(s, answer) for s, answer in zip(saved, _answers(done), strict=True)]


@dataclass(frozen=True)
class FullPrecision:
    """An adapter trained on 4-bit weights, loaded on the published ones: how far that is from the measured.

    ``same_labels`` of ``rows`` texts get the label that the 4-bit model gives them.
    """

    rows: int
    same_labels: int
    largest_logit_difference: float


def compare_full_precision(saved: Saved, n_weights: int) -> FullPrecision | None:
    """What changes where ``saved`` is loaded without quantisation, as PEFT does if it is told nothing.

    Nothing is known (None) where the folder is not of a 4-bit run, or ``n_weights`` float32 weights are more
    than this machine's memory, or the attempt fails for another reason.
    """
    if read_quantization(saved.folder) is None or 4 * n_weights > 0.8 * available_memory_bytes():
        return None
    done = _ask([_request(saved, None)])
    answers = [] if done.returncode else _answers(done)
    if not answers or "error" in answers[0]:
        return None
    logits = np.array(answers[0]["logits"], dtype=np.float32)
    same = int((logits.argmax(1) == saved.logits.argmax(1)).sum())
    return FullPrecision(len(logits), same, float(np.abs(logits - saved.logits).max()))


def _request(saved: Saved, quantization: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "folder": str(saved.folder),
        "peft": saved.peft,
        "texts": list(saved.texts),
        "max_length": saved.max_length,
        "quantization": quantization,
    }


def _ask(requests: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    # On the host: PEFT and pipelines would take a card that they see, which may be full.
    hidden = dict.fromkeys(("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"), "")
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _CHECK], input=json.dumps(requests), capture_output=True,
        text=True, check=False, env={**os.environ, **hidden},
    )  # fmt: skip


def _answers(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _compare(saved: Saved, answer: dict[str, Any]) -> float:
    if "error" in answer:
        reason = " ".join(answer["error"].split())[:300]
        raise ArtifactError(f"The saved model in {saved.folder} does not load in a new process: {reason}")
    logits = np.array(answer["logits"], dtype=np.float32)
    if logits.shape != saved.logits.shape:
        raise ArtifactError(
            f"The saved model in {saved.folder} gives logits of another shape, {logits.shape}."
        )
    difference = float(np.abs(logits - saved.logits).max())
    if not difference <= _tolerance(saved):
        raise ArtifactError(
            f"The saved model in {saved.folder} gives other logits than trained (by {difference:.3g})."
        )
    _check_labels(answer["labels"], saved)
    return difference


def _tolerance(saved: Saved) -> float:
    return LOGIT_TOLERANCE if read_quantization(saved.folder) is None else QUANTIZED_TOLERANCE


def _check_labels(given: Sequence[str], saved: Saved) -> None:
    top = np.sort(saved.logits, axis=1)
    clear = top[:, -1] - top[:, -2] > 2 * _tolerance(saved)
    names = [saved.label_names[i] for i in saved.logits.argmax(1)]
    for label, name, is_clear in zip(given, names, clear, strict=True):
        if is_clear and label != name:
            raise ArtifactError(
                f"The saved model in {saved.folder} says {label!r} where {name!r} was trained."
            )


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype,
    attn_implementation: str,
    as_quantized: bool = True,
    merge: bool = True,
) -> tuple[nn.Module, Any]:
    """Load what ``save_model`` wrote, an adapter merged into its model (or beside it, where it is virtual
    tokens), and the tokenizer.

    An adapter that was trained on 4-bit weights stays beside them, for that is the model that was measured;
    without ``as_quantized`` it is merged into the published weights, and a 4-bit model is unpacked. Without
    ``merge`` every adapter stays beside its model.

    Raises:
        UserInputError: the folder is damaged, not whole, or asks for code of its own to be run; its adapter
            is pickled or of another model; or the folder is of a 4-bit run and bitsandbytes is missing.
    """
    with told_of(f"The model in {folder}"):
        check_model_folder(folder)
        model, tokenizer = _load(folder, dtype, attn_implementation, as_quantized, merge)
        _try(model, tokenizer, folder)
        return model, tokenizer


def _load(
    folder: Path, dtype: torch.dtype, attn_implementation: str, as_quantized: bool, merge: bool
) -> tuple[nn.Module, Any]:
    from peft import PeftConfig, PeftModel
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig

    # Left out, trust_remote_code makes Transformers ask on a terminal whether to run the folder's code.
    safe = {"trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
    config = AutoConfig.from_pretrained(folder, **safe)
    options = {
        "config": config,
        "attn_implementation": supported_attention(config, attn_implementation),
        "use_safetensors": True,
        "output_loading_info": True,
        **safe,
    }
    classes = AutoModelForSequenceClassification
    if not (folder / ADAPTER_CONFIG).exists():
        quantized = getattr(config, "quantization_config", None) is not None
        if quantized:
            require_bitsandbytes()
        model, info = classes.from_pretrained(folder, dtype=dtype, **options)
        if quantized:
            compute_as_trained(model)
            # What was rounded stays so; there is nothing else in the folder.
            model = model if as_quantized else unpacked(model, dtype)
        _check_whole(model, info, (), folder)
        check_vocabulary(tokenizer, model, str(folder))
        return model, tokenizer
    source = check_adapter_folder(folder)
    peft_config = PeftConfig.from_pretrained(folder)
    options |= {"revision": peft_config.revision, "ignore_mismatched_sizes": True}
    quantization = read_quantization(folder) if as_quantized else None
    if quantization is not None:
        require_bitsandbytes()
        quantized = BitsAndBytesConfig(**quantization | {"bnb_4bit_compute_dtype": dtype})
        options |= {"quantization_config": quantized, "device_map": {"": pick_device()}, "dtype": dtype}
    # The saved configuration has the labels and the pad token, which the published one has not. Merged in
    # float32, then rounded once: merging into rounded weights would round twice.
    base, info = classes.from_pretrained(source, **{"dtype": torch.float32, **options})
    if quantization is not None:
        compute_as_trained(base)
    with quiet_attaching():
        warnings.filterwarnings("ignore", message="Found missing adapter keys")  # they are refused below
        adapted: Any = PeftModel.from_pretrained(base, folder)
    names = _check_keys(adapted, folder)
    _check_whole(base, info, names, folder)
    check_vocabulary(tokenizer, base, str(folder))
    if quantization is not None:
        _round_trained(adapted, dtype)
        return adapted.get_base_model(), tokenizer
    if not merge or virtual_tokens(adapted):
        # Of virtual tokens there is nothing to merge: they are computed with each text.
        return adapted.to(dtype), tokenizer
    return merged(adapted).to(dtype), tokenizer


def _try(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """One word through the model: parts that do not go together fail here, where that is told."""
    if tokenizer.pad_token_id is None:
        raise UserInputError(f"The tokenizer in {folder} has no token to pad with; copy the run anew.")
    parameter = next(model.parameters())
    ids = tokenizer("a")["input_ids"][:8] or [0]
    one = torch.tensor([ids], device=parameter.device)
    with torch.inference_mode():
        model.eval()(input_ids=one, attention_mask=torch.ones_like(one))


def _check_keys(adapted: nn.Module, folder: Path) -> set[str]:
    """The names of an adapter's tensors, which must be those of its model: PEFT is silent about others.

    Raises:
        UserInputError: the adapter has tensors of another model, or lacks some.
    """
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
        saved = set(file.keys())
    known = set(get_peft_model_state_dict(adapted))
    if strange := sorted(saved - known):
        raise UserInputError(
            f"The adapter in {folder} is not one of its base model: {len(strange)} of its {len(saved)} "
            f"tensors fit nothing there ({strange[0][:80]!r}); copy the run anew."
        )
    if lost := sorted(known - saved):
        raise UserInputError(
            f"The adapter in {folder} lacks {len(lost)} of its {len(known)} tensors ({lost[0][:80]!r}); copy "
            "the run anew."
        )
    return saved


def _check_whole(model: nn.Module, info: dict[str, Any], trained: Collection[str], folder: Path) -> None:
    """Every weight comes from a file, of the model or (``trained``) of its adapter: none is left to chance.

    Raises:
        UserInputError: some do not.
    """
    parameters = {name for name, _ in model.named_parameters()}
    parts = {name.removeprefix("base_model.").removeprefix("model.") for name in trained}
    lost = set(info["missing_keys"]) | {entry[0] for entry in info["mismatched_keys"]}
    # PEFT keeps adapted layers under names of its own; those are compared as they were.
    chance = sorted(name for name in lost & {_plain(name) for name in parameters} if name not in parts)
    if chance:
        raise UserInputError(
            f"The model in {folder} lacks {len(chance)} of its tensors, or has them in another shape "
            f"({chance[0][:80]!r}); copy the run anew, and its base model."
        )


def _plain(name: str) -> str:
    """The name a parameter had before PEFT wrapped its layer."""
    for inserted in (".base_layer", ".original_module", ".modules_to_save.default"):
        name = name.replace(inserted, "")
    return name


def _round_trained(model: nn.Module, dtype: torch.dtype) -> None:
    # Not by ``to``: a quantised model refuses it.
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
