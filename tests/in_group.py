"""``snugtune`` as a launcher starts it: a state after each step, and a process that is killed on cue.

``KILL`` in the environment is ``RANK STEP FILE``: that process ends so after that step, unless the file is
there, which it leaves behind. ``SCARCE`` is ``RANK STEP TOKENS``: for that process's micro-batches of more
tokens, after that step, there is no memory.
"""

import os
import signal
from pathlib import Path


def _watch():
    import torch

    from snugtune.data.batches import padded_tokens
    from snugtune.stages import keeping
    from snugtune.train import checkpoints, engine

    checkpoints.Checkpoints.due = lambda states: states._writer is None or not states._writer.is_alive()
    # Others test that the saved model is looked at in a new process.
    keeping.check_reloads = lambda saved: [0.0] * len(saved)
    rank, step, mark = os.environ.get("KILL", "-1 0 none").split()
    plain = engine._Run.optimizer_step

    def killed_after(run, texts):
        plain(run, texts)
        if (run.group.rank, run.result.steps) == (int(rank), int(step)) and not Path(mark).exists():
            Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    engine._Run.optimizer_step = killed_after
    short_rank, full_from, room = map(int, os.environ.get("SCARCE", "-1 0 0").split())
    micro_batch = engine._Run._micro_batch

    def made_if_it_fits(run, rows, counts=1.0):
        size = padded_tokens(rows, run.row_lengths)
        if run.group.rank == short_rank and run.result.steps >= full_from and size > room:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} tokens.")
        return micro_batch(run, rows, counts)

    engine._Run._micro_batch = made_if_it_fits


if __name__ == "__main__":
    _watch()
    from snugtune.cli import main

    main()
