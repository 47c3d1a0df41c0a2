"""Libraries that print of their own accord, told not to."""

from __future__ import annotations

import logging
import warnings


def quiet_imports() -> None:
    """Keep off the terminal what a library says while it is imported; to be called before that.

    bitsandbytes tells of kernels for 4-bit weights on a CPU, and PEFT imports it wherever it is installed.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # tqdm's, in a notebook that has no ipywidgets; we draw progress without them.
    warnings.filterwarnings("ignore", message="IProgress not found")


def quiet_libraries() -> None:
    """Keep Transformers' loading bars and the libraries' notes to developers off the terminal."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    quiet_imports()
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
