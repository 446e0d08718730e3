"""A GPU that PyTorch is told it has, for checks that only ask whether there is one and how large it is."""

from types import SimpleNamespace

import pytest
import torch

from powermean.memory import GIB


def fake_gpu(monkeypatch: pytest.MonkeyPatch, memory_gib: int = 80) -> None:
    """One GPU until the test ends."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    properties = SimpleNamespace(total_memory=memory_gib * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
