"""How long micro-batches take: a roofline over their operators, an estimate to compare cards by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snugtune.memory import trace as ledger
from snugtune.memory.devices import Device
from snugtune.memory.trace import Work

TENSOR_EFFICIENCY, BANDWIDTH_EFFICIENCY, LAUNCH_S = 0.45, 0.7, 6e-6
"""Assumed shares of a card's peak rates in real kernels, and the least time of one operator call."""

PADDING = 1.05
"""Padded over real tokens with length buckets under a token budget."""

MOST_AT_ONCE = 1 << 20
"""Operators times micro-batches that are looked at together: a few arrays of 8 MiB."""


@dataclass(frozen=True)
class Costs:
    """What the operators of one micro-batch, forward and backward, cost at any number and length of texts.

    ``flops`` and ``n_bytes`` (3, O) are of each distinct operator: those of any micro-batch (as to read the
    weights), of each token, and of each pair of tokens of a text (attention). ``times`` (O,) is how often a
    micro-batch runs it.
    """

    flops: NDArray[np.float64]
    n_bytes: NDArray[np.float64]
    times: NDArray[np.float64]

    def seconds(
        self, device: Device, compute: str, tokens: NDArray[np.float64], pairs: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Seconds (M,) of micro-batches on a device, given what is computed of each: its ``tokens`` (M,), the
        padding with them, and its ``pairs`` (M,), the sum of its texts' squared lengths.

        Each operator takes the longest of its arithmetic, its traffic and a launch, at assumed shares of the
        card's peak rates; a measured ``gain`` makes all of them shorter. So a micro-batch of few tokens takes
        as long as its launches. ``compute`` is the number format of products.
        """
        together = max(1, MOST_AT_ONCE // max(len(self.times), 1))
        parts = range(0, len(tokens), together)
        found = [
            self._seconds(device, compute, tokens[i : i + together], pairs[i : i + together]) for i in parts
        ]
        return np.concatenate(found) if found else np.zeros(0)

    def _seconds(
        self, device: Device, compute: str, tokens: NDArray[np.float64], pairs: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        of = np.stack([np.ones(len(tokens)), tokens, pairs], axis=1)
        tflops = device.float32_tflops if compute == "float32" else device.half_tflops
        arithmetic = of @ self.flops / (tflops * 1e12 * TENSOR_EFFICIENCY)
        traffic = of @ self.n_bytes / (device.bandwidth_gb_s * 1e9 * BANDWIDTH_EFFICIENCY)
        longest = np.maximum(np.maximum(arithmetic, traffic), LAUNCH_S)
        return np.asarray(longest @ self.times / device.gain)


def costs(few: Work, more: Work, texts: tuple[int, int], length: int, *, micro_batches: int) -> Costs:
    """From the work of two traced steps of so many ``micro_batches``, of ``texts`` of ``length`` tokens each.

    What both have in common is of any micro-batch. Of the rest, attention's part (``Work.square_flops``,
    ``Work.square_n_bytes``) grows with the square of the length, everything else with the length. Where the
    two do not run the same operators, all of it is taken to grow.
    """
    alike = len(few.flops) == len(more.flops)
    parts = []
    for name in ("flops", "n_bytes"):
        whole, square = getattr(few, name), getattr(few, f"square_{name}")
        slopes = [of / texts[0] for of in (whole, square)]
        if alike:
            step = texts[1] - texts[0]
            more_of = getattr(more, name), getattr(more, f"square_{name}")
            slopes = [(m - f) / step for m, f in zip(more_of, (whole, square), strict=True)]
        fixed = np.maximum(whole - texts[0] * slopes[0], 0)
        parts += [fixed, (slopes[0] - slopes[1]) / length, slopes[1] / length**2]
    trained = np.stack(parts)[:, few.phase == ledger.ACTIVATIONS]
    distinct, times = np.unique(trained, axis=1, return_counts=True)
    return Costs(distinct[:3], distinct[3:], times / micro_batches)
