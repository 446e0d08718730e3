"""Correctness on the device: trees against rows, no NaN for any shape, the objective and whole updates."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from gpu_bench import Bench, clean, deterministic, lengths, make_learner, model, rollouts, start
from objective import bare, data, medians, ours, worst_miss
from torch import Tensor

from powermean.contracts import algorithms as specs
from trainer.objectives import batch_facts, build_algorithm
from trainer.policy.loading import make_policy
from trainer.policy.policy import Policy
from trainer.rollouts.batching import Trajectories

F32, BF16 = torch.float32, torch.bfloat16


def cases(vocabulary: int, most: int) -> Iterator[tuple[str, Trajectories]]:
    """What the laws of tests/trainer/policy cover: unequal lengths, duplicates, prefixes, single tokens."""
    chance = torch.Generator().manual_seed(0)

    def draw(length: int) -> list[int]:
        return torch.randint(3, vocabulary, (length,), generator=chance).tolist()

    system, long = draw(most // 4), draw(most)
    yield (
        "unequal",
        Trajectories(
            [p for p in (draw(most), draw(most // 3), draw(1)) for _ in range(3)],
            [draw(n) for n in (most, 5, 1, most // 2, most // 2 + 1, 2, 7, most, 3)],
        ),
    )
    yield "duplicates and prefixes", Trajectories([draw(9)] * 5, [long, long, long[:7], [*long[:7], 5], []])
    yield "a common beginning", Trajectories([[*system, n] for n in range(4)], [draw(6) for _ in range(4)])
    group = draw(most)
    yield "one group", Trajectories([group] * 8, [draw(most) for _ in range(8)])


def gradient(policy: Policy, given: Trajectories, tokens: int = 1 << 20) -> tuple[Tensor, Tensor]:
    """Log-probs [n] in order of row and token, and the gradient of a weighted sum of them, flat."""
    chance = torch.Generator().manual_seed(1)
    weights = torch.randn(len(given), max(map(len, given.completions)), generator=chance).to(policy.device)
    total, found = torch.zeros((), device=policy.device), torch.zeros_like(weights)
    for tree in policy.batches(given, tokens):
        tree = tree.to(policy.device)
        log_probs = policy.score(tree).log_probs
        rows = tree.rows.to(policy.device)
        found[rows, : tree.width] = log_probs.detach().float()
        total = total + (log_probs * weights[rows, : tree.width]).sum()
    trained = [weight for weight in policy.model.parameters() if weight.requires_grad]
    flat = torch.cat([one.float().flatten() for one in torch.autograd.grad(total, trained)])
    return found, flat


def relative(ours: Tensor, exact: Tensor) -> float:
    return float((ours - exact).norm() / exact.norm())


def laws(bench: Bench) -> dict[str, Any]:
    """Trees against one row a pass in float32; bfloat16 trees within twice of what bfloat16 does to rows."""
    torch.backends.cuda.matmul.allow_tf32 = False
    of = model(bench, "0.5b", num_hidden_layers=2 if bench.tiny else 6)
    most = 12 if bench.tiny else 160
    exact = make_policy(of, dtype=F32, temperature=1.0)
    ways: dict[str, Policy] = {
        "float32 tree": exact,
        "bfloat16 tree": replace(exact, dtype=BF16),
        "bfloat16 tree by flash": replace(exact, dtype=BF16, flash=True),
    }
    bench.line(f"laws: the model is scored by {'trees' if exact.by_tree else 'padded rows'}")
    found: dict[str, Any] = {"by_tree": exact.by_tree}
    for name, given in cases(of.config.vocab_size, most):
        rows = replace(exact, by_tree=False)
        log_probs, flat = gradient(rows, given, 1)  # a row a pass
        rough, rough_flat = gradient(replace(rows, dtype=BF16), given, 1)
        found[name] = {
            "bfloat16 rows": ((rough - log_probs).abs().max().item(), relative(rough_flat, flat)),
        }
        for way, policy in ways.items():
            ours, ours_flat = gradient(policy, given)
            found[name][way] = ((ours - log_probs).abs().max().item(), relative(ours_flat, flat))
        text = "; ".join(f"{way} {d:.1e} nats, gradient {g:.1e}" for way, (d, g) in found[name].items())
        rough_ways = [found[name][way][1] for way, policy in ways.items() if policy.dtype == BF16]
        within = max(rough_ways) <= 2 * found[name]["bfloat16 rows"][1]
        near = found[name]["float32 tree"][1] <= 1e-5
        bench.line(f"laws, {name}: {text}; within twice: {within}; float32 within 1e-5: {near}")
        with deterministic():
            first, again = (gradient(ways["bfloat16 tree by flash"], given)[1] for _ in range(2))
        equal = torch.equal(first, again)
        if not equal:
            bench.line(f"laws, {name}: two gradients by flash differ")
        if not (within and near and equal):
            bench.failures.append(f"laws, {name}")
    return found


def nan_hunt(bench: Bench) -> dict[str, Any]:
    """bfloat16 gradients of all lengths of a short second prompt, and of micro-batches of any size."""
    of = model(bench, "0.5b", num_hidden_layers=2)
    policy = make_policy(of, dtype=BF16, temperature=1.0)
    chance = torch.Generator().manual_seed(3)
    broken = []
    tried = 0
    sizes = [1, 2, 8, 31, 32, 33, 63, 64, 100, 127, 128, 129, 200, 255, 256, 300]
    for first in sizes[:4] if bench.tiny else sizes:
        for second in (1, 17, 64) if bench.tiny else (1, 2, 17, 33, 64, 127, 128, 130):
            if bench.left < 2:
                break
            prompts = [torch.randint(3, 512, (n,), generator=chance).tolist() for n in (first, second)]
            given = Trajectories(
                [p for p in prompts for _ in range(2)],
                [torch.randint(3, 512, (n,), generator=chance).tolist() for n in (second, 1, first, 5)],
            )
            tried += 1
            if not bool(gradient(policy, given)[1].isfinite().all()):
                broken.append((first, second))
    bench.line(f"nan: {tried} shapes, not finite: {broken or 'none'}")
    if broken:
        bench.failures.append("nan")
    return {"tried": tried, "broken": broken}


def objective(bench: Bench) -> dict[str, Any]:
    """The objectives on the device in float32 against the CPU in float64, and what one costs."""
    given = {
        "pmpo": specs.Pmpo(),
        "pmpo outside": specs.Pmpo(clip_fraction="outside"),
        "pmpo absolute": specs.Pmpo(ess_target="absolute"),
        "grpo": specs.Grpo(),
        "gmpo": specs.Gmpo(),
        "p = -4": specs.PowerMean(p=-4.0),
        "holder": specs.Holder(),
        "apmpo": specs.Apmpo(),
        "gspo": specs.Gspo(),
        "dr_grpo": specs.DrGrpo(),
        "dapo": specs.Dapo(),
        "cispo": specs.Cispo(),
    }
    worst = {"p": 0.0, "ess": 0.0, "gradient": 0.0, "distance": 0.0}
    for spec in given.values():
        algorithm = build_algorithm(spec)
        for spread in (0.05, 0.3, 2.0):
            x, mask, advantages, facts = data(64, 64 if bench.tiny else 512, spread, "cpu")
            facts = replace(facts, reward_std=0.5)
            both = []
            for device, dtype in ((bench.device, F32), (torch.device("cpu"), torch.float64)):
                leaf = x.detach().to(device, dtype, copy=True).requires_grad_()
                out = algorithm.loss(
                    leaf, mask.to(device), advantages.to(device), facts, progress=0.3, mean_reward=0.4
                )
                out.loss.backward()
                assert leaf.grad is not None
                both.append((out, leaf.grad.cpu().double()))
            (here, flat), (there, exact) = both
            for key in ("p", "ess"):
                gap = (here.trajectories[key].cpu() - there.trajectories[key]).abs()
                assert torch.equal(here.trajectories[key].cpu().isnan(), there.trajectories[key].isnan())
                worst[key] = max(worst[key], float(gap.nan_to_num(0).max()))
            worst["gradient"] = max(worst["gradient"], relative(flat, exact))
            distances = [out.distance.value or 0.0 for out, _ in both]
            worst["distance"] = max(worst["distance"], abs(distances[0] - distances[1]))
    bench.line(f"objective, {bench.device.type} float32 against CPU float64, {len(given)} x 3: worst {worst}")
    found: dict[str, Any] = {"worst": worst, "cost": {}}
    pmpo, fixed = build_algorithm(specs.Pmpo()), build_algorithm(specs.PowerMean(p=1.0))
    for shape in ((32, 8),) if bench.tiny else ((32, 8), (64, 512), (512, 512), (512, 4096)):
        where = bench.device.type
        calls = {
            "p = 1": ours(fixed, *shape, 0.3, where),
            "pmpo": ours(pmpo, *shape, 0.3, where),
            "bare": bare(*shape, 0.3, where),
        }
        cost = {name: 1e3 * seconds for name, seconds in medians(calls, 10, where).items()}
        miss = worst_miss(pmpo, *shape, 0.3, where)
        found["cost"][str(shape)] = cost | {"miss": miss}
        text = ", ".join(f"{name} {ms:.2f} ms" for name, ms in cost.items())
        bench.line(f"objective {shape[0]} x {shape[1]}: {text}; worst miss {miss:.1e}")
    if max(worst["p"], worst["ess"], worst["gradient"]) > 1e-5:
        bench.failures.append("objective")
    return found


def learner(bench: Bench) -> dict[str, Any]:
    """Real updates in bfloat16 with unequal prompts: finite, and p and ESS as the CPU has them in float64."""
    found: dict[str, Any] = {}
    for name, masters in (("autocast", False), ("bfloat16 weights", True)):
        prompt, completion = lengths(bench, 64, 64)
        of = model(bench, "0.5b")
        one = make_learner(of, tokens=2048, masters=masters, rate=1e-3 if bench.tiny else 2e-5)
        given = rollouts(of.config.vocab_size, prompt, completion, ragged=True)
        batch = start(one, given, recorded=given.tokens.shape[0])
        gaps = {"p": 0.0, "ess": 0.0}
        losses, norms, solved = [], [], 0.0
        with deterministic():
            for number, groups in enumerate(([0, 2, 4, 6], [1, 3, 5, 7]) * 2):
                if number == 1:
                    one.score(batch, groups)
                report = one.update(batch, groups, number)
                x = torch.zeros(given.tokens.shape, dtype=torch.float64)
                for part in report.tokens:
                    x[part.rows, : part.log_ratio.shape[1]] = part.log_ratio.double()
                rows = report.rows
                mask = given.mask[rows]
                facts = batch_facts(mask, completion, batch.reward_std)
                exact = one.algorithm.loss(
                    torch.where(mask, x[rows], 0.0), mask, batch.advantages[rows], facts, 0.3
                )
                for key in gaps:
                    gap = (report.values[key][rows] - exact.trajectories[key]).abs()
                    gaps[key] = max(gaps[key], float(gap.nan_to_num(0).max()))
                p = exact.trajectories["p"]
                solved = float(((p > 0) & (p < 1)).double().mean())
                losses.append(round(report.loss, 5))
                norms.append(round(report.grad_norm or 0.0, 3))
        found[name] = {"losses": losses, "norms": norms, "gaps": gaps, "solved": solved}
        bench.line(f"learner, {name}: losses {losses}, norms {norms}, {solved:.0%} solved, off by {gaps}")
        del of, one, batch
        clean(bench.device)
    return found
