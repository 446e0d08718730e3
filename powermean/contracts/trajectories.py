"""What is recorded of a trajectory."""

from pydantic import Field

from powermean.contracts.artefacts import ArtefactRef
from powermean.contracts.base import Contract
from powermean.contracts.rollout import VersionSpan


class TrajectoryUpdate(Contract):
    """What one optimiser step saw of a trajectory. None where undefined (`p_reason` says why)."""

    update: int = Field(ge=0, description="epoch * minibatches + minibatch")
    epoch: int = Field(0, ge=0)
    minibatch: int = Field(0, ge=0)
    p: float | None = None
    p_reason: str | None = Field(
        None, description="Why p is null: advantage 0, equal ratios, no tokens, not finite."
    )
    ess: float | None = None
    ess_at_1: float | None = None
    ess_target: float | None = None
    clip_fraction: float | None = None
    clip_fraction_low: float | None = None
    clip_fraction_high: float | None = None
    clip_fraction_outside: float | None = None
    ratio_min: float | None = None
    ratio_mean: float | None = None
    ratio_max: float | None = None
    ratio_clipped_min: float | None = Field(None, description="Smallest ratio after the one-sided clip.")
    ratio_clipped_mean: float | None = None
    ratio_clipped_max: float | None = None
    loss: float | None = None


class TrajectoryRow(Contract):
    """Scalars of one trajectory: they live in the database. Key: (job, attempt, step, index)."""

    index: int = Field(
        ge=0, description="Place in the rollout batch; group * group_size + place in the group."
    )
    group: int = Field(ge=0)
    problem: str = Field(max_length=200, description="Id of the problem in its source.")
    reward: float
    reward_parts: dict[str, float] = Field(
        {}, description="What the reward is made of: grade, and penalties where there are any."
    )
    advantage: float
    length: int = Field(ge=0, description="Completion tokens.")
    truncated: bool
    grader_error: str | None = Field(None, max_length=500)
    entropy: float | None = None
    sampling_kl: float | None = Field(None, description="Mean token KL(rollout || trainer) estimate.")
    weight_version: int = Field(0, description="Oldest weights that made a token of it.")
    weight_versions: tuple[VersionSpan, ...] = Field((), description="Which weights made which tokens.")
    updates: tuple[TrajectoryUpdate, ...] = ()


class TrajectoryText(Contract):
    """One line of a step's text segment (gzipped JSON lines in the artefact store)."""

    index: int
    prompt: str
    completion: str
    answer: str


class TrajectoryBatch(Contract):
    """All trajectories of a step, and where their texts lie."""

    step: int = Field(ge=0)
    rows: tuple[TrajectoryRow, ...]
    texts: ArtefactRef | None = None
    tokens: ArtefactRef | None = Field(None, description="Token records: powermean/token_segments.py.")
    token_rows: int = Field(0, ge=0, description="They hold trajectories 0 to token_rows - 1.")


class Trajectory(TrajectoryRow):
    """A trajectory as the API gives it."""

    prompt: str | None = None
    completion: str | None = None
    answer: str | None = None
    has_tokens: bool = Field(False, description="Its tokens were recorded.")


class TrajectoryPage(Contract):
    """Trajectories of one step, in order of index."""

    step: int
    items: tuple[Trajectory, ...]
    total: int
    steps: tuple[int, ...] = Field(description="Steps that have trajectories, newest last.")
