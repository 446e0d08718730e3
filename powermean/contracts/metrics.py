"""Names and wire types of metrics. Names are TRL's where the meaning is the same."""

from typing import Literal

from pydantic import Field

from powermean.contracts.base import Contract

WHOLE_STEP = -1  # `update` of a metric that belongs to the whole step


class MetricInfo(Contract):
    """What a metric is, for people and charts."""

    level: Literal["step", "update"]
    unit: str
    meaning: str


def _step(unit: str, meaning: str) -> MetricInfo:
    return MetricInfo(level="step", unit=unit, meaning=meaning)


def _update(unit: str, meaning: str) -> MetricInfo:
    return MetricInfo(level="update", unit=unit, meaning=meaning)


# Importance-sampling ratios trainer/engine by level. The token's has TRL's name (its mode token_truncate).
IMPORTANCE_RATIOS = {
    "token": "sampling/importance_sampling_ratio",
    "sequence": "sampling/sequence_importance_ratio",
    "sequence_mean": "sampling/sequence_mean_importance_ratio",
}
_RATIOS = {
    "token": "importance-sampling ratio pi_old / pi_rollout of a token",
    "sequence": "importance-sampling ratio of a sequence (exp of its summed difference)",
    "sequence_mean": "importance-sampling ratio of a sequence (exp of its mean difference)",
}


def _importance_ratios() -> dict[str, MetricInfo]:
    found = {}
    for level, name in IMPORTANCE_RATIOS.items():
        what = _RATIOS[level]
        for which, word in (("min", "smallest"), ("mean", "mean"), ("max", "largest")):
            found[f"{name}/{which}"] = _step("", f"{word} {what}, truncated at importance_sampling_clip_max")
            found[f"{name}/raw_{which}"] = _step("", f"{word} {what}, before truncation")
        of = "tokens" if level == "token" else "trajectories"
        found[f"{name}/share_truncated"] = _step(
            "share", f"{of} whose ratio is above importance_sampling_clip_max"
        )
    return found


METRICS: dict[str, MetricInfo] = {
    "reward": _step("", "mean reward of all completions sampled in the step"),
    "reward_std": _step("", "standard deviation of the reward within a group, mean over all sampled groups"),
    "frac_reward_zero_std": _step(
        "share", "sampled groups whose completions all have the same reward, including further rounds"
    ),
    "eval/reward": _step("", "mean reward on held-out problems, one sampled completion each"),
    "eval/seconds": _step("s", "duration of the evaluation"),
    "entropy": _step(
        "nats", "mean token entropy of the policy at the start of the step, over trained trajectories"
    ),
    "completions/mean_length": _step("tokens", "mean completion length"),
    "completions/max_length": _step("tokens", "longest completion"),
    "completions/clipped_ratio": _step("share", "completions cut off by max_new_tokens"),
    "num_tokens": _step("tokens", "completion tokens sampled so far"),
    "tokens_per_second": _step("tokens/s", "completion tokens of the step per second of wall time"),
    "sampling/rounds": _step("count", "rounds of prompts sampled for the step's batch (dapo: up to a limit)"),
    "sampling/groups_dropped": _step(
        "count", "sampled groups that the algorithm's filter removed or that were more than needed"
    ),
    "sampling/queued": _step("count", "batches sampled ahead that were ready when training asked for one"),
    "sampling/replicas": _step("count", "rollout engines that get prompts, where a job has several"),
    "sampling/moved_prompts": _step(
        "count", "prompts asked again of another rollout engine in the step, since theirs had failed"
    ),
    "sampling/kl": _step("nats", "mean token KL(rollout || trainer) estimate from untruncated log-probs"),
    "sampling/kl_truncated": _step(
        "nats", "the same with the tokens' ratios capped at importance_sampling_clip_max"
    ),
    "sampling/sampling_logp_difference/mean": _step(
        "nats", "mean |log-prob difference| between engine and trainer, over tokens"
    ),
    "sampling/sampling_logp_difference/max": _step(
        "nats", "largest |log-prob difference| between engine and trainer"
    ),
    **_importance_ratios(),
    "staleness/mean": _step(
        "versions", "mean staleness of the trajectories: weight versions behind the step's"
    ),
    "staleness/max": _step("versions", "largest staleness"),
    "staleness/share_mixed": _step("share", "trajectories sampled by more than one weight version"),
    "publish/logp_difference_max": _step("nats", "largest log-prob difference of the probe after a publish"),
    "data/left_out": _step(
        "share", "rows of the dataset that the run does without: the attempt's log has their lines and why"
    ),
    "grader/failures": _step("count", "completions whose grading failed or timed out (reward 0)"),
    "trajectories/non_finite": _step("count", "trajectories dropped for non-finite log-probs"),
    "trajectories/empty": _step("count", "completions without a token"),
    "p/last_pass/mean": _step("", "mean p in the step's last pass over its batch"),
    "p/last_pass/q10": _step("", "10 % quantile of p in the last pass"),
    "p/last_pass/min": _step("", "smallest p in the last pass"),
    "p/last_pass/defined": _step("count", "trajectories with a p in the last pass"),
    "p/last_pass/below_1": _step("count", "trajectories with p < 1 in the last pass"),
    "p/last_pass/undefined": _step("count", "trajectories without a p in the last pass"),
    "updates/skipped": _step("count", "optimiser steps not taken because no trajectory had an advantage"),
    "time/wait": _step(
        "s",
        "waiting for a batch to train on: all of generate and grade, unless batches are sampled ahead",
    ),
    "time/generate": _step("s", "sampling of the step's batch, including when it was sampled ahead"),
    "time/score": _step("s", "log-probs under the trainer's weights at the start of the update"),
    "time/grade": _step("s", "grading of the step's batch, including when it was sampled ahead"),
    "time/update": _step("s", "forward, backward and optimiser"),
    "time/publish": _step("s", "sending new weights to the rollout service, and the probe"),
    "time/record": _step("s", "recording metrics and trajectories"),
    "time/checkpoint": _step("s", "saving a checkpoint"),
    "time/step": _step("s", "the whole step"),
    "loss": _update("", "value of the objective, without trajectories that have overflow tokens"),
    "grad_norm": _update("", "gradient norm before clipping"),
    "learning_rate": _update("", "learning rate of the update"),
    "p/mean": _update("", "mean power-mean exponent of the trajectories with a defined p"),
    "p/q10": _update("", "10 % quantile of p"),
    "p/share_below_1": _update("share", "trajectories with p < 1"),
    "p/share_below_0.95": _update("share", "trajectories with p < 0.95"),
    "p/undefined": _update("count", "trajectories with no p: advantage 0, or all ratios equal"),
    "ess/mean": _update("share of T", "mean normalised effective sample size N(p)"),
    "ess/q10": _update("share of T", "10 % quantile of N(p)"),
    "ess/at_1": _update("share of T", "mean N(1), the ESS of GRPO's weights"),
    "ess/target": _update("share of T", "mean target N*, over the same trajectories as N(1)"),
    "clip_fraction/mean": _update("share", "mean share of a trajectory's tokens whose clip binds"),
    "clip_fraction/q90": _update("share", "90 % quantile of the trajectory's clip fraction"),
    "clip_ratio/low_mean": _update("share", "tokens below the clip range, with a negative advantage"),
    "clip_ratio/high_mean": _update("share", "tokens above the clip range, with a positive advantage"),
    "ratio/min": _update("", "smallest importance ratio"),
    "ratio/max": _update("", "largest importance ratio"),
    "ratio/overflow_tokens": _update("count", "tokens with log-ratio above 20 and a negative advantage"),
    "distance_to_grpo": _update("", "|g_p - g_1| / |g_0 - g_1| over the update's trajectories"),
    "kl": _update("nats", "mean token KL to the reference (k3), when beta > 0"),
    "beta": _update("", "weight of that KL in the update; it moves where algorithm.kl_target is set"),
}


class MetricRow(Contract):
    """One number. Key: (job, attempt, step, update, name). A non-finite value travels as null."""

    step: int = Field(ge=0)
    update: int = Field(WHOLE_STEP, ge=-1)
    name: str = Field(min_length=1, max_length=80, pattern=r"^[\w./-]+$")
    value: float | None


class Point(Contract):
    """A point of a series. `low` and `high` are the extremes of the values merged into it."""

    step: int
    update: int
    value: float | None
    low: float | None = None
    high: float | None = None


class Series(Contract):
    """One metric's history; at most max_points points."""

    name: str
    points: tuple[Point, ...]


class MetricsHistory(Contract):
    """History of several metrics, complete up to `seq`: follow the stream from there."""

    series: tuple[Series, ...]
    seq: int
