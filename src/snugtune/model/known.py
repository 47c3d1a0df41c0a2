"""Published configurations of much-used models, so that a plan needs neither network nor weights.

The values in ``known_models.json`` are those of each model's ``config.json`` on the Hugging Face Hub (the
``source`` of the entry). ``published`` is the parameter count of the class named there, as its authors and
users report it; building the class from the values must give that very number.
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session
from transformers import AutoConfig, PretrainedConfig

from snugtune.errors import UserInputError, one_line

HUB_TIMEOUT_S = 5.0
"""How long the Hub may take to answer before only local files are used."""


@dataclass(frozen=True)
class KnownModel:
    """One entry of ``known_models.json``.

    ``published_parameters`` are those of ``published_class``, a class of Transformers: the bare backbone with
    its pooler for an encoder, the language model with tied embeddings counted once for a decoder.
    """

    name: str
    aliases: tuple[str, ...]
    model_type: str
    config: dict[str, Any]
    source: str
    published_class: str
    published_parameters: int


def find_config(name: str, num_labels: int, *, revision: str | None = None) -> PretrainedConfig:
    """The configuration of a local folder, a known model or, last, a name on the Hub.

    Raises:
        UserInputError: it is none of the three, Transformers cannot use it without running its code, it has
            values that its architecture cannot have, or an encoder and a decoder.
    """
    config = _read_config(name, num_labels, revision)
    if getattr(config, "is_encoder_decoder", False):
        raise UserInputError(
            f"The model {name} ({config.model_type}) has an encoder and a decoder, and snugtune trains "
            "models that are one of them; choose another model."
        )
    return config


def _read_config(name: str, num_labels: int, revision: str | None) -> PretrainedConfig:
    is_folder = Path(name).is_dir()
    if is_folder and not (Path(name) / "config.json").is_file():
        raise UserInputError(_not_in_folder(name))
    # Values of the main branch say nothing about another revision.
    known = None if is_folder or revision else known_config(name, num_labels)
    if known is not None:
        return known
    try:
        return AutoConfig.from_pretrained(
            name, num_labels=num_labels, revision=revision, trust_remote_code=False, **hub_options(name)
        )
    except OSError as error:
        raise UserInputError(_not_in_folder(name) if is_folder else _not_found(name)) from error
    except ValueError as error:
        raise UserInputError(
            f"The model {name} cannot be used: its architecture is not part of the installed Transformers, "
            "or it asks to run its own code, which snugtune never does; choose another model."
        ) from error
    except Exception as error:
        # Each version of Transformers and huggingface_hub checks values in its own way.
        raise UserInputError(bad_values(name, error)) from error


def known_config(name: str, num_labels: int) -> PretrainedConfig | None:
    """The published configuration of ``name``, for ``num_labels`` classes; None for an unknown name."""
    known = known_models().get(name)
    if known is None:
        return None
    # Transformers rewrites nested values (rope_scaling) in place, so it gets its own copy.
    return AutoConfig.for_model(known.model_type, num_labels=num_labels, **deepcopy(known.config))


def hub_options(name: str) -> dict[str, Any]:
    """Options of ``from_pretrained``: only what is on this machine already, if the Hub does not answer.

    The Hub's client tries an unreachable host six times over half a minute or more, for each file; one short
    question first saves that, and what was downloaded before still loads.
    """
    if Path(name).is_dir() or constants.is_offline_mode() or _hub_answers():
        return {}
    return {"local_files_only": True}


def no_text_classifier(model_type: str) -> str:
    """The sentence for an architecture that cannot classify texts."""
    return f"Transformers has no text classifier of the architecture {model_type}; choose another model."


def bad_values(what: str, error: Exception) -> str:
    """The sentence for a configuration that no model can be made of."""
    said = one_line(error).rstrip(".")
    return f"The configuration of {what} cannot be used: {said}; correct its config.json or take another."


def _hub_answers() -> bool:
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)
    except Exception:
        # Which HTTP client, and so which exception, depends on the version of huggingface_hub.
        return False
    return True


def close_names(name: str, limit: int = 3) -> list[str]:
    """Known names most like ``name``, best first, compared with and without the organisation."""
    candidates = {known.rpartition("/")[2].lower(): known for known in known_models()}
    candidates |= {known.lower(): known for known in known_models()}
    found = [
        candidates[match]
        for wanted in (name.lower(), name.rpartition("/")[2].lower())
        for match in get_close_matches(wanted, candidates, limit, cutoff=0.6)
    ]
    return list(dict.fromkeys(found))[:limit]


@cache
def known_models() -> dict[str, KnownModel]:
    """Every known model by its names: each alias has an entry of its own."""
    text = (files("snugtune.model") / "known_models.json").read_text(encoding="utf-8")
    models = [_entry(name, values) for name, values in json.loads(text).items()]
    return {name: model for model in models for name in (model.name, *model.aliases)}


def _entry(name: str, values: dict[str, Any]) -> KnownModel:
    return KnownModel(
        name=name,
        aliases=tuple(values["aliases"]),
        model_type=values["model_type"],
        config=values["config"],
        source=values["source"],
        published_class=values["published"]["class"],
        published_parameters=values["published"]["parameters"],
    )


def _not_in_folder(name: str) -> str:
    return f"The folder {name} holds no readable config.json; give the folder of a saved Transformers model."


def _not_found(name: str) -> str:
    close = close_names(name)
    hint = f"use a known name like it ({', '.join(close)})" if close else "use a known name such as minilm"
    return (
        f"The model {name} is not known offline, is no folder, and could not be fetched from the Hugging "
        f"Face Hub; {hint}, give a folder that holds its config.json, or check the name and the network."
    )
