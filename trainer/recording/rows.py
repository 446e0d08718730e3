"""Turns the tensors of a step into the rows that are recorded: pure functions.

Undefined numbers (a quantile of nothing) are left out; numbers that are not finite are sent as null.
"""

import gzip
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from powermean.contracts.metrics import METRICS, WHOLE_STEP, MetricRow
from powermean.contracts.trajectories import TrajectoryRow, TrajectoryText, TrajectoryUpdate, staleness
from powermean.token_segments import write_segment
from trainer.learner.update_report import UPDATE_FIELDS, UpdateReport
from trainer.recording.report import StepReport
from trainer.recording.tokens import token_records
from trainer.rollouts.batching import Rollouts
from trainer.rollouts.sampling import graded_part


def metric(step: int, name: str, value: float | None, update: int = WHOLE_STEP) -> MetricRow:
    """A row of a known metric; a value that is not finite becomes null."""
    assert name in METRICS, name
    finite = value is not None and math.isfinite(value)
    return MetricRow(step=step, update=update, name=name, value=value if finite else None)


def step_metrics(report: StepReport) -> list[MetricRow]:
    """All rows of the step and its updates, except times."""
    lengths = report.rollouts.lengths
    rewards = report.sampling.rewards  # of all rounds, since a filtered batch would say little
    values: dict[str, float | None] = {
        "reward": float(rewards.mean()),
        "reward_std": float(rewards.std(dim=1, correction=1).mean()),
        "frac_reward_zero_std": float((rewards.amax(1) == rewards.amin(1)).double().mean()),
        "completions/mean_length": float(lengths.double().mean()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(report.rollouts.truncated.double().mean()),
        "num_tokens": float(report.tokens_so_far),
        "sampling/rounds": float(report.sampling.rounds),
        "sampling/groups_dropped": float(report.sampling.groups_dropped),
        "grader/failures": float(sum(grade.error is not None for grade in report.grades)),
        "trajectories/non_finite": float((~report.usable).sum()),
        "trajectories/empty": float((lengths == 0).sum()),
        "updates/skipped": float(sum(update.grad_norm is None for update in report.updates)),
        "publish/logp_difference_max": report.publish_difference,
    }
    entropy = _weighted(report.entropy, lengths.double())
    if entropy is not None:
        values["entropy"] = entropy
    values |= last_pass_metrics(report)
    values |= report.mismatch.metrics
    values |= staleness_metrics(report.step, report.rollouts)
    rows = [metric(report.step, name, value) for name, value in values.items()]
    for update in report.updates:
        rows += update_metrics(report.step, update, lengths)
    return rows


def staleness_metrics(step: int, rollouts: Rollouts) -> dict[str, float]:
    """Staleness of the trajectories with tokens."""
    made = rollouts.mask.any(-1)
    found = [staleness(step, version) for version in rollouts.weight_version[made].tolist()]
    if not found:
        return {}
    return {
        "staleness/mean": sum(found) / len(found),
        "staleness/max": float(max(found)),
        "staleness/share_mixed": sum(len(spans) > 1 for spans in rollouts.versions) / len(found),
    }


def last_pass_metrics(report: StepReport) -> dict[str, float]:
    """p pooled over the updates of the last pass, each trajectory once; skipped updates count as without p.

    Averages of the updates' numbers would be others: minibatches differ in how many trajectories have a p.
    """
    if not report.updates:
        return {}
    epochs = {facts.update: facts.epoch for facts in report.facts.updates}
    last = max(epochs.values())
    pools = [update.values["p"][update.rows] for update in report.updates if epochs[update.update] == last]
    p = torch.cat(pools)
    defined = p[~p.isnan()]
    found = {"mean": _mean(p), "q10": _quantile(p, 0.1), "min": _extreme(p, "min")}
    counts = {
        "defined": defined.numel(),
        "below_1": int((defined < 1).sum()),
        "undefined": p.numel() - defined.numel(),
    }
    known = {name: value for name, value in found.items() if value is not None} | counts
    return {f"p/last_pass/{name}": float(value) for name, value in known.items()}


def time_metrics(step: int, seconds: Mapping[str, float], tokens: int) -> list[MetricRow]:
    """Rows of the times by phase; `seconds` includes "step", the total."""
    rows = [metric(step, f"time/{name}", value) for name, value in seconds.items()]
    return [*rows, metric(step, "tokens_per_second", tokens / max(seconds["step"], 1e-9))]


def update_metrics(step: int, report: UpdateReport, lengths: Tensor) -> list[MetricRow]:
    """Rows of one optimiser step; none if it was skipped. lengths [N]."""
    if report.grad_norm is None:
        return []
    of = {name: values[report.rows] for name, values in report.values.items()}
    p, tokens = of["p"], lengths[report.rows].double()
    defined = p[~p.isnan()]
    values: dict[str, float | None] = {
        "loss": report.loss,
        "grad_norm": report.grad_norm,
        "learning_rate": report.learning_rate,
        "p/undefined": float(p.isnan().sum()),
        "ratio/overflow_tokens": float(of["overflow_tokens"].nansum()),
        "clip_ratio/low_mean": _weighted(of["clip_fraction_low"], tokens),
        "clip_ratio/high_mean": _weighted(of["clip_fraction_high"], tokens),
        "ratio/min": _extreme(of["ratio_min"], "min"),
        "ratio/max": _extreme(of["ratio_max"], "max"),
        "distance_to_grpo": report.distance_to_grpo,
        "kl": report.kl,
        "beta": report.beta,
        "clip_fraction/q90": _quantile(of["clip_fraction"], 0.9),
        "ess/q10": _quantile(of["ess"], 0.1),
        "p/q10": _quantile(p, 0.1),
        "p/mean": _mean(defined),
        "p/share_below_1": _mean((defined < 1).double()),
        "p/share_below_0.95": _mean((defined < 0.95).double()),
        "ess/mean": _mean(of["ess"]),
        "ess/at_1": _mean(of["ess_at_1"]),
        "ess/target": _mean(_targets(of["ess_target"], of["ess_at_1"])),
        "clip_fraction/mean": _mean(of["clip_fraction"]),
    }
    known = {name: value for name, value in values.items() if value is not None}
    return [metric(step, name, value, report.update) for name, value in known.items()]


def _targets(target: Tensor, at_1: Tensor) -> Tensor:
    """N* of all that have an N(1), so that their means compare: with equal ratios N* = N(1) = 1."""
    return target if target.isnan().all() else torch.where(target.isnan(), at_1, target)


# What the log says of a step; metrics of updates are averaged over the step's.
_LOGGED = {
    "reward": "reward",
    "loss": "loss",
    "grad_norm": "grad norm",
    "p/mean": "p",
    "ess/mean": "ESS",
    "clip_fraction/mean": "clip",
    "kl": "KL",
    "entropy": "entropy",
}


def log_line(rows: Sequence[MetricRow]) -> str:
    """The main numbers of a step for the attempt's log; those that it lacks are left out."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.value is not None:
            found.setdefault(row.name, []).append(row.value)
    means = {name: sum(found[name]) / len(found[name]) for name in _LOGGED if name in found}
    return ", ".join(f"{_LOGGED[name]} {mean:.4g}" for name, mean in means.items())


def trajectory_rows(report: StepReport) -> list[TrajectoryRow]:
    """One row per trajectory, with what each optimiser step saw of it."""
    seen: list[list[TrajectoryUpdate]] = [[] for _ in report.grades]
    lengths = report.rollouts.lengths.tolist()
    places = {facts.update: facts for facts in report.facts.updates}
    for update in report.updates:
        place = places[update.update]
        fields = {name: update.values[name].tolist() for name in (*UPDATE_FIELDS, "p")}
        for row in update.rows.tolist():
            numbers = {name: _or_none(values[row]) for name, values in fields.items()}
            reason = None
            if numbers["p"] is None:
                reason = _why_undefined(report, row, numbers)
            seen[row].append(
                TrajectoryUpdate(
                    update=update.update,
                    epoch=place.epoch,
                    minibatch=place.minibatch,
                    p_reason=reason,
                    **numbers,
                )
            )
    group = report.rollouts.group.tolist()
    versions = report.rollouts.versions or ((),) * len(group)
    return [
        TrajectoryRow(
            index=row,
            group=group[row],
            problem=report.problems[group[row]].id,
            reward=grade.reward,
            reward_parts=_reward_parts(grade.reward, float(report.penalties[row])),
            advantage=float(report.advantages[row]),
            length=lengths[row],
            truncated=bool(report.rollouts.truncated[row]),
            grader_error=grade.error[:500] if grade.error is not None else None,
            entropy=_or_none(float(report.entropy[row])),
            sampling_kl=_or_none(float(report.mismatch.kl[row])),
            sampling_kl_truncated=_or_none(float(report.mismatch.kl_truncated[row])),
            importance_sampling_ratio=_or_none(float(report.mismatch.token_ratio[row])),
            sequence_importance_sampling_ratio=_or_none(float(report.mismatch.sequence_ratio[row])),
            applied_importance_sampling_ratio=_or_none(float(report.mismatch.applied[row])),
            weight_version=int(report.rollouts.weight_version[row]),
            weight_versions=versions[row],
            updates=tuple(seen[row]),
        )
        for row, grade in enumerate(report.grades)
    ]


def text_segment(report: StepReport, stop: Sequence[str]) -> bytes:
    """The texts as gzipped JSON lines, in order of index; equal texts give equal bytes."""
    group = report.rollouts.group.tolist()
    lines = [
        TrajectoryText(
            index=row,
            prompt=report.problems[group[row]].prompt,
            completion=text,
            answer=report.problems[group[row]].answer,
            graded=None if (graded := graded_part(text, stop)) == text else len(graded),
        ).model_dump_json(exclude_none=True)
        for row, text in enumerate(report.texts)
    ]
    return gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0)


def token_segment(report: StepReport, count: int, decode: Callable[[Sequence[int]], str]) -> bytes:
    """The token records of the first `count` trajectories as they are stored."""
    seen = [(update.update, update.tokens) for update in report.updates]
    records = token_records(report.rollouts, count, report.old_log_probs, seen, decode)
    return write_segment(report.facts, records)


def _reward_parts(grade: float, penalty: float) -> dict[str, float]:
    return {"grade": grade} | ({"overlong_penalty": penalty} if penalty else {})


def _why_undefined(report: StepReport, row: int, numbers: Mapping[str, float | None]) -> str:
    if not report.usable[row]:
        return "not finite"
    if not report.rollouts.mask[row].any():
        return "no tokens"
    if report.advantages[row] == 0:
        return "advantage 0"
    equal = numbers["ratio_clipped_min"] == numbers["ratio_clipped_max"]
    return "equal ratios" if equal else "objective without p"


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _mean(values: Tensor) -> float | None:
    known = values[~values.isnan()]
    return float(known.mean()) if known.numel() else None


def _quantile(values: Tensor, q: float) -> float | None:
    known = values[~values.isnan()]
    return float(known.quantile(q)) if known.numel() else None


def _extreme(values: Tensor, which: str) -> float | None:
    known = values[~values.isnan()]
    if not known.numel():
        return None
    return float(known.min() if which == "min" else known.max())


def _weighted(values: Tensor, weights: Tensor) -> float | None:
    known = ~values.isnan()
    return float((values[known] * weights[known]).sum() / weights[known].sum()) if known.any() else None
