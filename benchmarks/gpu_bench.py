"""What the sections of gpu.py share: models of random weights, rollouts, learners, clocks, and the record."""

import gc
import json
import os
import platform
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import deterministic as fill
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from powermean.contracts.algorithms import AlgorithmSpec, Pmpo
from powermean.contracts.training import OptimizerSpec
from trainer.learner.learner import Learner
from trainer.learner.optimizer import MasterWeights, make_optimizer
from trainer.learner.training_batch import TrainingBatch
from trainer.objectives import build_algorithm
from trainer.policy.loading import Compile, make_policy
from trainer.rollouts.batching import Rollouts

GROUPS, SIZE = 8, 8  # prompts of a minibatch, completions of each
DENSE_BF16_FLOPS = 989e12  # of an H100 or H200, by the data sheet
SHAPES = {
    "0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@dataclass
class Bench:
    """The run so far."""

    tiny: bool
    out: Path | None
    budget_s: float
    lines: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)
    section_ends: float = 0.0

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.tiny else "cuda")

    @property
    def left(self) -> float:
        """Seconds left to the section that runs."""
        return min(self.section_ends, self.began + self.budget_s) - time.perf_counter()

    def run(self, name: str, section: Callable[[], object], seconds: float) -> None:
        """One section; what it raises is recorded, and the next one runs."""
        self.section_ends = time.perf_counter() + seconds
        if self.left <= 0:
            return self.line(f"{name}: no time left")
        started = time.perf_counter()
        try:
            self.results[name] = section()
        except Exception as error:  # noqa: BLE001 (the next section may well run)
            self.failed(name, error)
        clean(self.device)
        self.line(f"{name}: {time.perf_counter() - started:.1f} s")
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "results.json").write_text(json.dumps(self.results, indent=1, default=str))
        return None

    def line(self, text: str) -> None:
        self.lines.append(text)
        print(f"[{time.perf_counter() - self.began:6.1f}] {text}", flush=True)

    def failed(self, where: str, error: Exception) -> None:
        self.failures.append(where)
        self.line(f"FAILED {where}: {type(error).__name__}: {str(error)[:400]}")
        print("".join(traceback.format_exception(error))[-4000:], flush=True)


def environment(bench: Bench) -> dict[str, Any]:
    """Versions, and what the chip does: a matrix product in TFLOP/s, a copy in TB/s."""
    found: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("transformers", "trl", "triton", "peft"):
        try:
            found[name] = __import__(name).__version__
        except ImportError:
            found[name] = None
    if not bench.tiny:
        found["gpu"] = torch.cuda.get_device_name()
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        found["matmul_tflops"] = round(2 * 8192**3 / median_s(bench, lambda: a @ b, 10) / 1e12)
        x, y = (torch.empty(2**31, device="cuda", dtype=torch.uint8) for _ in range(2))
        found["copy_tb_s"] = round(2 * 2**31 / median_s(bench, lambda: y.copy_(x), 10) / 1e12, 2)
    bench.line(f"env {json.dumps(found)}")
    return found


def model(bench: Bench, size: str, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """A Qwen2.5 of random weights, on the device."""
    shape = TINY if bench.tiny else SHAPES[size]
    config = Qwen2Config(
        vocab_size=512 if bench.tiny else 151936,
        max_position_embeddings=16384,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        **(shape | changes),
    )
    torch.manual_seed(0)
    with bench.device:
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")


def parameters(of: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in of.parameters())


def lengths(bench: Bench, prompt: int, completion: int) -> tuple[int, int]:
    """Tokens of prompts and completions; a sixteenth in tiny form."""
    return (max(4, prompt // 16), max(4, completion // 16)) if bench.tiny else (prompt, completion)


def rollouts(
    vocabulary: int,
    prompt: int,
    completion: int,
    *,
    ragged: bool = False,
    seed: int = 0,
    groups: int = GROUPS,
) -> Rollouts:
    """Prompts and completions of random tokens; `ragged`: of unequal lengths, down to a quarter."""
    chance = torch.Generator().manual_seed(seed)
    count = groups * SIZE
    tokens = torch.randint(3, vocabulary, (count, completion), generator=chance)
    ends = torch.full((count, 1), completion)
    prompts = [prompt] * groups
    if ragged:
        ends = torch.randint(max(1, completion // 4), completion + 1, (count, 1), generator=chance)
        prompts = torch.randint(max(1, prompt // 4), prompt + 1, (groups,), generator=chance).tolist()
    mask = torch.arange(completion) < ends
    return Rollouts(
        prompts=tuple(tuple(torch.randint(3, vocabulary, (n,), generator=chance).tolist()) for n in prompts),
        tokens=tokens * mask,
        mask=mask,
        sampler_log_probs=torch.zeros(count, completion),
        truncated=torch.zeros(count, dtype=torch.bool),
        weight_version=torch.zeros(count, dtype=torch.int64),
    )


def rewards(groups: int = GROUPS) -> Tensor:
    """0 or 1, with spread in every group: every group costs a pass."""
    given = torch.randint(0, 2, (groups, SIZE), generator=torch.Generator().manual_seed(0)).double()
    given[:, 0], given[:, 1] = 0.0, 1.0
    return given.flatten()


def make_learner(
    of: PreTrainedModel,
    *,
    tokens: int,
    algorithm: AlgorithmSpec | None = None,
    dtype: torch.dtype = torch.bfloat16,
    masters: bool = False,
    checkpointing: bool = False,
    compiled: Compile = "off",
    rate: float = 1e-6,
) -> Learner:
    policy = make_policy(
        of, dtype=dtype, temperature=1.0, gradient_checkpointing=checkpointing, compiled=compiled
    )
    spec = OptimizerSpec(learning_rate=rate, warmup_updates=0)
    kept = MasterWeights(policy.model) if masters else None
    return Learner(
        policy=policy,
        reference=None,
        algorithm=build_algorithm(algorithm or Pmpo()),
        spec=spec,
        optimizer=make_optimizer(policy.model, spec, kept),
        micro_batch_tokens=tokens,
        masters=kept,
        pad_token_id=0,
    )


def start(of: Learner, given: Rollouts, recorded: int = 0) -> TrainingBatch:
    graded = rewards(len(given.prompts))
    return TrainingBatch.start(
        1,
        given,
        advantages=of.algorithm.advantages(graded, given.group),
        kept=of.algorithm.keep(graded, given.group),
        rewards=graded,
        progress=0.3,
        max_new_tokens=given.tokens.shape[1],
        recorded=recorded,
        device=of.policy.device,
    )


@contextmanager
def deterministic() -> Iterator[None]:
    """As a real run has it (trainer/run.py: seed_all)."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    fill.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def clean(device: torch.device) -> None:
    gc.collect()
    torch._dynamo.reset()  # another section's shapes are no business of the next one's
    if device.type == "cuda":
        torch.cuda.empty_cache()


def median_s(bench: Bench, call: Callable[[], object], rounds: int) -> float:
    """Median seconds of a call, after one that warms up."""
    times = []
    for _ in range(rounds + 1):
        sync(bench.device)
        began = time.perf_counter()
        call()
        sync(bench.device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


@contextmanager
def peak_gib(bench: Bench) -> Iterator[list[float]]:
    """The highest allocation while the block runs, GiB; 0 on a CPU."""
    found: list[float] = []
    if bench.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    yield found
    top = torch.cuda.max_memory_allocated() if bench.device.type == "cuda" else 0
    found.append(round(top / 2**30, 2))


def cpu_count() -> int:
    return os.cpu_count() or 1
