"""One product an adapter gives what vLLM's one product a token does. No server is started."""

import importlib.util

import pytest
import torch

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

SLOTS, RANK, WIDE, TALL = 4, 8, 48, 80


@pytest.mark.parametrize("adapters", [[2], [1, 1, 1], [0, 3, 3, 1, 0]])
@pytest.mark.parametrize("add", [True, False])
def test_they_are_vllms_own_numbers(adapters: list[int], add: bool) -> None:
    from vllm.lora.ops.torch_ops import lora_ops as theirs

    from rollout.vllm.plugin import lora_products as ours

    chance = torch.Generator().manual_seed(0)
    index = torch.tensor(adapters)
    x = torch.randn(len(adapters), WIDE, generator=chance)
    a = torch.randn(SLOTS, 1, RANK, WIDE, generator=chance)
    b = torch.randn(SLOTS, 1, TALL, RANK, generator=chance)
    found = []
    for ops in (theirs, ours):
        low = torch.zeros(len(adapters), RANK)
        ops.bgmv_shrink(x, a, low, index, 0.5)
        whole, padded, part = (torch.ones(len(adapters), width) for width in (TALL, TALL + 16, 200))
        ops.bgmv_expand(low, b, whole, index, add)
        ops.bgmv_expand(low, b, padded, index, add)
        ops.bgmv_expand_slice(low, b, part, index, 40, TALL, add)
        found.append((low, whole, padded, part))
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_tokens_without_an_adapter_stay_as_they_are() -> None:
    from rollout.vllm.plugin.lora_products import bgmv_expand

    output = torch.ones(3, TALL)
    bgmv_expand(torch.ones(3, RANK), torch.ones(SLOTS, 1, TALL, RANK), output, torch.tensor([-1, 2, -1]))
    assert output[:, 0].tolist() == [1.0, 1.0 + RANK, 1.0]


def test_they_take_the_place_of_vllms(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    from rollout.vllm.plugin import lora_products

    for module in (lora_ops, punica_cpu):
        for name in ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice"):
            assert hasattr(module, name), name  # what is put in their place is used
            monkeypatch.setattr(module, name, getattr(module, name))
    lora_products.install()
    assert punica_cpu.bgmv_shrink is lora_ops.bgmv_shrink is lora_products.bgmv_shrink
