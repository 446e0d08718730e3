"""The model that benchmarks/gpu_engine.py samples from, and what its parts ask of it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen2Config

from powermean.contracts.rollout import Completion, GenerateRequest, Sampling
from rollout.engine import Fence
from rollout.transformers.engine import Limits, TransformersEngine
from rollout.transformers.slots import Slots
from rollout.weights import WeightSource

Found = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """What is sampled: `prompts` prompts of `width` tokens, `n` completions of `new` tokens each."""

    model: dict[str, int]
    prompts: int
    n: int
    width: int
    new: int

    @property
    def rows(self) -> int:
        return self.prompts * self.n


QWEN = Size(
    {
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    prompts=8,
    n=8,
    width=256,
    new=256,
)
TINY = Size(
    {
        "vocab_size": 600,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    prompts=2,
    n=2,
    width=8,
    new=40,
)


class NoText:
    """A tokenizer without stop strings has nothing to decode."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        raise NotImplementedError


class Bench:
    """The model, and what the parts ask of it."""

    def __init__(self, size: Size, device: torch.device) -> None:
        self.size = size
        self.device = device
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.graphs = device.type == "cuda"
        self.model = self.build(self.dtype)

    def build(self, dtype: torch.dtype) -> Any:
        """The model; the same weights in every dtype, up to rounding."""
        config = Qwen2Config(
            **self.size.model,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
            initializer_range=0.05,
        )
        torch.manual_seed(0)
        with self.device:
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
        return model.to(dtype).eval()

    def engine(self, model: Any, *, graphs: bool) -> TransformersEngine:
        """One that decodes in slots."""
        return TransformersEngine(
            model,
            NoText(),
            Fence("job", 1, 0),
            WeightSource(None),
            Limits(4096, 131072),
            end_tokens=frozenset(),
            slots=Slots(model, graphs=graphs and self.graphs),
        )

    def prompts(self, *, equal: bool = True) -> tuple[tuple[int, ...], ...]:
        """Random ones; of unequal length they also begin alike in pairs."""
        chance = torch.Generator().manual_seed(1)
        width, vocabulary = self.size.width, self.size.model["vocab_size"]
        ids = torch.randint(3, vocabulary, (self.size.prompts, width), generator=chance).tolist()
        if equal:
            return tuple(map(tuple, ids))
        return tuple(
            tuple(ids[i - i % 2][: width // 4] + one[width // 4 : width - i * (width // 2) // len(ids)])
            for i, one in enumerate(ids)
        )

    def request(self, new: int, *, equal: bool = True, seed: int = 1) -> GenerateRequest:
        sampling = Sampling(max_new_tokens=new, seed=seed)
        return GenerateRequest(prompts=self.prompts(equal=equal), n=self.size.n, sampling=sampling)

    def sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, action: Callable[[], object]) -> float:
        """Of one call, with all that it has started."""
        self.sync()
        start = time.perf_counter()
        action()
        self.sync()
        return time.perf_counter() - start


def sampled(engine: TransformersEngine, request: GenerateRequest) -> list[Completion]:
    """The completions, prompt by prompt."""
    return [one for group in engine.generate(request, Event()).completions for one in group]


def draws(bench: Bench, rows: int, new: int) -> Tensor:
    """The same numbers each time, [rows, new] in [0, 1)."""
    chance = torch.Generator().manual_seed(0)
    return torch.rand(rows, new, generator=chance, dtype=torch.float64).to(bench.device)
