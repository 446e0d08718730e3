"""Replays: the objective of a recorded step, recomputed under the same or another algorithm."""

import json
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Annotated, get_args

from pydantic import Field, JsonValue

from powermean.contracts.algorithms import AlgorithmSpec
from powermean.contracts.artefacts import ArtefactRef
from powermean.contracts.attempts import JobError
from powermean.contracts.base import Contract
from powermean.contracts.renaming import Deprecation, RenamedFields
from powermean.contracts.text import read_json
from powermean.contracts.token_records import TrajectoryTokens
from powermean.contracts.trajectories import TrajectoryRow

TOLERANCE = 1e-6  # a replay of the recorded algorithm reproduces every recorded number to this
# Every objective by its name.
OBJECTIVES: dict[str, type[RenamedFields]] = {
    model.model_fields["name"].default: model for model in get_args(get_args(AlgorithmSpec)[0])
}
Step = Annotated[int, Field(ge=0, le=2**31 - 1)]


class ReplayRequest(Contract):
    """Which step, under which algorithm (POST /v1/jobs/{id}/replays)."""

    step: Step
    algorithm: str | None = Field(
        None, max_length=40, description="Name of an objective; null means the recorded one."
    )
    set: dict[Annotated[str, Field(max_length=40)], JsonValue] = Field(
        {},
        max_length=20,
        description="Fields of the objective to change: from the recorded values if the name is the recorded "
        "one, else from that objective's defaults. `clip` sets both ends of its clip range.",
    )


class ReplayState(StrEnum):
    """The life of a replay. The last two are final."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"

    @property
    def final(self) -> bool:
        return self in (ReplayState.DONE, ReplayState.FAILED)


class Numbers(Contract):
    """What one update makes of one trajectory; null where undefined."""

    p: float | None = None
    ess: float | None = None
    ess_at_1: float | None = None
    clip_fraction: float | None = None
    loss: float | None = None


class ReplayedUpdate(Contract):
    """One trajectory in one update."""

    update: int = Field(ge=0)
    recorded: Numbers
    replayed: Numbers


class ReplayedTrajectory(Contract):
    """One trajectory whose tokens were recorded."""

    index: int = Field(ge=0, description="Place in the rollout batch.")
    advantage: float = Field(description="As recorded.")
    advantage_replayed: float = Field(description="Under the replay's algorithm; 0 if it drops the group.")
    updates: tuple[ReplayedUpdate, ...]


class Aggregates(Contract):
    """One update's numbers over the covered trajectories: means of what is defined; the loss is a sum."""

    p: float | None = None
    ess: float | None = None
    clip_fraction: float | None = None
    loss: float = Field(description="Without the KL penalty.")
    distance_to_grpo: float | None = Field(None, description="|g_p - g_1| / |g_0 - g_1|")


class UpdateSummary(Contract):
    """One update of the step, as recorded and as replayed."""

    update: int = Field(ge=0)
    trajectories: int = Field(ge=0, description="Trajectories with tokens and an advantage in the minibatch.")
    covered: int = Field(
        ge=0, description="How many of those have recorded tokens; all other numbers are over these."
    )
    recorded: Aggregates
    replayed: Aggregates


class ReplaySummary(Contract):
    """What a replay found."""

    trajectories: int = Field(ge=0, description="Trajectories of the step with tokens and an advantage.")
    covered: int = Field(ge=0, description="How many of those have recorded tokens.")
    updates: tuple[UpdateSummary, ...]
    largest_difference: dict[str, float] = Field(
        description="By name, the largest |replayed - recorded| of a trajectory, a token or an update."
    )
    undefined_in_one: int = Field(ge=0, description="Numbers that only one of the two defines.")
    reproduces: bool | None = Field(
        description="Whether the recorded numbers were reproduced to 1e-6; null for another algorithm."
    )


class ReplayResult(Contract):
    """The numbers of a replay (GET /v1/jobs/{id}/replays/{replay}/result)."""

    summary: ReplaySummary
    trajectories: tuple[ReplayedTrajectory, ...] = Field(description="In order of index.")


class ReplayedTokens(Contract):
    """One trajectory's tokens under both (GET /v1/jobs/{id}/replays/{replay}/tokens/{index})."""

    recorded: TrajectoryTokens
    replayed: TrajectoryTokens = Field(description="The same tokens; weights and clips are the replay's.")


class Replay(Contract):
    """A replay as the API gives it."""

    id: str
    job_id: str
    step: int
    attempt: int = Field(description="The attempt that recorded the step.")
    algorithm: AlgorithmSpec
    recorded: AlgorithmSpec = Field(description="The job's own algorithm.")
    state: ReplayState
    phase: str | None = Field(None, description="What it is doing or waiting for, for people.")
    summary: ReplaySummary | None = None
    error: JobError | None = None
    refused: tuple[JobError, ...] = Field(
        (),
        description="Fields of `algorithm` and `recorded`, as stored, that this version refuses; they have "
        "their defaults instead.",
    )
    node: str | None = Field(None, description="Where it runs, or ran.")
    created_at: datetime
    finished_at: datetime | None = None

    @property
    def changes(self) -> dict[str, JsonValue]:
        """Fields that differ from the recorded ones or, for another objective, from its defaults."""
        fields: dict[str, JsonValue] = self.algorithm.model_dump(mode="json")
        if self.algorithm.name == self.recorded.name:
            start = self.recorded.model_dump(mode="json")
        else:
            start = {name: field.default for name, field in type(self.algorithm).model_fields.items()}
        return {name: value for name, value in fields.items() if value != start[name]}

    @property
    def settings(self) -> str:
        """The changes as people type them; parse_settings reads them."""
        return " ".join(
            f"{name}={json.dumps(value, separators=(',', ':'))}" for name, value in self.changes.items()
        )


class AskedReplay(Replay):
    """Answer to POST /v1/jobs/{id}/replays."""

    deprecations: tuple[Deprecation, ...] = Field((), description="Old names of fields in the request.")


class ReplayList(Contract):
    """Replays of a job, newest first."""

    items: tuple[Replay, ...]


class ReplayClaim(Contract):
    """A node claims a replay (POST /v1/replays/{id}/claim)."""

    node_id: str = Field(min_length=1, max_length=64)


class ReplayTask(Contract):
    """All that a node needs to replay a step (answer to the claim)."""

    replay_id: str
    job_id: str
    recorded: AlgorithmSpec
    algorithm: AlgorithmSpec
    rows: tuple[TrajectoryRow, ...] = Field(
        description="Every trajectory of the step, recorded tokens or not."
    )
    tokens: ArtefactRef = Field(description="The step's token records.")
    distances: dict[int, float] = Field({}, description="Update -> recorded distance to GRPO, where defined.")


class ReplayOutcome(Contract):
    """Outcome of a replay (POST /v1/replays/{id}/outcome): the three parts of its result, or the error."""

    summary: ReplaySummary | None = None
    result: ArtefactRef | None = Field(None, description="ReplayResult, gzipped JSON.")
    tokens: ArtefactRef | None = Field(None, description="Token records with the replay's weights.")
    error: JobError | None = None


def parse_settings(texts: Iterable[str]) -> dict[str, JsonValue]:
    """Parse `field=value` settings as people type them; values are JSON, or else text. Raises ValueError."""
    found: dict[str, JsonValue] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name.strip() or not value.strip():
            raise ValueError(f"{text!r} is not field=value, as in clip=0.2")
        try:
            read = read_json(value)
            json.dumps(read, allow_nan=False)
        except json.JSONDecodeError:
            read = value.strip()
        except ValueError as error:  # UnusableJsonError, or 1e999
            raise ValueError(f"{text!r} can't be taken: {error}") from error
        found[name.strip()] = read
    return found
