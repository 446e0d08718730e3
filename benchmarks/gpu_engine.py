"""The transformers engine on a GPU: are equal seeds equal completions, how fast is it, are log-probs right.

    python benchmarks/gpu_engine.py [--seconds 60] [--out FILE] [--tiny]

Random weights in the shape of Qwen2.5-0.5B, no network. Each part catches its own errors, is left out when
less than its time is left, and prints what it found; `run` returns it all. --tiny runs the same code in
seconds on a CPU.
"""

import argparse
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils import deterministic
from transformers import AutoModelForCausalLM, Qwen2Config

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from powermean.contracts.rollout import Completion, GenerateRequest, Sampling
from rollout.engine import Fence
from rollout.transformers.attention import decoding_attention
from rollout.transformers.decoding import sample_batch
from rollout.transformers.engine import Limits, TransformersEngine
from rollout.transformers.prefill import prefill
from rollout.transformers.slot_decoder import SlotDecoder
from rollout.transformers.slots import STRIDE, Slots
from rollout.transformers.stopping import Stopping
from rollout.transformers.token_choice import choose
from rollout.transformers.tree_decoder import TreeDecoder
from rollout.weights import WeightSource

if TYPE_CHECKING:
    import gpu_bench

Found = dict[str, Any]

REPEATS = 10  # of a single operation that is looked at for equal bits


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


def compared(one: Sequence[Completion], other: Sequence[Completion]) -> bool | str:
    """True if tokens and log-probs are equal, bit for bit; else how many rows differ, and where first."""
    places = []
    for a, b in zip(one, other, strict=True):
        mine, theirs = (list(zip(c.token_ids, c.logprobs, strict=True)) for c in (a, b))
        if mine != theirs:
            common = min(len(mine), len(theirs))
            places.append(next((i for i in range(common) if mine[i] != theirs[i]), common))
    return f"{len(places)} of {len(one)} rows differ, the first at token {min(places)}" if places else True


def seeds(bench: Bench) -> Found:
    """The same request again, in slots with graphs and without; prompts of equal and of unequal length."""
    new = min(48, bench.size.new)
    engines = {"graphs": bench.engine(bench.model, graphs=True)} if bench.graphs else {}
    engines["eager"] = bench.engine(bench.model, graphs=False)
    found: Found = {}
    firsts: dict[bool, list[list[Completion]]] = {True: [], False: []}
    for name, engine in engines.items():
        for equal, before in firsts.items():
            request, kind = bench.request(new, equal=equal), "equal" if equal else "unequal"
            runs = [sampled(engine, request) for _ in range(2 if name == "eager" else 4)]
            # The first run captures graphs as it goes, so it is partly eager.
            found[f"{name}, {kind} prompts"] = [compared(runs[0], run) for run in runs[1:]]
            if before:
                found[f"eager as graphs, {kind} prompts"] = compared(before[0], runs[0])
            before.append(runs[0])
    other = sampled(engine, bench.request(new, seed=2))
    found["another seed gives others"] = compared(other, firsts[True][-1]) is not True
    return found


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
    draws = _draws(bench, len(rows), 2)
    slots = Slots(model, graphs=False)

    def step() -> Tensor:
        return SlotDecoder(model, slots, rows, 1.0, 2).advance(draws).log_probs.clone()

    def tree() -> Tensor:
        decoder = TreeDecoder(model, rows, 1.0, plain=True)
        done = sample_batch(
            decoder, _draws(bench, len(rows), 16), Stopping(NoText(), frozenset(), ()), Event()
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
    draws = _draws(bench, len(logits), 1)[:, 0]
    hidden = torch.randn(bench.size.rows, size["hidden_size"], device=device, dtype=dtype)
    weight = torch.randn(size["vocab_size"], size["hidden_size"], device=device, dtype=dtype)
    heads, groups = size["num_attention_heads"], size["num_key_value_heads"]
    head = size["hidden_size"] // heads
    query = torch.randn(bench.size.rows, heads, 1, head, device=device, dtype=dtype)
    key = torch.randn(bench.size.rows, groups, 300, head, device=device, dtype=dtype)

    def choice() -> Tensor:
        chosen = choose(logits, 1.0, draws)
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


def _draws(bench: Bench, rows: int, new: int) -> Tensor:
    chance = torch.Generator().manual_seed(0)
    return torch.rand(rows, new, generator=chance, dtype=torch.float64).to(bench.device)


def speed(bench: Bench) -> Found:
    """Tokens a second of ours with graphs beside generate, in turns, and of ours without; ms by part."""
    model, request = bench.model, bench.request(bench.size.new)
    ours = {"graphs": bench.engine(model, graphs=True)} if bench.graphs else {}
    ours["eager"] = bench.engine(model, graphs=False)
    actions: dict[str, Callable[[], object]] = {
        name: lambda engine=engine: sampled(engine, request) for name, engine in ours.items()
    }
    actions["generate"] = lambda: _generate(bench, bench.size.new)
    first = {name: bench.seconds(action) for name, action in actions.items() if name == "graphs"}
    _generate(bench, 4)
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for name in ("graphs", "generate", "eager", "generate", "graphs"):
        if name in actions:
            seconds[name].append(bench.seconds(actions[name]))
    tokens = bench.size.rows * bench.size.new
    found: Found = {"rows": bench.size.rows, "after": bench.size.width, "new": bench.size.new}
    for name, times in seconds.items():
        middle = statistics.median(times)
        found[name] = {
            "tok/s": round(tokens / middle),
            "ms a step": round(1e3 * middle / bench.size.new, 2),
            "s": [round(one, 3) for one in times],
        }
    found |= {f"{name} the first time, with captures, s": round(one, 3) for name, one in first.items()}
    return found | _parts(bench)


@torch.inference_mode()
def _generate(bench: Bench, new: int) -> Tensor:
    """transformers' own loop."""
    ids = torch.tensor([p for p in bench.prompts() for _ in range(bench.size.n)], device=bench.device)
    made: Tensor = bench.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        top_k=0,
        top_p=1.0,
        max_new_tokens=new,
        pad_token_id=0,
    )
    assert made.shape[1] == ids.shape[1] + new
    return made


@torch.inference_mode()
def _parts(bench: Bench) -> Found:
    """ms of the prompts' pass, of a choice of tokens, and of steps that the host does not look at."""
    rows = [prompt for prompt in bench.prompts() for _ in range(bench.size.n)]
    logits = torch.randn(len(rows), bench.size.model["vocab_size"], device=bench.device, dtype=bench.dtype)
    draws = _draws(bench, len(rows), STRIDE)
    with decoding_attention(bench.model, grouped=True):
        slots = Slots(bench.model, graphs=bench.graphs)
        decoder = SlotDecoder(bench.model, slots, rows, 1.0, 3 * STRIDE)
        for _ in range(2):
            decoder.advance(draws)
        steps = bench.seconds(lambda: decoder.advance(draws)) / STRIDE
        found = {
            "ms prefill": bench.seconds(lambda: prefill(bench.model, bench.prompts(), bench.device)),
            "ms choice": bench.seconds(lambda: [choose(logits, 1.0, draws[:, 0]) for _ in range(10)]) / 10,
            "ms step": steps,
        }
    return {name: round(1e3 * one, 3) for name, one in found.items()}


def silence(bench: Bench) -> Found:
    """Whether steps without graphs make the host wait: CUDA is told to complain if it does."""
    rows = [prompt for prompt in bench.prompts(equal=False) for _ in range(bench.size.n)]
    with torch.inference_mode(), decoding_attention(bench.model, grouped=True):
        slots = Slots(bench.model, graphs=False)
        SlotDecoder(bench.model, slots, rows, 1.0, 20).advance(_draws(bench, len(rows), 2))
        with _no_sync(bench):
            for _ in range(3):
                slots.step(len(rows), 1.0)
    return {"steps without a wait": True}


@contextmanager
def _no_sync(bench: Bench) -> Iterator[None]:
    if bench.device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def log_probs(bench: Bench) -> Found:
    """Log-probs of sampled tokens against passes over prompt and completion in float32, unequal prompts.

    In bfloat16 a plain pass is off too: ours may be as far off as that.
    """
    exact = bench.build(torch.float32)
    request = bench.request(min(64, bench.size.new), equal=False)
    found: Found = {}
    for model, name in ((exact, "float32"), (bench.model, str(bench.dtype).removeprefix("torch."))):
        done = sampled(bench.engine(model, graphs=True), request)
        prompts = [prompt for prompt in request.prompts for _ in range(request.n)]
        ours, plain = [], []
        for prompt, one in list(zip(prompts, done, strict=True))[:: max(1, bench.size.n // 2)]:
            expected = _pass(exact, prompt, one)
            ours.append(torch.tensor(one.logprobs) - expected)
            plain.append(_pass(model, prompt, one) - expected)
        found[name] = {
            who: {"mean": float(f"{off.abs().mean():.2e}"), "worst": float(f"{off.abs().max():.2e}")}
            for who, off in (("ours", torch.cat(ours)), ("plain pass", torch.cat(plain)))
        }
    return found


@torch.inference_mode()
def _pass(model: Any, prompt: tuple[int, ...], completion: Completion) -> Tensor:
    """Log-probs of a completion's tokens, by a pass without cache, batch or padding."""
    device = next(model.parameters()).device
    ids = torch.tensor([[*prompt, *completion.token_ids]], device=device)
    logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
    return logits.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0].cpu()


# Each part, and the seconds without which it is not begun.
PARTS: dict[str, tuple[Callable[[Bench], Found], float]] = {
    "seeds": (seeds, 5),
    "speed": (speed, 15),
    "log_probs": (log_probs, 5),
    "silence": (silence, 2),
    "causes": (causes, 5),
}


def run(*, tiny: bool = False, seconds: float = 60.0, parts: Sequence[str] = tuple(PARTS)) -> Found:
    """All parts, as far as the time goes; what each found, or its error."""
    with as_the_service():
        return _run(tiny=tiny, seconds=seconds, parts=parts)


def section(bench: "gpu_bench.Bench") -> Found:
    """All parts as a section of benchmarks/gpu.py."""
    found = run(tiny=bench.tiny, seconds=bench.left)
    for name, part in found.items():
        bench.line(f"engine, {name}: {part}")
        if "error" in part:
            bench.failures.append(f"engine, {name}")
    return found


@contextmanager
def as_the_service() -> Iterator[None]:
    """The settings of `python -m rollout`, and cuBLAS's that a node's agent gives it."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    before = torch.get_deterministic_debug_mode(), deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        deterministic.fill_uninitialized_memory = before[1]


def _run(*, tiny: bool, seconds: float, parts: Sequence[str]) -> Found:
    began = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() and not tiny else "cpu")
    found: Found = {
        "machine": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
    }
    print(f"[  0.0] {found['machine']}", flush=True)
    bench = Bench(TINY if tiny else QWEN, device)
    for name in parts:
        action, needed = PARTS[name]
        left = seconds - (time.perf_counter() - began)
        if left < needed:
            found[name] = {"left out": f"{left:.0f} s are left"}
        else:
            try:
                found[name] = action(bench)
            except Exception as error:  # noqa: BLE001  (a part must not cost the others their time on the machine)
                found[name] = {"error": f"{type(error).__name__}: {error}"[:500]}
                traceback.print_exc()
        for what, value in found[name].items():
            print(f"[{time.perf_counter() - began:5.1f}] {name}: {what}: {value}", flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return found


def main() -> int:
    """Status 1 if a part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="time for all parts together")
    parser.add_argument("--parts", default=",".join(PARTS), help="which, in order")
    parser.add_argument("--out", type=Path, help="JSON file for what was found")
    parser.add_argument("--tiny", action="store_true", help="toy sizes on a CPU")
    arguments = parser.parse_args()
    found = run(tiny=arguments.tiny, seconds=arguments.seconds, parts=arguments.parts.split(","))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1))
    return int(any("error" in part for part in found.values()))


if __name__ == "__main__":
    sys.exit(main())
