"""Every exception snugtune raises on purpose, as one tree.

The message is one clear sentence for the person at the keyboard: what is wrong, where (file, sheet, row,
column) and what to do. The command line prints it without a traceback and exits with ``exit_code``.
"""

from __future__ import annotations


class SnugtuneError(Exception):
    """Base of all errors raised on purpose; the command line exits with ``exit_code``."""

    exit_code = 1


class UserInputError(SnugtuneError):
    """The file, column, option or setting given by the user cannot be used as it is."""

    exit_code = 2


class NoRowsError(UserInputError):
    """A table without rows, where some are needed."""


class ConfigError(UserInputError):
    """One or more settings are unknown or out of range; all faults are listed at once."""


class TrainingError(SnugtuneError):
    """Training cannot go on, for instance because the loss is not finite."""


MEMORY, DEVICE, NUMBERS = "memory", "device", "numbers"
"""Why a new process is needed: memory ran out, the device is lost, or float16 does not hold the numbers."""


class RestartNeededError(TrainingError):
    """A process cannot go on, most often for want of memory; a new one can, from the last committed step.

    Its exit code is ``EX_TEMPFAIL`` of BSD's sysexits: the same command may succeed. ``kind`` says why it is
    needed: ``MEMORY``, ``DEVICE`` or ``NUMBERS``.
    """

    exit_code = 75

    def __init__(self, message: str, *, kind: str = MEMORY) -> None:
        super().__init__(message)
        self.kind = kind


class ArtifactError(SnugtuneError):
    """A saved model does not reload to what was trained."""


class RunInterruptedError(SnugtuneError):
    """The user pressed Ctrl-C before anything worth keeping existed."""

    exit_code = 130


class EndedElsewhereError(SnugtuneError):
    """Another process of the group has told why all of them end; nothing is left to say here."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("")
        self.exit_code = exit_code


def is_of_library(error: BaseException) -> bool:
    """Not Ctrl-C and its like; a panic of Rust (in tokenizers, polars) is no ``Exception`` either."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def one_line(error: BaseException, most: int = 200) -> str:
    """What ``error`` says, as a line of at most ``most`` characters."""
    said = "".join(c if c.isprintable() else " " for c in str(error).strip()[: 4 * most])
    said = " ".join(said.split()) or type(error).__name__
    return said if len(said) <= most else said[: most - 3] + "..."
