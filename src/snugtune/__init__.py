"""Fine-tune a language model into your own text classifier, on the GPU you have."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snugtune.classifier import Classifier
    from snugtune.config import FitConfig, make_config
    from snugtune.errors import SnugtuneError, UserInputError
    from snugtune.notebook import audit_table, fit_table, open_run, plan, write_sample
    from snugtune.predict.predictor import Predictor
    from snugtune.supervise import fit

__all__ = [
    "Classifier",
    "FitConfig",
    "Predictor",
    "SnugtuneError",
    "UserInputError",
    "audit_table",
    "fit",
    "fit_table",
    "make_config",
    "open_run",
    "plan",
    "write_sample",
]

_HOME = {
    "Classifier": "snugtune.classifier",
    "FitConfig": "snugtune.config",
    "make_config": "snugtune.config",
    "SnugtuneError": "snugtune.errors",
    "UserInputError": "snugtune.errors",
    "audit_table": "snugtune.notebook",
    "fit": "snugtune.supervise",
    "fit_table": "snugtune.notebook",
    "open_run": "snugtune.notebook",
    "plan": "snugtune.notebook",
    "write_sample": "snugtune.notebook",
    "Predictor": "snugtune.predict.predictor",
}


def __getattr__(name: str) -> Any:
    # Public names load on first use, so that ``import snugtune`` stays fast.
    if name in _HOME:
        if _HOME[name] == "snugtune.notebook":
            from snugtune.quiet import quiet_imports

            quiet_imports()  # else what libraries say of themselves comes above a cell's own output
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'snugtune' has no attribute {name!r}")


class _Package(ModuleType):
    """``snugtune.fit`` stays the function: importing the submodule of that name would take its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name == "fit" and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
