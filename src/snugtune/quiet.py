"""Libraries that print of their own accord, told not to."""

from __future__ import annotations

import warnings


def quiet_libraries() -> None:
    """Keep Transformers' loading bars and reports, and PEFT's deprecation notes, off the terminal."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
