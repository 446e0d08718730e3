"""Wire types of what projects store, how long they keep it, and the removal of what nobody refers to."""

from typing import Annotated, Literal

from pydantic import Field

from powermean.contracts.base import Contract

StorageKind = Literal["datasets", "checkpoints", "models", "forks", "trajectories", "replays", "logs"]
Days = Annotated[int, Field(ge=0, le=36_500)]


class Retention(Contract):
    """How long a project keeps what its jobs stored, counted from a job's end; null: for ever.

    Numbers (metrics, trajectories' rewards and p) stay; a running job's own `checkpoints.keep` is untouched.
    """

    texts_days: Days | None = Field(None, description="Prompts and completions of trajectories.")
    tokens_days: Days | None = Field(None, description="Token records, which replays need.")
    logs_days: Days | None = Field(None, description="Logs of attempts.")
    checkpoints_last: int | None = Field(
        None, ge=0, le=1000, description="How many of an ended job's newest checkpoints; pinned ones stay."
    )
    checkpoints_best: bool = Field(
        False,
        description="Keep the checkpoint with the highest held-out reward too, if there are evaluations.",
    )


class StorageLimit(Contract):
    """The most that a project may store."""

    bytes: int | None = Field(None, ge=0, le=2**63 - 1, description="null: no limit.")


class StorageUse(Contract):
    """What one kind of things takes."""

    kind: StorageKind
    bytes: int
    count: int = Field(
        description="How many: datasets, checkpoints, models, forks that keep files of deleted ones, steps, "
        "replays, parts of logs."
    )


class StoredThing(Contract):
    """One of the largest things."""

    kind: StorageKind
    bytes: int
    id: str = Field(description="Of the dataset, or of the job that it belongs to.")
    name: str
    step: int | None = Field(None, description="A checkpoint's.")
    pinned: bool = False
    in_use: str | None = Field(
        None, description="Why it can't be deleted now, such as `the job is running`; null: nothing uses it."
    )


class ProjectStorage(Contract):
    """What a project stores in the artefact store."""

    project: str
    bytes: int
    limit: int | None = None
    over_limit: bool = Field(description="No uploads and no new jobs until something is deleted.")
    uses: tuple[StorageUse, ...]
    largest: tuple[StoredThing, ...] = Field(description="The largest first.")


class Collected(Contract):
    """A part of a collection: what no row refers to, removed unless it was a dry run.

    With `next`, ask again with `after=next`; the totals are of this part alone.
    """

    dry_run: bool
    looked_at: int = Field(description="Objects.")
    objects: int
    bytes: int
    rows: int = Field(description="Messages about jobs, attempts and replays that are gone.")
    keys: tuple[str, ...] = Field(description="Some of the objects.")
    next: str | None = None
