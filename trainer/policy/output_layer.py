"""Log-probs and entropy from hidden states, without a tensor of all logits.

Logits are made for a tile of tokens at a time and dropped; the backward pass makes them again. What is kept
is one number a token, the log of the normaliser. Matrix products are in the policy's type, sums over the
vocabulary in float32 (in float64 for float64).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trainer.defaults import CPU_TILE_BYTES, CUDA_TILE_BYTES
from trainer.fusing import fused


@dataclass(frozen=True)
class OutputLayer:
    """From hidden states [R, D] to the logits [R, V] of the distribution that is sampled from."""

    weight: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    scale: float  # of the model's own logits
    cap: float | None  # c of c tanh(logits / c)
    temperature: float

    @classmethod
    def of(cls, model: PreTrainedModel, temperature: float) -> "OutputLayer":
        """The model's own, as far as its config tells: whether that is all, the caller has to try."""
        layer: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        config = model.config.get_text_config()
        scale = float(getattr(config, "logit_scale", None) or 1.0)  # Cohere
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)  # Granite
        cap = getattr(config, "final_logit_softcapping", None)  # Gemma
        return cls(layer.weight, getattr(layer, "bias", None), scale, cap, temperature)

    def answer(
        self, hidden: Tensor, questions: "Questions", dtype: torch.dtype, *, entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probs [Q] of the tokens asked for and entropy [R] of each head, nats, with gradients.

        hidden [R, D]; matrix products are in `dtype`, both results are float32, or float64 if hidden is.
        """
        work = torch.float64 if dtype == torch.float64 else torch.float32
        shape = _Shape(self.scale, self.cap, self.temperature, work)
        with torch.autocast(hidden.device.type, enabled=False):
            log_probs, entropies = _Answer.apply(  # type: ignore[no-untyped-call]
                hidden.to(dtype), self.weight, self.bias, shape, questions, entropy
            )
        return log_probs, entropies if entropy else None


@dataclass(frozen=True)
class Questions:
    """Which tokens are asked of which of R hidden states, in rising order of these."""

    head: Tensor  # [Q] int64
    token: Tensor  # [Q] int64
    before: Tensor  # [R + 1] int64 on the CPU: number of questions before each head, and of all

    def tiles(self, rows: int) -> Iterator[tuple[slice, slice]]:
        """Slices of heads, `rows` at a time, and of the questions about them."""
        heads = len(self.before) - 1
        for start in range(0, heads, rows):
            stop = min(start + rows, heads)
            yield slice(start, stop), slice(int(self.before[start]), int(self.before[stop]))


class _Answer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        shape: "_Shape",
        questions: Questions,
        entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        matrix = weight.detach().to(hidden.dtype)
        normalizer = torch.empty(len(hidden), dtype=shape.work, device=hidden.device)
        log_probs = torch.empty(len(questions.head), dtype=shape.work, device=hidden.device)
        entropies = torch.empty_like(normalizer if entropy else normalizer[:0])
        logits = hidden[:0]
        for rows, asked in questions.tiles(_tile_rows(hidden, weight)):
            logits = _logits(hidden[rows], matrix, bias)
            if entropy:
                both = fused(shape.normalizer_and_entropy, hidden)(logits)
                normalizer[rows], entropies[rows] = both
            else:
                normalizer[rows] = fused(shape.normalizer, hidden)(logits)
            head = questions.head[asked]
            chosen = shape.final(logits[head - rows.start, questions.token[asked]])
            log_probs[asked] = chosen - normalizer[head]
        # The last tile is there anyway: the backward pass starts with it.
        ctx.save_for_backward(hidden, weight, bias, normalizer, entropies, logits)
        ctx.shape, ctx.questions = shape, questions
        ctx.set_materialize_grads(False)  # who asks for the entropy may not train on it
        return log_probs, entropies

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, normalizer, entropies, last = ctx.saved_tensors
        shape, questions = ctx.shape, ctx.questions
        matrix, (to_log_probs, to_entropies) = weight.detach().to(hidden.dtype), upstream
        given = normalizer.new_zeros(len(questions.head)) if to_log_probs is None else to_log_probs
        # Each of a head's questions pushes the whole distribution down.
        pull = torch.zeros_like(normalizer).index_add_(0, questions.head, given)
        to_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        to_weight = torch.zeros_like(weight, dtype=shape.work) if ctx.needs_input_grad[1] else None
        to_bias = (
            torch.zeros_like(bias, dtype=shape.work) if bias is not None and ctx.needs_input_grad[2] else None
        )
        for rows, asked in reversed(list(questions.tiles(_tile_rows(hidden, weight)))):
            logits = last if rows.stop == len(hidden) else _logits(hidden[rows], matrix, bias)
            head, token = questions.head[asked] - rows.start, questions.token[asked]
            slope = shape.slope(logits[head, token])
            if to_entropies is None:
                gradient = fused(shape.gradient, hidden)(logits, normalizer[rows], pull[rows])
            else:
                gradient = fused(shape.gradient_with_entropy, hidden)(
                    logits, normalizer[rows], pull[rows], entropies[rows], to_entropies[rows]
                )
            gradient[head, token] += (slope * given[asked]).to(gradient.dtype)  # each pair is there once
            if to_hidden is not None:
                to_hidden[rows] = gradient @ matrix
            if to_weight is not None:
                _add_product(to_weight, gradient.t(), hidden[rows])
            if to_bias is not None:
                to_bias += gradient.sum(0, dtype=shape.work)
        return (
            to_hidden,
            None if to_weight is None else to_weight.to(weight.dtype),
            None if to_bias is None or bias is None else to_bias.to(bias.dtype),
            *(None,) * 3,
        )


def _tile_rows(hidden: Tensor, weight: Tensor) -> int:
    size = CUDA_TILE_BYTES if hidden.is_cuda else CPU_TILE_BYTES
    return max(1, size // (weight.shape[0] * hidden.itemsize))


def _logits(hidden: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """[r, V], before the model scales them."""
    logits = hidden @ matrix.t()
    return logits if bias is None else logits + bias.to(logits.dtype)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, which is not rounded to the factors' type before: tiles' errors would add up."""
    if total.dtype == right.dtype:
        total.addmm_(left, right)
    elif total.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))


@dataclass(frozen=True)
class _Shape:
    """What becomes of logits, and what is made of them in one pass over a tile [r, V]."""

    scale: float
    cap: float | None
    temperature: float
    work: torch.dtype

    def final(self, logits: Tensor) -> Tensor:
        logits = logits.to(self.work)
        if self.cap is None:
            factor = self.scale / self.temperature
            return logits if factor == 1 else logits * factor
        return torch.tanh(logits * (self.scale / self.cap)) * (self.cap / self.temperature)

    def slope(self, logits: Tensor) -> Tensor | float:
        """d final / d logits."""
        slope = self.scale / self.temperature
        if self.cap is None:
            return slope
        return slope * (1 - torch.tanh(logits.to(self.work) * (self.scale / self.cap)).square())

    def normalizer(self, logits: Tensor) -> Tensor:
        return self.final(logits).logsumexp(-1)

    def normalizer_and_entropy(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        final = self.final(logits)
        normalizer = final.logsumexp(-1)
        likely = (final - normalizer[:, None]).exp()
        return normalizer, normalizer - (likely * final).sum(-1)

    def gradient(self, logits: Tensor, normalizer: Tensor, pull: Tensor) -> Tensor:
        """What the normalisers send back to the logits, in their type; `pull` [r] is what comes to them."""
        likely = (self.final(logits) - normalizer[:, None]).exp_()
        return likely.mul_(self.slope(logits)).mul_(-pull[:, None]).to(logits.dtype)

    def gradient_with_entropy(
        self, logits: Tensor, normalizer: Tensor, pull: Tensor, entropy: Tensor, given: Tensor
    ) -> Tensor:
        """The same with what comes to the entropies, `given` [r]: dH / d final = -pi (log pi + H)."""
        log_likely = self.final(logits) - normalizer[:, None]
        from_all = pull[:, None] + given[:, None] * (log_likely + entropy[:, None])
        return log_likely.exp_().mul_(self.slope(logits)).mul_(-from_all).to(logits.dtype)
