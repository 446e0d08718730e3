"""What is recorded of a trajectory."""

from pydantic import Field

from powermean.contracts.artefacts import ArtefactRef
from powermean.contracts.base import Contract


class TrajectoryUpdate(Contract):
    """What one optimiser step saw of a trajectory. None where undefined (`p_reason` says why)."""

    update: int = Field(ge=0, description="epoch * minibatches + minibatch")
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
    loss: float | None = None


class TrajectoryRow(Contract):
    """Scalars of one trajectory: they live in the database. Key: (job, attempt, step, index)."""

    index: int = Field(
        ge=0, description="Place in the rollout batch; group * group_size + place in the group."
    )
    group: int = Field(ge=0)
    problem: str = Field(max_length=200, description="Id of the problem in its source.")
    reward: float
    advantage: float
    length: int = Field(ge=0, description="Completion tokens.")
    truncated: bool
    grader_error: str | None = Field(None, max_length=500)
    entropy: float | None = None
    sampling_kl: float | None = Field(None, description="Mean token KL(rollout || trainer) estimate.")
    weight_version: int = 0
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


class Trajectory(TrajectoryRow):
    """A trajectory as the API gives it."""

    prompt: str | None = None
    completion: str | None = None
    answer: str | None = None


class TrajectoryPage(Contract):
    """Trajectories of one step, in order of index."""

    step: int
    items: tuple[Trajectory, ...]
    total: int
    steps: tuple[int, ...] = Field(description="Steps that have trajectories, newest last.")
