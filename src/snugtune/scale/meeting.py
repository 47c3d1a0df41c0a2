"""How processes that were started together find each other, also where others met in the same store before.

In PyTorch 2.13 torchrun's agents keep one store for all attempts
(``torch/distributed/elastic/rendezvous/dynamic_rendezvous.py``): a process that is started again may read the
address that one of the dead left there, and fail. So what is written after the meeting is written under a
name that no earlier attempt had.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

from snugtune.errors import TrainingError

LOOK_S = 0.05


def meet(store: Any, rank: int, size: int, patience_s: float) -> str:
    """A name that the ``size`` processes of this attempt share and no earlier one knew.

    Each of the others says hello by a word of its own and waits for the answer to that very word, which
    cannot be an old one; the first process answers whatever it finds until all have thanked it by the new
    name.

    Args:
        store: of ``torch.distributed``; it may hold words of earlier attempts.
        rank: of this process.
        size: how many there are.
        patience_s: for the last one to come.

    Raises:
        TrainingError: somebody does not come.
    """
    until = time.monotonic() + patience_s
    if rank:
        word = uuid.uuid4().hex
        store.set(f"hello/{rank}", word)
        _wait(store, f"welcome/{word}", until)
        name = str(store.get(f"welcome/{word}").decode())
        store.set(f"thanks/{name}/{rank}", "")
        return name
    name, missing = uuid.uuid4().hex, set(range(1, size))
    while missing:
        for other in sorted(missing):
            if store.check([f"hello/{other}"]):
                store.set(f"welcome/{store.get(f'hello/{other}').decode()}", name)
            if store.check([f"thanks/{name}/{other}"]):
                missing.remove(other)
        _check_patience(until, f"{len(missing)} of {size} processes have")
        time.sleep(LOOK_S if missing else 0)
    return name


def _wait(store: Any, key: str, until: float) -> None:
    while not store.check([key]):
        _check_patience(until, "the first process has")
        time.sleep(LOOK_S)


def _check_patience(until: float, who: str) -> None:
    if time.monotonic() > until:
        raise TrainingError(
            f"{who[0].upper()}{who[1:]} not come; see whether the machines reach each other (MASTER_ADDR, "
            "MASTER_PORT, GLOO_SOCKET_IFNAME)."
        )
