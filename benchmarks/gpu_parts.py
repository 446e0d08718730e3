"""The costly parts of an update alone: attention over a tree of tokens, and log-probs from hidden states."""

from collections.abc import Callable
from typing import Any

import torch
from gpu_bench import (
    SIZE,
    Bench,
    deterministic,
    lengths,
    median_s,
    peak_gib,
    rollouts,
)
from torch import Tensor

from trainer.policy.flash import by_flash
from trainer.policy.flex import BLOCK, by_flex
from trainer.policy.output_layer import OutputLayer, Questions
from trainer.policy.token_tree import Attend, micro_batches, padded


def attention(bench: Bench) -> dict[str, Any]:
    """A layer's attention over the tree of a micro-batch, forward and backward, by all ways of CUDA."""
    prompt, completion = lengths(bench, 256, 512)
    found = {}
    for name, groups, ragged in (("even", 4, False), ("ragged", 4, True), ("one group", 1, False)):
        given = rollouts(500, prompt, completion, groups=groups, ragged=ragged)
        (plain,) = micro_batches(given.trajectories(range(groups * SIZE)), 1 << 20)
        tree, real = padded(plain, 2 * BLOCK).to(bench.device), plain.size
        chance = torch.Generator(bench.device).manual_seed(0)
        shapes = ((1, 14, tree.size, 64), (1, 2, tree.size, 64), (1, 2, tree.size, 64))
        exact = [torch.randn(s, generator=chance, device=bench.device).requires_grad_() for s in shapes]
        rough = [one.detach().to(torch.bfloat16).requires_grad_() for one in exact]
        up = torch.randn(shapes[0], generator=chance, device=bench.device)
        up[:, :, real:] = 0  # padding attends otherwise in either way
        flex, flash = by_flex(tree), by_flash(tree)

        def repeated(q: Tensor, k: Tensor, v: Tensor, scale: float | None, flex: Attend = flex) -> Tensor:
            return flex(q, k.repeat_interleave(7, 1), v.repeat_interleave(7, 1), scale)

        def gradients(way: Attend, inputs: list[Tensor], up: Tensor = up, real: int = real) -> list[Tensor]:
            out = way(*inputs, None)
            given = torch.autograd.grad(out, inputs, up.to(out.dtype))
            return [one.detach()[:, :, :real] for one in (out, *given)]

        if bench.tiny:
            break  # neither flash nor flex has a backward pass there
        right = gradients(flex, exact)
        for way_name, way in (("flex", flex), ("flex, heads repeated", repeated), ("flash", flash)):
            seen = gradients(way, rough)
            off = max(float((a - b).norm() / b.norm()) for a, b in zip(seen, right, strict=True))
            with deterministic():
                seconds = median_s(bench, lambda way=way, rough=rough: gradients(way, rough), 5)
            found[f"{name}, {way_name}"] = seconds
            bench.line(f"attention {name}, {way_name}: {1e3 * seconds:.2f} ms, off by {off:.1e}")
    return found


def heads(bench: Bench) -> dict[str, Any]:
    """Log-probs from hidden states of a micro-batch, forward and backward: ours and kept kernel libraries."""
    rows, size, vocabulary = (64, 32, 512) if bench.tiny else (16384, 896, 151936)
    weight = (torch.randn(vocabulary, size, device=bench.device) / size**0.5).requires_grad_()
    hidden = torch.randn(rows, size, device=bench.device, dtype=torch.bfloat16).requires_grad_()
    target = torch.randint(0, vocabulary, (rows,), device=bench.device)
    places = torch.arange(rows, device=bench.device)
    questions = Questions(places, target, torch.arange(rows + 1))

    def ours(entropy: bool) -> Tensor:
        layer = OutputLayer(weight, None, 1.0, None, 1.0)
        return layer.answer(hidden, questions, torch.bfloat16, entropy=entropy)[0]

    def plain() -> Tensor:
        logits = hidden @ weight.to(torch.bfloat16).t()
        return logits.float().log_softmax(-1)[places, target]

    def trl() -> Tensor:
        from trl.kernels.chunked_logprob import ChunkedLogProbFunction  # noqa: PLC0415

        return ChunkedLogProbFunction.apply(hidden, weight, None, target, 1.0, 8192, None, 1.0, ())[0]

    def cut_cross_entropy() -> Tensor:
        from cut_cross_entropy import linear_cross_entropy  # noqa: PLC0415

        return -linear_cross_entropy(hidden, weight.to(torch.bfloat16), target, reduction="none")

    ways: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: ours(False),
        "ours, with entropy": lambda: ours(True),
        "TRL's": trl,
        "cut-cross-entropy": cut_cross_entropy,
        "all logits": plain,
    }
    exact, found = plain().detach(), {}
    up = torch.randn(rows, device=bench.device)
    for name, way in ways.items():
        if bench.left < 3:
            break

        def once(way: Callable[[], Tensor] = way) -> None:
            weight.grad = hidden.grad = None
            way().backward(up)

        try:
            off = float((way().detach() - exact).abs().max())
            once()
            with peak_gib(bench) as peak:
                seconds = median_s(bench, once, 3)
            found[name] = (seconds, peak[0], off)
            bench.line(f"head, {name}: {1e3 * seconds:.1f} ms, peak {peak[0]} GiB, off by {off:.1e} nats")
        except Exception as error:  # noqa: BLE001 (a library may be missing)
            bench.line(f"head, {name}: {type(error).__name__}: {str(error)[:200]}")
    return found
