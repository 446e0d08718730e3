"""Updates: time and memory of ours in its variants, and of TRL's whole GRPOTrainer, step by step in turns."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from gpu_bench import (
    DENSE_BF16_FLOPS,
    GROUPS,
    SIZE,
    Bench,
    clean,
    deterministic,
    lengths,
    make_learner,
    model,
    parameters,
    peak_gib,
    rewards,
    rollouts,
    start,
    sync,
)
from transformers import PreTrainedModel

from powermean.contracts.job import JobSpec
from tests.support.tiny_model import tiny_spec
from trainer.learner.learner import Learner
from trainer.preflight.footprint import footprint
from trainer.preflight.model_facts import ModelFacts
from trainer.rollouts.batching import Rollouts


def timed_update(bench: Bench, one: Learner, given: Rollouts) -> dict[str, tuple[float, float]]:
    """Seconds and peak GiB of a step's first update, which takes pi_old and entropy too, and of a second."""
    found = {}
    with deterministic():
        batch = start(one, given)
        for number, name in enumerate(("first", "later")):
            with peak_gib(bench) as peak:
                sync(bench.device)
                began = time.perf_counter()
                one.update(batch, range(len(given.prompts)), number)
                sync(bench.device)
                seconds = time.perf_counter() - began
            found[name] = (seconds, peak[0])
    return found


def measured(bench: Bench, one: Learner, given: Rollouts, warm: int, rounds: int) -> dict[str, Any]:
    warming = time.perf_counter()
    for _ in range(warm):
        timed_update(bench, one, given)
    warming = time.perf_counter() - warming
    runs = [timed_update(bench, one, given) for _ in range(rounds)]
    return {
        "warm_s": warming,
        **{
            name: (statistics.median(run[name][0] for run in runs), max(run[name][1] for run in runs))
            for name in ("first", "later")
        },
    }


def said(found: dict[str, Any], tokens: int, through: int, weights: int) -> str:
    seconds, peak = found["later"]
    mfu = 6 * weights * through / seconds / DENSE_BF16_FLOPS
    return (
        f"{1e3 * seconds:.0f} ms (first {1e3 * found['first'][0]:.0f}), {tokens / seconds:.0f} tok/s, "
        f"MFU {mfu:.1%}, peak {peak} GiB (first {found['first'][1]}, estimate {found['estimate']}), "
        f"warm-up {found['warm_s']:.0f} s"
    )


def estimate_gib(bench: Bench, of: PreTrainedModel, given: Rollouts, tokens: int, **training: Any) -> float:
    """What `powermean fit` says of such updates."""
    spec = tiny_spec(
        "model",
        model={"folder": "model", "dtype": "bfloat16"},
        rollout={"group_size": SIZE, "max_new_tokens": given.tokens.shape[1]},
        training={
            "steps": 1,
            "prompts_per_step": len(given.prompts),
            "minibatches": 1,
            "micro_batch_tokens": tokens,
            **training,
        },
    )
    shapes = {name: tuple(weight.shape) for name, weight in of.named_parameters()}
    facts = ModelFacts(of.config.to_dict(), shapes)
    longest = max(map(len, given.prompts))
    found = footprint(JobSpec.model_validate(spec), facts, longest, cuda=not bench.tiny)
    assert found is not None
    return round(found.total / 2**30, 2)


def nodes(one: Learner, given: Rollouts) -> int:
    """Tokens that go through the model in an update."""
    rows = given.trajectories(range(len(given.tokens)))
    return sum(tree.size for tree in one.policy.batches(rows, one.micro_batch_tokens))


def variants(bench: Bench) -> dict[str, Any]:
    """0.5B, 8 groups of 8 x (256 + 512), micro-batches of half of them."""
    prompt, completion = lengths(bench, 256, 512)
    found: dict[str, Any] = {}
    for name, masters, compiled, checkpointing in (
        ("bfloat16 weights, compiled", True, True, False),
        ("bfloat16 weights", True, False, False),
        ("autocast", False, False, False),
        ("autocast, compiled", False, True, False),
        ("bfloat16 weights, compiled, checkpointing", True, True, True),
        ("bfloat16 weights, checkpointing", True, False, True),
    ):
        if bench.left < 20 or (bench.tiny and compiled):
            continue
        try:
            of = model(bench, "0.5b")
            count = parameters(of)
            given = rollouts(of.config.vocab_size, prompt, completion)
            settings: dict[str, Any] = {"compile": "on" if compiled else "off"}
            settings |= {"weights": "bfloat16"} if masters else {}
            estimate = estimate_gib(bench, of, given, 17500, gradient_checkpointing=checkpointing, **settings)
            one = make_learner(
                of,
                tokens=17500,
                masters=masters,
                compiled=settings["compile"],
                checkpointing=checkpointing,
            )
            found[name] = measured(bench, one, given, 1, 2) | {"estimate": estimate}
            through = nodes(one, given)
            bench.line(f"variants, {name}: {said(found[name], int(given.mask.sum()), through, count)}")
        except Exception as error:  # noqa: BLE001 (the next variant may run)
            bench.failed(f"variants, {name}", error)
        of = one = None  # type: ignore[assignment]
        clean(bench.device)
    return found


def profile(bench: Bench) -> dict[str, Any]:
    """Where the time of an update goes: kernels of the GPU by name, and how long it had nothing to do."""
    prompt, completion = lengths(bench, 256, 512)
    of = model(bench, "0.5b")
    given = rollouts(of.config.vocab_size, prompt, completion)
    one = make_learner(of, tokens=17500, **(BEST if not bench.tiny else {}))
    timed_update(bench, one, given)
    batch = start(one, given)
    one.update(batch, range(GROUPS), 0)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if not bench.tiny:
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    sync(bench.device)
    with torch.profiler.profile(activities=kinds) as seen:
        began = time.perf_counter()
        one.update(batch, range(GROUPS), 1)
        sync(bench.device)
        wall = time.perf_counter() - began
    spent: dict[str, list[float]] = {}
    for event in seen.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            spent.setdefault(event.name[:90], []).append(event.time_range.elapsed_us() / 1e3)
    busy = sum(map(sum, spent.values()))
    count = sum(map(len, spent.values()))
    bench.line(f"profile: {1e3 * wall:.0f} ms on the clock, {busy:.0f} ms of kernels, {count} kernels")
    for ms, before, after in waits(seen.events())[:12]:
        bench.line(f"profile: {ms:7.1f} ms nothing to do between {before} and {after}")
    for name, times in sorted(spent.items(), key=lambda item: -sum(item[1]))[:22]:
        bench.line(f"profile: {sum(times):7.1f} ms {len(times):5d} x {name}")
    return {"wall_ms": 1e3 * wall, "kernels_ms": busy, "count": count}


def waits(events: Any) -> list[tuple[float, str, str]]:
    """How long the GPU waited, ms, with the kernels before and after; longest first."""
    kernels = sorted(
        (event for event in events if event.device_type == torch.autograd.DeviceType.CUDA),
        key=lambda event: event.time_range.start,
    )
    found, end, name = [], None, ""
    for event in kernels:
        if end is not None and event.time_range.start > end:
            found.append(((event.time_range.start - end) / 1e3, name[:60], event.name[:60]))
        if end is None or event.time_range.end > end:
            end, name = event.time_range.end, event.name
    return sorted(found, reverse=True)


# name, model, prompt, completion, groups of TRL's micro-batch, tokens of ours, checkpointing, warm-up, rounds
PAIRS = (
    ("0.5b 256/512 m4", "0.5b", 256, 512, 4, 17500, False, 1, 3),
    ("1.5b 1024/1024 m1", "1.5b", 1024, 1024, 1, 9300, False, 1, 2),
    ("0.5b 256/512 m1", "0.5b", 256, 512, 1, 4400, False, 1, 2),
    ("0.5b 64/64 m8", "0.5b", 64, 64, 8, 4700, False, 1, 2),
    ("0.5b 256/512 m4 ragged", "0.5b", 256, 512, 4, 17500, False, 1, 2),
    ("1.5b 256/512 m1 checkpointing", "1.5b", 256, 512, 1, 4400, True, 1, 2),
)
BEST = {"compiled": "on"}  # what a job has by default


def against_trl(bench: Bench) -> dict[str, Any]:
    """Ours and TRL's on the same tokens, in turns."""
    found = {}
    for name, size, prompt, completion, groups, tokens, checkpointing, warm, rounds in PAIRS:
        if bench.left < (5 if bench.tiny else 30):
            bench.line(f"TRL {name}: no time left")
            continue
        try:
            found[name] = pair(
                bench,
                name,
                size,
                *lengths(bench, prompt, completion),
                groups,
                tokens,
                checkpointing,
                warm,
                rounds,
            )
        except Exception as error:  # noqa: BLE001 (the next pair may run)
            bench.failed(f"TRL {name}", error)
        clean(bench.device)
        if bench.tiny:
            break
    return found


def pair(
    bench: Bench,
    name: str,
    size: str,
    prompt: int,
    completion: int,
    groups: int,
    tokens: int,
    checkpointing: bool,
    warm: int,
    rounds: int,
) -> dict[str, Any]:
    of = model(bench, size)
    count = parameters(of)
    given = rollouts(of.config.vocab_size, prompt, completion, ragged="ragged" in name)
    best = BEST if not bench.tiny else {}
    estimate = estimate_gib(bench, of, given, tokens, gradient_checkpointing=checkpointing, compile="on")
    one = make_learner(of, tokens=tokens, checkpointing=checkpointing, **best)
    timed_update(bench, one, given)  # so that both sides' optimiser states are there from the first turn on
    resident = torch.cuda.memory_allocated() / 2**30 if bench.device.type == "cuda" else 0.0
    ours: list[dict[str, tuple[float, float]]] = []
    theirs: list[tuple[float, float]] = []
    other = model(bench, size)
    other_weights = 12 * count / 2**30  # weights and Adam's moments, which stay while we take our turn

    def turn(seconds: float, peak: float) -> None:
        theirs.append((seconds, peak - resident))
        mine = timed_update(bench, one, given)
        ours.append({key: (s, top - other_weights) for key, (s, top) in mine.items()})

    trl_steps(bench, other, given, groups, checkpointing, warm + rounds, turn)
    kept, seen = ours[warm:], theirs[warm:]
    result: dict[str, Any] = {"warm_s": 0.0, "estimate": estimate}
    for key in ("first", "later"):
        result[key] = (
            statistics.median(run[key][0] for run in kept),
            round(max(run[key][1] for run in kept), 2),
        )
    seconds, peak = statistics.median(s for s, _ in seen), round(max(top for _, top in seen), 2)
    through = nodes(one, given)
    mfu = 6 * count * GROUPS * SIZE * (prompt + completion) / seconds / DENSE_BF16_FLOPS
    bench.line(f"TRL {name}: ours {said(result, int(given.mask.sum()), through, count)}")
    highest = max(result["first"][1], result["later"][1])
    bench.line(
        f"TRL {name}: TRL {1e3 * seconds:.0f} ms, MFU {mfu:.1%}, peak {peak} GiB; ours / TRL: time "
        f"{result['later'][0] / seconds:.2f}, peak {highest / max(peak, 1e-9):.2f}"
    )
    return {"ours": result, "TRL": (seconds, peak), "through": through}


def trl_steps(
    bench: Bench,
    of: torch.nn.Module,
    given: Rollouts,
    groups: int,
    checkpointing: bool,
    steps: int,
    after: Callable[[float, float], None],
) -> None:
    """TRL's GRPOTrainer on these rollouts; `after(seconds, peak GiB)` is called after each optimiser step."""
    from transformers import TrainerCallback  # noqa: PLC0415
    from trl_peer import train_on  # noqa: PLC0415 (needs TRL, which may be missing)

    cuda = bench.device.type == "cuda"

    class Clock(TrainerCallback):
        began = time.perf_counter()

        def on_step_end(self, args: object, state: object, control: object, **_kw: object) -> None:
            sync(bench.device)
            peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
            after(time.perf_counter() - self.began, peak)
            sync(bench.device)
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            self.began = time.perf_counter()

    train_on(
        of,
        given,
        rewards().tolist(),
        groups,
        Clock(),
        use_cpu=not cuda,
        bf16=True,
        learning_rate=1e-6,
        max_steps=steps,
        max_grad_norm=1.0,
        gradient_checkpointing=checkpointing,
    )


def long_group(bench: Bench) -> dict[str, Any]:
    """One group of 8 x (1024 + 8192) of 1.5B with checkpointing: the goal is 80 GB."""
    prompt, completion = lengths(bench, 1024, 8192)
    of = model(bench, "1.5b")
    given = rollouts(of.config.vocab_size, prompt, completion, groups=1)
    best = BEST if not bench.tiny else {}
    estimate = estimate_gib(bench, of, given, 1 << 20, gradient_checkpointing=True, compile="on")
    one = make_learner(of, tokens=1 << 20, checkpointing=True, **best)
    found = measured(bench, one, given, 0, 1) | {"estimate": estimate}
    bench.line(f"long: {said(found, int(given.mask.sum()), nodes(one, given), parameters(of))}")
    if max(found["first"][1], found["later"][1]) > 78:
        bench.failures.append("long")
    return found
