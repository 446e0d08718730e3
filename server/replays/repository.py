"""Queries about replays and the recorded steps that they start from."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from powermean.contracts.artefacts import ArtefactRef
from powermean.contracts.replays import ReplayState
from powermean.contracts.trajectories import TrajectoryRow
from server.db.models import Metric, Replay, TrajectoryStep
from server.db.packing import unpack_rows
from server.errors import NotFoundError
from server.jobs.counting import counts, shares


def recorded_steps(session: Session, job_id: str) -> dict[int, int]:
    """Step -> the attempt whose records count, for steps with recorded tokens, in order."""
    found = session.execute(
        select(TrajectoryStep.step, TrajectoryStep.attempt, TrajectoryStep.tokens)
        .where(
            TrajectoryStep.job_id == job_id,
            counts(shares(session, job_id), TrajectoryStep.attempt, TrajectoryStep.step),
        )
        .order_by(TrajectoryStep.step, TrajectoryStep.attempt)
    )
    newest = {step: (attempt, tokens) for step, attempt, tokens in found}
    return {step: attempt for step, (attempt, tokens) in newest.items() if tokens}


def busy_nodes(session: Session) -> set[str]:
    """The nodes that run a replay."""
    nodes = session.scalars(select(Replay.node).where(Replay.state == "running"))
    return {node for node in nodes if node is not None}


def tokens_of(session: Session, replay: Replay) -> ArtefactRef | None:
    """Where the step's token records are; None if they are gone."""
    head = session.get(TrajectoryStep, (replay.job_id, replay.step, replay.attempt))
    return ArtefactRef.model_validate(head.tokens) if head is not None and head.tokens else None


def rows_of(session: Session, replay: Replay) -> tuple[TrajectoryRow, ...]:
    """All trajectories of the replayed step."""
    packed = session.scalar(
        select(TrajectoryStep.rows).where(
            TrajectoryStep.job_id == replay.job_id,
            TrajectoryStep.step == replay.step,
            TrajectoryStep.attempt == replay.attempt,
        )
    )
    return tuple(map(TrajectoryRow.model_validate, unpack_rows(packed) if packed is not None else ()))


def distances_of(session: Session, replay: Replay) -> dict[int, float]:
    """Update -> the recorded distance to GRPO, if defined."""
    found = session.execute(
        select(Metric.update, Metric.value).where(
            Metric.job_id == replay.job_id,
            Metric.step == replay.step,
            Metric.attempt == replay.attempt,
            Metric.name == "distance_to_grpo",
            Metric.value.is_not(None),
        )
    )
    return {update: value for update, value in found if value is not None}


def same_replay(session: Session, job_id: str, step: int, attempt: int, digest: str) -> Replay | None:
    """The replay of the same records under the same objective, locked."""
    query = select(Replay).where(
        Replay.job_id == job_id, Replay.step == step, Replay.attempt == attempt, Replay.digest == digest
    )
    return session.execute(query.with_for_update()).scalar_one_or_none()


def get_replay(session: Session, replay_id: str, job_id: str | None = None) -> Replay:
    """A replay (of the given job). Raises NotFoundError."""
    replay = session.get(Replay, replay_id)
    if replay is None or job_id not in (None, replay.job_id):
        raise NotFoundError(
            f"no replay {replay_id}", remedy="GET /v1/jobs/{id}/replays lists a job's replays."
        )
    return replay


def lock_replay(session: Session, replay_id: str) -> Replay:
    """The same, locked until the transaction ends. Raises NotFoundError."""
    query = select(Replay).where(Replay.id == replay_id).with_for_update()
    found = session.execute(query.execution_options(populate_existing=True)).scalar_one_or_none()
    if found is None:
        raise NotFoundError(f"no replay {replay_id}")
    return found


def list_replays(session: Session, job_id: str, step: int | None, limit: int) -> Sequence[Replay]:
    """Newest first."""
    query = select(Replay).where(Replay.job_id == job_id)
    if step is not None:
        query = query.where(Replay.step == step)
    query = query.order_by(Replay.created_at.desc(), Replay.id).limit(limit)
    return session.execute(query).scalars().all()


def any_waiting(session: Session) -> bool:
    """Whether a replay waits for a node."""
    waiting = select(Replay.id).where(Replay.state == ReplayState.WAITING)
    return session.execute(waiting.limit(1)).first() is not None


def open_replays(session: Session) -> Sequence[str]:
    """Replays that are waiting or running."""
    states = (ReplayState.WAITING, ReplayState.RUNNING)
    return session.execute(select(Replay.id).where(Replay.state.in_(states))).scalars().all()
