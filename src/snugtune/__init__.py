"""Fine-tune a language model into your own text classifier, on the GPU you have."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snugtune.classifier import Classifier
    from snugtune.config import FitConfig, make_config
    from snugtune.errors import SnugtuneError, UserInputError
    from snugtune.fit import fit
    from snugtune.predict.predictor import Predictor

__all__ = ["Classifier", "FitConfig", "Predictor", "SnugtuneError", "UserInputError", "fit", "make_config"]

_HOME = {
    "Classifier": "snugtune.classifier",
    "FitConfig": "snugtune.config",
    "make_config": "snugtune.config",
    "SnugtuneError": "snugtune.errors",
    "UserInputError": "snugtune.errors",
    "fit": "snugtune.fit",
    "Predictor": "snugtune.predict.predictor",
}


def __getattr__(name: str) -> Any:
    # Public names load on first use, so that ``import snugtune`` stays fast.
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'snugtune' has no attribute {name!r}")
