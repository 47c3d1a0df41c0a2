"""Another process that takes all the memory that is free, when it is told to, and gives it back in the end.

It waits with its context on the card ready, so that it strikes at once. Run as a script it is that process:
a line ``take SECONDS`` on its standard input lets it begin, and it goes on taking whatever gets free for so
long. ``Hog`` is the other end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from snugtune.worker_process import environment

BLOCK_BYTES = (2**30, 2**27, 2**24, 2**21)
"""Large ones first, that it is quick; the last is the smallest that PyTorch asks a card for."""

LOOK_AGAIN_S = 0.005

Take = Callable[[int], Any]


class Greed:
    """Holds what it could get by ``take``, which raises where nothing is left."""

    def __init__(self, take: Take) -> None:
        self._take = take
        self._held: list[Any] = []
        self.held_bytes = 0

    def fill(self) -> None:
        """Take all that is free."""
        for size in BLOCK_BYTES:
            while self._takes(size):
                self.held_bytes += size

    def _takes(self, size: int) -> bool:
        try:
            self._held.append(self._take(size))
        except (RuntimeError, MemoryError):  # torch.OutOfMemoryError is a RuntimeError
            return False
        return True


def of_card() -> Take:
    """Takes a card's memory; the context is there when this returns."""
    import torch

    def take(size: int) -> Any:
        return torch.empty(size, dtype=torch.uint8, device="cuda")

    take(BLOCK_BYTES[-1])
    return take


def of_host(mib: int) -> Take:
    """Takes the host's memory, and finds nothing free after so many ``mib``."""
    left = [mib * 2**20]

    def take(size: int) -> Any:
        if size > left[0]:
            raise MemoryError
        left[0] -= size
        return bytearray(size)

    return take


def hold(greed: Greed, seconds: float, tell: Callable[..., None]) -> None:
    """Take all and tell it, then whatever gets free, until the ``seconds`` are over."""
    until = time.perf_counter() + seconds
    greed.fill()
    tell(event="full", bytes=greed.held_bytes)
    while time.perf_counter() < until:
        time.sleep(LOOK_AGAIN_S)
        greed.fill()
    tell(event="lets go", bytes=greed.held_bytes)


class Hog:
    """Starts the process and waits until it is ready; on a card, or with ``host_mib`` on the host."""

    def __init__(self, host_mib: int | None = None) -> None:
        options = [] if host_mib is None else ["--host-mib", str(host_mib)]
        self.told: dict[str, dict[str, Any]] = {}
        """What it said by event, each with the time ``at_s`` (of ``time.perf_counter``)."""
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), *options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise RuntimeError("the process that should take the memory did not start")
        self._on_told: Callable[[str], None] = lambda _event: None
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def take(self, seconds: float, on_told: Callable[[str], None] = lambda _event: None) -> None:
        """Let it take all there is for ``seconds``; ``on_told`` is called with each event, from a thread."""
        self._on_told = on_told
        assert self._process.stdin is not None
        self._process.stdin.write(f"take {seconds}\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._listener.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            self.told[told["event"]] = {**told, "at_s": time.perf_counter()}
            self._on_told(told["event"])


def main(arguments: Sequence[str] | None = None) -> None:
    """The process itself."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host-mib", type=int)
    options = parser.parse_args(arguments)
    greed = Greed(of_card() if options.host_mib is None else of_host(options.host_mib))
    _tell(event="ready")
    line = sys.stdin.readline()
    if line:
        hold(greed, float(line.split()[1]), _tell)


def _tell(**event: Any) -> None:
    print(json.dumps(event), flush=True)


if __name__ == "__main__":
    main()
