"""Copies to and from a card, where the system grants no more pinned memory."""

import pytest
import torch

from snugtune.train import readback


class Unpinnable(torch.Tensor):
    said = ""

    def pin_memory(self):
        raise RuntimeError(self.said)


def test_without_pinned_memory_a_copy_waits_and_is_made(monkeypatch):
    values = torch.arange(3).as_subclass(Unpinnable)
    monkeypatch.setattr(Unpinnable, "said", "CUDA error: out of memory")
    assert readback._pinned(values) is values


def test_a_lost_device_is_not_taken_for_it(monkeypatch):
    monkeypatch.setattr(Unpinnable, "said", "CUDA error: unspecified launch failure")
    with pytest.raises(RuntimeError, match="launch failure"):
        readback._pinned(torch.arange(3).as_subclass(Unpinnable))
