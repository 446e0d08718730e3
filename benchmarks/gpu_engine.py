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
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor
from torch.utils import deterministic

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpu_engine_causes import causes
from gpu_engine_model import QWEN, TINY, Bench, Found, draws, sampled

from powermean.contracts.rollout import Completion
from rollout.transformers.attention import decoding_attention
from rollout.transformers.prefill import prefill
from rollout.transformers.slot_decoder import SlotDecoder
from rollout.transformers.slots import STRIDE, Slots
from rollout.transformers.token_choice import choose

if TYPE_CHECKING:
    import gpu_bench


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
    chances = draws(bench, len(rows), STRIDE)
    with decoding_attention(bench.model, grouped=True):
        slots = Slots(bench.model, graphs=bench.graphs)
        decoder = SlotDecoder(bench.model, slots, rows, 1.0, 3 * STRIDE)
        for _ in range(2):
            decoder.advance(chances)
        steps = bench.seconds(lambda: decoder.advance(chances)) / STRIDE
        found = {
            "ms prefill": bench.seconds(lambda: prefill(bench.model, bench.prompts(), bench.device)),
            "ms choice": bench.seconds(lambda: [choose(logits, 1.0, chances[:, 0]) for _ in range(10)]) / 10,
            "ms step": steps,
        }
    return {name: round(1e3 * one, 3) for name, one in found.items()}


def silence(bench: Bench) -> Found:
    """Whether steps without graphs make the host wait: CUDA is told to complain if it does."""
    rows = [prompt for prompt in bench.prompts(equal=False) for _ in range(bench.size.n)]
    with torch.inference_mode(), decoding_attention(bench.model, grouped=True):
        slots = Slots(bench.model, graphs=False)
        SlotDecoder(bench.model, slots, rows, 1.0, 20).advance(draws(bench, len(rows), 2))
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
