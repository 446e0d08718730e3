"""What gives other bits from call to call on a GPU: the suspects of benchmarks/gpu_engine.py."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from threading import Event
from typing import Any

import torch
from gpu_engine_model import Bench, Found, NoText, draws
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from rollout.transformers.attention import decoding_attention
from rollout.transformers.decoding import sample_batch
from rollout.transformers.prefill import prefill
from rollout.transformers.slot_decoder import SlotDecoder
from rollout.transformers.slots import Slots
from rollout.transformers.stopping import Stopping
from rollout.transformers.token_choice import choose
from rollout.transformers.tree_decoder import TreeDecoder

REPEATS = 10  # of a single operation


def causes(bench: Bench) -> Found:
    """What gives other bits from call to call: each suspect several times on the same input."""
    found: Found = {}
    for name, kernels in _backends(bench).items():
        try:
            with decoding_attention(bench.model, grouped=True), kernels:
                found |= {f"{name}: {what}": equal for what, equal in _of_model(bench).items()}
        except RuntimeError as error:
            found[name] = str(error).splitlines()[0][:120]
    return found | _of_operations(bench)


def _backends(bench: Bench) -> dict[str, AbstractContextManager[Any]]:
    kernels: dict[str, AbstractContextManager[Any]] = {"ours": nullcontext()}
    if bench.device.type == "cuda":
        flash, efficient = SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION
        cudnn, math = SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH
        kernels["all kernels"] = sdpa_kernel([flash, efficient, cudnn, math])
        kernels["cuDNN"] = sdpa_kernel([cudnn, math], set_priority=True)
        kernels["efficient"] = sdpa_kernel([efficient, math], set_priority=True)
        kernels["math"] = sdpa_kernel(math)
    return kernels


@torch.inference_mode()
def _of_model(bench: Bench) -> dict[str, bool]:
    """Equal bits of the prompts' pass, of a step in slots, and of completions by the tree."""
    prompts = bench.prompts()
    model, rows = bench.model, [prompt for prompt in prompts for _ in range(bench.size.n)]
    chances = draws(bench, len(rows), 2)
    slots = Slots(model, graphs=False)

    def step() -> Tensor:
        return SlotDecoder(model, slots, rows, 1.0, 2).advance(chances).log_probs.clone()

    def tree() -> Tensor:
        decoder = TreeDecoder(model, rows, 1.0, plain=True)
        done = sample_batch(
            decoder, draws(bench, len(rows), 16), Stopping(NoText(), frozenset(), ()), Event()
        )
        return torch.tensor([one.log_probs for one in done])

    return {
        "prefill": _repeats(lambda: prefill(model, prompts, bench.device).logits, 4),
        "two tokens in slots": _repeats(step, 4),
        "16 tokens by the tree": _repeats(tree, 2),
    }


@torch.inference_mode()
def _of_operations(bench: Bench) -> Found:
    """Equal bits of single operations on random input."""
    device, dtype, size = bench.device, bench.dtype, bench.size.model
    torch.manual_seed(0)
    logits = torch.randn(bench.size.rows, size["vocab_size"], device=device, dtype=dtype)
    shares = logits.float().softmax(-1)
    chances = draws(bench, len(logits), 1)[:, 0]
    hidden = torch.randn(bench.size.rows, size["hidden_size"], device=device, dtype=dtype)
    weight = torch.randn(size["vocab_size"], size["hidden_size"], device=device, dtype=dtype)
    heads, groups = size["num_attention_heads"], size["num_key_value_heads"]
    head = size["hidden_size"] // heads
    query = torch.randn(bench.size.rows, heads, 1, head, device=device, dtype=dtype)
    key = torch.randn(bench.size.rows, groups, 300, head, device=device, dtype=dtype)

    def choice() -> Tensor:
        chosen = choose(logits, 1.0, chances)
        return torch.cat([chosen.tokens.double(), chosen.log_probs.double()])

    actions: dict[str, Callable[[], Tensor]] = {
        "our token choice": choice,
        "float64 cumsum, all rows": lambda: shares.cumsum(-1, dtype=torch.float64),
        "float64 cumsum, one row": lambda: shares[:1].cumsum(-1, dtype=torch.float64),
        "logsumexp": lambda: logits.float().logsumexp(-1),
        "output layer": lambda: hidden @ weight.T,
        "grouped attention without a mask": lambda: scaled_dot_product_attention(
            query, key, key, enable_gqa=True
        ),
    }
    return {name: _repeats(action, REPEATS) for name, action in actions.items()}


def _repeats(action: Callable[[], Tensor], times: int) -> bool:
    """Whether it gives the same bits each time."""
    first = action()
    return all(torch.equal(first, action()) for _ in range(times - 1))
