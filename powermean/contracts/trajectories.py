"""What is recorded of a trajectory."""

from typing import Any

from pydantic import Field

from powermean.contracts.artefacts import ArtefactRef
from powermean.contracts.base import Contract
from powermean.contracts.renaming import RenamedFields
from powermean.contracts.rollout import VersionSpan


def staleness(step: int, weight_version: int) -> int:
    """How many weight versions a trajectory trained on in `step` is behind; 0 if the newest weights made it.

    Step k trains the weights of version k - 1; `weight_version` is the oldest that made a token.
    """
    return step - 1 - weight_version


def _number(title: str, meaning: str, unit: str = "") -> Any:
    """An optional number, shown by the API, docs/trajectories.md and the trajectory's page.

    `title` heads its column on the page; `unit` is shown beside it, and "share" is shown as a percentage.
    """
    return Field(None, title=title, description=meaning, json_schema_extra={"x-unit": unit} if unit else None)


class TrajectoryUpdate(Contract):
    """What one optimiser step saw of a trajectory. None where undefined (`p_reason` says why)."""

    update: int = Field(ge=0, description="epoch * minibatches + minibatch")
    epoch: int = Field(0, ge=0, description="Pass over the rollout batch, from 0.")
    minibatch: int = Field(0, ge=0, description="Minibatch within the epoch, from 0.")
    p: float | None = Field(None, description="Power-mean exponent.")
    p_reason: str | None = Field(
        None, description="Why p is null: advantage 0, equal ratios, no tokens, not finite."
    )
    ess: float | None = _number("N(p)", "Normalised effective sample size N(p).", "share of T")
    ess_at_1: float | None = _number("N(1)", "N(1), the ESS of GRPO's weights.", "share of T")
    ess_target: float | None = _number("Target", "N*, the ESS that p was solved for.", "share of T")
    clip_fraction: float | None = _number("Clipped", "f, the share of tokens that drives p.", "share")
    clip_fraction_low: float | None = _number(
        "Clipped, low", "Share of tokens below the range, with a negative advantage.", "share"
    )
    clip_fraction_high: float | None = _number(
        "Clipped, high", "Share of tokens above the range, with a positive advantage.", "share"
    )
    clip_fraction_outside: float | None = _number(
        "Outside", "Share of tokens outside the range on either side.", "share"
    )
    ratio_min: float | None = _number("Ratio, min", "Smallest importance ratio of a token.")
    ratio_mean: float | None = _number("Ratio, mean", "Mean ratio.")
    ratio_max: float | None = _number("Ratio, max", "Largest ratio.")
    ratio_clipped_min: float | None = _number(
        "Clipped ratio, min", "Smallest ratio after the one-sided clip."
    )
    ratio_clipped_mean: float | None = _number("Clipped ratio, mean", "Mean ratio after the clip.")
    ratio_clipped_max: float | None = _number("Clipped ratio, max", "Largest ratio after the clip.")
    loss: float | None = _number("Loss", "The trajectory's part of the minibatch's loss.")


class TrajectoryRow(RenamedFields):
    """Scalars of one trajectory, kept in the database. Key: (job, attempt, step, index)."""

    index: int = Field(
        ge=0, description="Place in the rollout batch; group * group_size + place in the group."
    )
    group: int = Field(ge=0, description="Prompt within the rollout batch.")
    problem: str = Field(max_length=200, description="Id of the problem in its source.")
    reward: float = Field(description="As graded, in [0, 1].")
    reward_parts: dict[str, float] = Field(
        {}, description="What the reward is made of: the grade, and penalties if there are any."
    )
    advantage: float = Field(description="Of the shaped reward within the group.")
    length: int = Field(ge=0, description="Completion tokens.")
    truncated: bool = Field(description="Cut off by max_new_tokens.")
    grader_error: str | None = Field(None, max_length=500, description="Why the grader failed (reward 0).")
    entropy: float | None = _number("Entropy", "Mean token entropy at the start of the step.", "nats")
    sampling_kl: float | None = _number(
        "KL(rollout ‖ trainer)", "Mean token KL(rollout || trainer) estimate.", "nats"
    )
    sampling_kl_truncated: float | None = _number(
        "KL, truncated",
        "The same estimate with the tokens' ratios capped at `importance_sampling_clip_max`.",
        "nats",
    )
    importance_sampling_ratio: float | None = _number(
        "w, token mean",
        "Mean importance-sampling ratio pi_old / pi_rollout of its tokens, before truncation.",
    )
    sequence_importance_sampling_ratio: float | None = _number(
        "w, sequence",
        "Importance-sampling ratio of the whole trajectory: exp of the summed difference (clamped to "
        "e^-20 to e^20), before truncation.",
    )
    applied_importance_sampling_ratio: float | None = _number(
        "w, applied",
        "The truncated ratio that scaled its loss, or the mean of those that scaled its tokens' "
        "gradients; null with `importance_sampling_correction: off`.",
    )
    weight_version: int = Field(0, description="Oldest weight version that sampled a token of it.")
    weight_versions: tuple[VersionSpan, ...] = Field(
        (), description="Which weight versions sampled which tokens."
    )
    updates: tuple[TrajectoryUpdate, ...] = Field((), description="One per optimiser step that contained it.")


_GRADED = Field(
    None,
    description="Characters of the completion that were graded: a stop string ends it and is not. Null: all.",
)


class TrajectoryText(Contract):
    """One line of a step's text segment (gzipped JSON lines in the artefact store)."""

    index: int
    prompt: str
    completion: str
    answer: str
    graded: int | None = _GRADED


class TrajectoryBatch(Contract):
    """All trajectories of a step, and where their texts lie."""

    step: int = Field(ge=0)
    rows: tuple[TrajectoryRow, ...]
    texts: ArtefactRef | None = None
    tokens: ArtefactRef | None = Field(None, description="Token records: powermean/token_segments.py.")
    token_rows: int = Field(0, ge=0, description="They contain trajectories 0 to token_rows - 1.")


class Trajectory(TrajectoryRow):
    """A trajectory as the API gives it."""

    prompt: str | None = None
    completion: str | None = None
    answer: str | None = None
    graded: int | None = _GRADED
    has_tokens: bool = Field(False, description="Its tokens were recorded.")
    staleness: int | None = Field(
        None, description="How many weight versions it is behind the step's; null without tokens."
    )


class TrajectoryPage(Contract):
    """Trajectories of one step, in order of index."""

    step: int
    items: tuple[Trajectory, ...]
    total: int
    steps: tuple[int, ...] = Field(description="Steps that have trajectories, newest last.")
