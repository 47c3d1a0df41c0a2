"""Records that were damaged or made by others, told in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from snugtune.errors import SnugtuneError, UserInputError, one_line


@contextmanager
def told_of_record(run: str | Path) -> Iterator[None]:
    """Whatever is raised over values in the files of ``run`` that no fit writes, as one sentence.

    What is shown of a run is made from some hundred fields, most of which may be missing; a list in the place
    of a number is not checked for one by one.

    Raises:
        UserInputError: in place of any error but ours and the system's.
    """
    try:
        yield
    except (SnugtuneError, OSError, MemoryError):
        raise
    except Exception as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else one_line(error, 120)
        raise UserInputError(
            f"A file of the run {run} holds what no fit writes there ({reason}); copy the run anew."
        ) from error
