"""How long a micro-batch takes: a roofline over its operators, an estimate to compare cards by."""

from __future__ import annotations

import numpy as np

from snugtune.memory import trace as ledger
from snugtune.memory.devices import Device
from snugtune.memory.setup import Setup
from snugtune.memory.trace import Trace

TENSOR_EFFICIENCY, BANDWIDTH_EFFICIENCY, LAUNCH_S = 0.45, 0.7, 6e-6
"""Assumed shares of a card's peak rates in real kernels, and the least time of one operator call."""

PADDING = 1.05
"""Padded over real tokens with length buckets under a token budget."""


def micro_batch_seconds(trace: Trace, device: Device, setup: Setup) -> float:
    """Forward and backward of one micro-batch: each operator takes the longest of arithmetic, traffic and
    launch, at assumed shares of the card's peak rates; a measured ``gain`` makes all of them shorter.
    """
    work = trace.work
    train = work.phase == ledger.ACTIVATIONS
    tflops = device.float32_tflops if setup.compute == "float32" else device.half_tflops
    arithmetic = work.flops[train] / (tflops * 1e12 * TENSOR_EFFICIENCY)
    traffic = work.n_bytes[train] / (device.bandwidth_gb_s * 1e9 * BANDWIDTH_EFFICIENCY)
    micro_batches = 3 if setup.accumulates else 2
    seconds = np.maximum(np.maximum(arithmetic, traffic), LAUNCH_S).sum()
    return float(seconds) / micro_batches / device.gain
