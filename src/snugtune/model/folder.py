"""What is asked of a model's folder before a library reads it: folders come from others.

Weights are safetensors and nothing in the folder asks for its own code to be run (decision 4). PEFT would
read a pickle where no safetensors file is, and Transformers would build a model of as many classes as a
number in ``config.json`` says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from snugtune.errors import SnugtuneError, UserInputError, is_of_library, one_line

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_CODE_KEYS = ("auto_map", "custom_pipelines", "trust_remote_code")
_CONFIGS = ("config.json", "tokenizer_config.json", ADAPTER_CONFIG, "processor_config.json")
_LAYER_KEYS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "encoder_layers", "decoder_layers")
_MOST = {"num_labels": (1 << 20, "classes"), **{key: (1 << 10, f"layers ({key})") for key in _LAYER_KEYS}}
"""Transformers makes as many as it is told. Published text models have 126 layers at most (Llama 3.1)."""
_LARGEST_CONFIG_BYTES = 64 << 20  # of tokenizer configurations with very many added tokens
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def check_model_folder(folder: Path) -> None:
    """Refuse a folder whose configurations are no objects of JSON or ask for code.

    Raises:
        UserInputError: which file asks for what.
    """
    for name in _CONFIGS:
        path = folder / name
        if not path.exists():
            continue
        values = read_object(path)
        for key in _CODE_KEYS:
            if values.get(key):
                raise UserInputError(
                    f"The model of {path} asks to run its own code ({key}), which snugtune never does; "
                    "choose another model, or take that entry out if Transformers knows the architecture."
                )
        if name == "config.json":
            _check_sizes(path, values)


def read_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
        UserInputError: it is none, nests too deeply, or is too large for what it should be.
    """
    try:
        if path.stat().st_size > _LARGEST_CONFIG_BYTES:
            raise UserInputError(f"{path} is too large for a configuration; copy the folder anew.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserInputError(f"{path} is damaged ({one_line(error, 120)}); copy the folder anew.") from None
    if not isinstance(value, dict):
        raise UserInputError(f"{path} is damaged (it holds no object of JSON); copy the folder anew.")
    return value


def check_adapter_folder(folder: Path) -> str:
    """The name or folder of the base model of the adapter in ``folder``.

    Raises:
        UserInputError: its weights are missing or pickled, or it names no base model that can be one.
    """
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file():
        is_pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        found = "only pickled weights, which snugtune never opens" if is_pickled else "it is missing"
        raise UserInputError(f"The adapter in {folder} has no {weights.name} ({found}); copy the run anew.")
    base = read_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if isinstance(base, str) and "\0" not in base:
        if Path(base).is_absolute():
            if not Path(base).is_dir():
                raise UserInputError(
                    f"The adapter in {folder} needs its base model {base!r}, which is not there; put it "
                    "back, or export the run where it was trained (snugtune export)."
                )
            check_model_folder(Path(base))
            return base
        if _HUB_NAME.fullmatch(base) and ".." not in base:
            return base
    raise UserInputError(
        f"The adapter in {folder} names as its base model {str(base)[:60]!r}, which is neither a full "
        "path nor a name on the Hub; copy the run anew."
    )


@contextmanager
def told_of(what: str) -> Iterator[None]:
    """Whatever the libraries raise over files of others, as one sentence that begins with ``what``.

    Raises:
        UserInputError: in place of any error but ours.
    """
    try:
        yield
    except SnugtuneError:
        raise
    except BaseException as error:
        if not is_of_library(error):
            raise
        raise UserInputError(f"{what} cannot be loaded: {one_line(error)}") from error


def _check_sizes(path: Path, values: dict[str, Any]) -> None:
    for key, (most, what) in _MOST.items():
        asked = values.get(key)
        if isinstance(asked, (int, float)) and not 0 <= asked <= most:
            raise UserInputError(f"{path} speaks of {asked:,} {what}; copy the folder anew.")
