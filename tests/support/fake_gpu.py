"""A GPU that PyTorch is told it has, for checks that only ask whether there is one and how large it is."""

from types import SimpleNamespace

import pytest
import torch

from powermean.memory import GIB


def fake_gpu(monkeypatch: pytest.MonkeyPatch, memory_gib: float = 80, count: int = 1) -> None:
    """So many GPUs until the test ends."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    properties = SimpleNamespace(total_memory=int(memory_gib * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
