"""The rules that a job's last steps are judged by (health.py); docs/health.md lists them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from powermean.contracts.health import Level

WINDOW = 20  # steps looked at
RECENT = 5  # the newest of those, which a finding is about; also the fewest steps needed for a finding
REWARD_RISE = 0.1  # rise of the reward, as a share, that explains a fall of entropy
P_FALL = 0.1  # fall of p/mean over the recent steps that is reported with a clip fraction

Measure = Literal["mean", "peak", "floor", "fall", "spike", "steps"]
StepValues = Mapping[int, float]  # by step, ascending
AT_ONCE: tuple[Measure, ...] = ("peak", "floor", "steps")  # measures that need fewer than RECENT steps


@dataclass(frozen=True)
class Threshold:
    """One rule: a metric, how it is measured, and the values from which it is reported.

    Measures, over the newest RECENT steps: `mean`; `peak`, the worst value; `floor`, the best; `fall`, their
    mean divided by the mean of the window's first RECENT steps; `spike`, the worst value divided by the
    window's median; `steps`, how many of them have a value above 0. `watch` and `bad` themselves count.
    """

    code: str
    metric: str
    measure: Measure
    side: Literal["above", "below"]
    watch: float
    bad: float
    reason: str
    remedy: str
    algorithms: tuple[str, ...] = ()  # only these; if empty, all that no other rule with this code names

    def level(self, value: float) -> Level:
        sign = 1 if self.side == "above" else -1
        if sign * value >= sign * self.bad:
            return "bad"
        return "watch" if sign * value >= sign * self.watch else "ok"


THRESHOLDS = (
    Threshold(
        "non_finite",
        "trajectories/non_finite",
        "steps",
        "above",
        1,
        RECENT,
        "a healthy run has no log-prob that is not finite; if every step has some, the weights are ruined",
        "Lower optimizer.learning_rate, or set model.dtype to float32.",
    ),
    Threshold(
        "ess_collapse",
        "ess/mean",
        "mean",
        "below",
        0.8,
        0.5,
        "healthy runs of the demo stay near 0.99; particle filters usually resample at 0.5, when half of "
        "the sample carries no weight",
        "Lower optimizer.learning_rate or training.epochs.",
    ),
    Threshold(
        "clipping",
        "clip_fraction/mean",
        "mean",
        "above",
        0.1,
        0.3,
        "a token whose clip binds has no gradient; healthy runs of the demo clip about 5 %",
        "Lower optimizer.learning_rate or training.epochs.",
    ),
    Threshold(
        "clipping",
        "clip_fraction/mean",
        "mean",
        "above",
        0.3,
        0.6,
        "the sequence clip removes all tokens of a sequence at once: GSPO's paper (arXiv 2507.18071) reports "
        "about 15 % in a run that learns well",
        "Lower optimizer.learning_rate or training.epochs.",
        algorithms=("gspo",),
    ),
    Threshold(
        "entropy_fall",
        "entropy",
        "fall",
        "below",
        0.5,
        0.25,
        "a policy that loses half of its entropy within the window will soon sample the same completion "
        "every time; not reported if the reward rose by a tenth, as reward is bought with entropy "
        "(arXiv 2505.22617): the demo goes from 0.53 to 0.11 nats as it learns",
        "Lower optimizer.learning_rate, or raise algorithm.beta.",
    ),
    Threshold(
        "entropy_low",
        "entropy",
        "mean",
        "below",
        0.05,
        0.01,
        "at 0.05 nats per token the most likely token has about 99 %: a group's completions hardly differ",
        "Raise rollout.temperature or algorithm.beta.",
    ),
    Threshold(
        "no_spread",
        "frac_reward_zero_std",
        "mean",
        "above",
        0.5,
        0.95,
        "a group whose rewards are all equal has advantage 0: above 0.5 most of the sampling is wasted, "
        "above 0.95 almost nothing is trained on; a run of the demo ends near 0.9, its problems solved",
        "Choose data that the model solves sometimes: harder if the reward is high, easier if it is low. "
        "If training brought it that low, lower optimizer.learning_rate.",
    ),
    Threshold(
        "mismatch_kl",
        "sampling/kl",
        "mean",
        "above",
        0.01,
        0.1,
        "the transformers engine and the trainer, both in float32, agree to 1e-5 nats; at 0.1 the data "
        "comes from a different policy",
        "Set algorithm.importance_sampling_correction to token, lower rollout.max_staleness where it is "
        "above 0, set model.dtype to float32, or set rollout.engine to transformers.",
    ),
    Threshold(
        "mismatch_token",
        "sampling/sampling_logp_difference/max",
        "peak",
        "above",
        1.0,
        3.0,
        "at 1 nat a token's ratio is off by a factor of 2.7 before training starts, far outside the clip",
        "Set algorithm.importance_sampling_correction to token, lower rollout.max_staleness where it is "
        "above 0, set model.dtype to float32, or set rollout.engine to transformers.",
    ),
    Threshold(
        "grad_spike",
        "grad_norm",
        "spike",
        "above",
        5.0,
        20.0,
        "the norm of a healthy run stays within a factor of 2 or 3 of its median; gradient clipping bounds "
        "the length of a step, not its direction",
        "Lower optimizer.max_grad_norm or optimizer.learning_rate.",
    ),
    Threshold(
        "grader_failures",
        "grader/failures",
        "steps",
        "above",
        1,
        RECENT,
        "a completion whose grader failed has reward 0; in every step, the reward measures the grader",
        "Read the trajectories' grader_error; fix reward or the answers, or raise reward.timeout_s.",
    ),
    Threshold(
        "rows_left_out",
        "data/left_out",
        "peak",
        "above",
        1e-6,
        0.05,
        "a run does without rows whose prompt does not fit the engine or whose answer nothing can match; "
        "from one row in twenty on, the data is not what was meant",
        "Correct the lines that the attempt's log names, or name other fields in data.prompt or "
        "data.answer_field.",
    ),
    Threshold(
        "never_ends",
        "completions/clipped_ratio",
        "floor",
        "above",
        0.95,
        1.0,
        "if hardly a completion ends by itself from the first step on, the model ends them with a token that "
        "nobody looks for, or does not end them at all",
        "Set rollout.stop to what ends an answer, set data.chat for a model that was trained to chat, or "
        "raise rollout.max_new_tokens.",
    ),
    Threshold(
        "cut_off",
        "completions/clipped_ratio",
        "mean",
        "above",
        0.3,
        0.7,
        "a completion that is cut off is graded without its end",
        "Raise rollout.max_new_tokens, or set rollout.stop to what ends an answer.",
    ),
)

PEAKS = frozenset(rule.metric for rule in THRESHOLDS if rule.measure in ("peak", "spike"))
NAMES = tuple(dict.fromkeys(["p/mean", "reward", *(rule.metric for rule in THRESHOLDS)]))
