"""The life of a replay: requested, claimed by a node, done or failed, always with a deadline.

A replay is identified by what it computes (records and objective), so asking again returns the stored one,
and a failed one is retried. Any live node may claim it; if that node goes offline, another may.
"""

import hashlib
import json
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from powermean.contracts.artefacts import ArtefactRef
from powermean.contracts.attempts import JobError
from powermean.contracts.names import REPLAY_TASK
from powermean.contracts.replays import Replay as ReplayView
from powermean.contracts.replays import ReplayOutcome, ReplayRequest, ReplayState, ReplayTask
from powermean.contracts.revisions import OF_OBJECTIVES, without_later
from server import outbox
from server.db.models import Replay
from server.db.scoped import ScopedSession
from server.db.session import database_now
from server.errors import ConflictError, InvalidInputError, NotFoundError
from server.jobs.events import lock_job
from server.jobs.repository import find_job
from server.jobs.stored_spec import chosen
from server.nodes import any_open_node, living_ids
from server.replays import repository
from server.replays.algorithms import replayed_algorithm
from server.replays.views import replay_view
from server.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """A replay, and whether this request created it (a repeated one did not)."""

    replay: ReplayView
    new: bool


def ask(
    session: ScopedSession, settings: Settings, person_id: str, job_id: str, request: ReplayRequest
) -> Asked:
    """A replay of the step: the stored one, or a new one that waits for a node.

    Raises:
        NotFoundError: no such job, or no token records of the step (it names the steps with some).
        InvalidInputError: there is no such objective, or it has no such field.
        SpecRefusedError: this version refuses the recorded objective.
    """
    job = lock_job(session, job_id)  # nobody deletes it meanwhile
    attempt = _attempt_of(session, job_id, request.step)
    algorithm = replayed_algorithm(job.spec, request)
    computed = json.dumps(without_later(algorithm, OF_OBJECTIVES), sort_keys=True)
    digest = hashlib.sha256(computed.encode()).hexdigest()
    now = database_now(session)
    made = Replay(
        id=f"replay-{secrets.token_hex(10)}",
        job_id=job_id,
        step=request.step,
        attempt=attempt,
        algorithm=algorithm.model_dump(mode="json"),
        digest=digest,
        state=ReplayState.WAITING,
        created_by=person_id,
        created_at=now,
        deadline_at=now,
    )
    replay = repository.same_replay(session, job_id, request.step, attempt, digest)
    if replay is None:
        try:
            with session.begin_nested():
                session.add(made)
            replay = made
        except IntegrityError:  # the same request came at the same time
            replay = repository.same_replay(session, job_id, request.step, attempt, digest)
            if replay is None:
                raise
    new = replay is made or replay.state == ReplayState.FAILED
    if new:
        _wait(replay, settings, now)
        outbox.owe(session, REPLAY_TASK, None, replay.id, now)
    return Asked(_view(session, settings, replay), new)


def _attempt_of(session: Session, job_id: str, step: int) -> int:
    recorded = repository.recorded_steps(session, job_id)
    if step in recorded:
        return recorded[step]
    if not recorded:
        raise NotFoundError(
            f"{job_id} has no token records: there is nothing to replay",
            remedy="Set record.tokens to all or to a number of trajectories, and train again.",
        )
    steps = list(recorded)
    raise NotFoundError(
        f"step {step} of {job_id} has no token records",
        remedy=f"Choose one of the {len(steps)} steps from {steps[0]} to {steps[-1]} that have some; "
        "record.tokens says what a job keeps.",
    )


def _wait(replay: Replay, settings: Settings, now: datetime) -> None:
    replay.state = ReplayState.WAITING
    replay.node = replay.finished_at = replay.error = None
    replay.deadline_at = now + timedelta(seconds=settings.replay_s)


def show(session: ScopedSession, settings: Settings, job_id: str, replay_id: str) -> ReplayView:
    """A replay. Raises NotFoundError."""
    return _view(session, settings, repository.get_replay(session, replay_id, job_id))


def page(
    session: ScopedSession, settings: Settings, job_id: str, step: int | None, limit: int
) -> tuple[ReplayView, ...]:
    """A job's replays (of a step), newest first. Raises NotFoundError."""
    job = find_job(session, job_id)
    open_node = any_open_node(session, settings)
    found = repository.list_replays(session, job_id, step, limit)
    return tuple(replay_view(replay, job, open_node) for replay in found)


def result_ref(session: ScopedSession, job_id: str, replay_id: str) -> ArtefactRef:
    """Where its numbers are stored. Raises NotFoundError and ConflictError (not done)."""
    return ArtefactRef.model_validate(_done(session, job_id, replay_id).result)


def tokens_refs(session: ScopedSession, job_id: str, replay_id: str) -> tuple[ArtefactRef, ArtefactRef]:
    """Where the recorded and the replayed tokens are stored.

    Raises NotFoundError and ConflictError (not done).
    """
    replay = _done(session, job_id, replay_id)
    recorded = repository.tokens_of(session, replay)
    if recorded is None:
        raise NotFoundError(f"the token records of step {replay.step} are gone")
    return recorded, ArtefactRef.model_validate(replay.tokens)


def _done(session: Session, job_id: str, replay_id: str) -> Replay:
    replay = repository.get_replay(session, replay_id, job_id)
    if replay.state != ReplayState.DONE:
        raise ConflictError(
            f"replay {replay_id} is {replay.state}: it has no result", remedy="Ask again when it is done."
        )
    return replay


def claim(session: Session, settings: Settings, replay_id: str, node_id: str) -> ReplayTask:
    """The node claims the replay; the same node may do so again, another one once the first is offline.

    Raises:
        NotFoundError: there is no such replay, or its records are gone.
        ConflictError: it has ended, or a live node has it.
        SpecRefusedError: this version refuses one of its two objectives.
    """
    replay = repository.lock_replay(session, replay_id)
    now = database_now(session)
    if ReplayState(replay.state).final:
        raise ConflictError(f"replay {replay_id} is {replay.state}", remedy="Drop the task.")
    if replay.node not in (None, node_id) and replay.node in living_ids(session, settings):
        raise ConflictError(f"node {replay.node} runs replay {replay_id}", remedy="Drop the task.")
    tokens = repository.tokens_of(session, replay)
    if tokens is None:
        raise NotFoundError(f"the token records of step {replay.step} are gone")
    recorded = chosen(find_job(session, replay.job_id).spec, "algorithm")
    algorithm = chosen({"algorithm": replay.algorithm}, "algorithm")
    if replay.state == ReplayState.WAITING:
        replay.deadline_at = now + timedelta(seconds=settings.replay_s)
    replay.state, replay.node = ReplayState.RUNNING, node_id
    return ReplayTask.model_validate(
        {
            "replay_id": replay.id,
            "job_id": replay.job_id,
            "recorded": recorded,
            "algorithm": algorithm,
            "rows": repository.rows_of(session, replay),
            "tokens": tokens,
            "distances": repository.distances_of(session, replay),
        }
    )


def claimed_by(session: Session, replay_id: str) -> str | None:
    """The node that computes it. Raises NotFoundError."""
    return repository.lock_replay(session, replay_id).node


def accept(session: Session, replay_id: str, outcome: ReplayOutcome) -> None:
    """Store its result or error. A second report has no effect: every node's result is the same.

    Raises:
        NotFoundError: there is no such replay.
        InvalidInputError: neither a complete result nor an error, or files that are not the replay's own.
    """
    replay = repository.lock_replay(session, replay_id)
    if outcome.error is None:
        _check_whole(replay, outcome)
    if ReplayState(replay.state).final:
        return
    now = database_now(session)
    if outcome.error is not None:
        _fail(session, replay, outcome.error, now)
        return
    replay.state, replay.finished_at = ReplayState.DONE, now
    replay.summary = outcome.model_dump(mode="json")["summary"]
    replay.result = outcome.model_dump(mode="json")["result"]
    replay.tokens = outcome.model_dump(mode="json")["tokens"]
    outbox.settle(session, replay.id, now)


def _check_whole(replay: Replay, outcome: ReplayOutcome) -> None:
    own = f"jobs/{replay.job_id}/replays/{replay.id}/"
    if outcome.summary is None:
        raise InvalidInputError.at(
            "summary", "a result needs one", "Send summary, result and tokens, or an error."
        )
    for name, ref in (("result", outcome.result), ("tokens", outcome.tokens)):
        if ref is None or not ref.key.startswith(own):
            raise InvalidInputError.at(
                f"{name}.key", "not the replay's own artefact", f"Store it below {own}."
            )


def _fail(session: Session, replay: Replay, error: JobError, now: datetime) -> None:
    replay.state, replay.finished_at = ReplayState.FAILED, now
    # Postgres can't store NUL in JSON, and an error may quote anything
    words = {"message": error.message.replace("\0", "\ufffd")}
    replay.error = error.model_copy(update=words).model_dump(mode="json")
    outbox.settle(session, replay.id, now)


def any_open(session: Session) -> bool:
    """Whether any replay waits or runs."""
    return bool(repository.open_replays(session))


def reap(
    session: Session,
    settings: Settings,
    now: datetime,
    of_pools: Callable[[], Sequence[str]] = tuple,
    *,
    node_comes: bool = False,
) -> None:
    """Fail replays that waited or ran too long; offer those of offline nodes again.

    While no node takes work but a pool is starting one, they wait. `of_pools`: what pools say of a node.
    """
    open_replays = repository.open_replays(session)
    if not open_replays:
        return
    alive, open_node = living_ids(session, settings), any_open_node(session, settings)
    for replay_id in open_replays:
        replay = repository.lock_replay(session, replay_id)
        if ReplayState(replay.state).final:
            continue
        if replay.state == ReplayState.WAITING and node_comes and not open_node:
            replay.deadline_at = now + timedelta(seconds=settings.replay_s)
        elif replay.deadline_at <= now:
            _fail(session, replay, _too_late(replay, settings, open_node, of_pools), now)
            log.warning("gave up replay %s", replay_id)
        elif replay.state == ReplayState.RUNNING and replay.node not in alive:
            replay.state, replay.node = ReplayState.WAITING, None  # its message is still in the outbox


def _too_late(
    replay: Replay, settings: Settings, open_node: bool, of_pools: Callable[[], Sequence[str]]
) -> JobError:
    limit = f"{settings.replay_s:.0f} s"
    if replay.state == ReplayState.RUNNING:
        return JobError(
            code="replay_timeout",
            message=f"node {replay.node} returned no result within {limit}",
            remedy="Look at the log of its worker, and ask again.",
        )
    if not open_node:
        return JobError(
            code="no_node",
            message="; ".join([f"no node was alive and open to work within {limit}", *of_pools()]),
            remedy="Start one with `powermean up` or `python -m worker`, or open one with"
            " `powermean node uncordon`, and ask again.",
        )
    return JobError(
        code="no_answer",
        message=f"no node took it within {limit}",
        remedy="Look at the logs of the nodes' workers and at Redis, and ask again.",
    )


def _view(session: Session, settings: Settings, replay: Replay) -> ReplayView:
    open_node = any_open_node(session, settings)
    return replay_view(replay, find_job(session, replay.job_id), open_node)
