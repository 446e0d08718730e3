"""A pilot's life in the database: asked for, confirmed, seen by its engine, let go, ended.

The row is written before the engine is asked, so that a pilot is found again after a crash at any moment.
Every function runs in the leader's transaction; none talks to an engine.
"""

import logging
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from powermean.contracts.attempts import NodeReport
from powermean.contracts.pools import BEING_ENDED, Shape
from server.cluster import engines
from server.cluster.pilots import ENDED, KINDS, living, silence
from server.db.inserts import upsert
from server.db.models import DRAINING, Allocation, Attempt, Node, Pilot, PoolStatus
from server.db.session import changes
from server.identity.keys import create_pilot_token, revoke_pilot_tokens
from server.jobs import allocations, attempts
from server.jobs.attempts import NodeGone
from server.jobs.endings import REASON_CHARACTERS
from server.jobs.events import lock_job
from server.nodes import OVER, RUNNING, attempts_holding
from server.pools.backend import PilotState, Seen
from server.pools.declaration import Pool
from server.replays.repository import busy_nodes
from server.settings import Settings

log = logging.getLogger(__name__)

KEPT = timedelta(days=7)  # rows of pilots that have ended
UNDECLARED = "the pools file does not declare it any more: end its pilots yourself"
LONG_AGO = datetime(1970, 1, 2, tzinfo=UTC)  # an end before is none
CLOSE = timedelta(seconds=5)  # an end that moves by less has not moved
FIRST_PAUSE_S = 30.0  # after a node that failed to start; doubles with each one more
LONGEST_PAUSE_S = 1800.0
ALONE = "the other nodes of its job did not come in time"


def declare(session: Session, pool: Pool) -> None:
    """Keep what the file says, for every server's views."""
    row = {
        "name": pool.name,
        "kind": pool.kind,
        "shape": pool.node_shape.model_dump(mode="json"),
        "min": pool.min,
        "max": pool.max,
    }
    upsert(session, PoolStatus, [row], replace=("kind", "shape", "min", "max"))
    changes(session).plan = True


def forget_undeclared(session: Session, settings: Settings, names: Sequence[str], now: datetime) -> None:
    """Remove the pools that are in the file no more, except where they still have nodes.

    Nobody asks their engines any more. So a pilot ends when its node reports no more and nothing there beats.
    """
    for pilot in living(session):
        if pilot.pool in names or attempts_holding(session, pilot.node_id, RUNNING):
            continue
        if session.get(Node, pilot.node_id) is None or silence(session, settings, pilot, now):
            end(session, settings, pilot, "the pools file does not declare its pool any more", now)
    for pool in session.scalars(select(PoolStatus).where(PoolStatus.name.not_in(names))):
        if not living(session, pool.name):
            session.delete(pool)
            changes(session).plan = True
        elif (pool.max, pool.error) != (0, UNDECLARED):
            pool.max, pool.error = 0, UNDECLARED
            changes(session).plan = True


def ask(session: Session, pool: Pool, now: datetime) -> Pilot:
    """A new pilot that the engine has yet to be asked for."""
    name = f"{pool.name}-{secrets.token_hex(4)}"
    pilot = Pilot(
        id=name,
        pool=pool.name,
        node_id=name,
        state="asked",
        reason="",
        failed=False,
        shape=pool.node_shape.model_dump(mode="json"),
        created_at=now,
    )
    session.add(pilot)
    changes(session).plan = True
    return pilot


def new_token(session: Session, pilot: Pilot) -> str:
    """A token of the node's, for an order to the engine. One of an order before, which the engine may have
    taken after all, stays valid.
    """
    made = create_pilot_token(session, pilot.node_id, pilot.pool)
    pilot.key_id = made.id
    return made.key


def confirm(session: Session, pilot: Pilot, external_id: str) -> None:
    """The engine has taken the order."""
    pilot.external_id = external_id
    if pilot.state == "asked":
        pilot.state = "pending"


def let_go(session: Session, settings: Settings, pool: Pool, pilot: Pilot, why: str, now: datetime) -> bool:
    """Have the engine end a pilot on which nothing runs. False: something does, after all."""
    if has_work(session, settings, pool, pilot, now):
        return False
    pilot.leaves = why[:200]
    node = session.get(Node, pilot.node_id, with_for_update=True)
    if node is not None:
        node.ordered_state, node.ordered_state_reason = DRAINING, why[:200]
    changes(session).plan = True
    log.info("pool %s: letting %s go: %s", pilot.pool, pilot.id, why)
    return True


def has_work(session: Session, settings: Settings, pool: Pool, pilot: Pilot, now: datetime) -> bool:
    """Whether anything runs on its node, or holds something there.

    Of a node that has been silent for too long, only attempts that still beat count: its last report is
    old, and nobody will say that what lapsed there is gone.
    """
    node = session.get(Node, pilot.node_id)
    if node is None:
        return False
    if attempts_holding(session, node.id, RUNNING):
        return True
    if _is_lost(session, settings, pool, pilot, now):
        return False
    if attempts_holding(session, node.id, OVER):
        return True
    report = NodeReport.model_validate(node.report)
    return bool(report.running or report.services or report.checking) or node.id in (
        engines.placed(session) | busy_nodes(session)
    )


def is_drained(session: Session, settings: Settings, pool: Pool, pilot: Pilot, now: datetime) -> bool:
    """Whether its node was ordered to drain, and is empty.

    One whose worker leaves is being ended already, and only whoever does that can say why.
    """
    node = session.get(Node, pilot.node_id)
    drains = node is not None and node.ordered_state == DRAINING and not _leaves(node)
    return drains and not has_work(session, settings, pool, pilot, now)


def unneeded_s(session: Session, pool: Pool, pilot: Pilot, now: datetime) -> float:
    """For how long nothing has needed it. While its worker leaves, whoever is ending it has time for that:
    if we ended it, too, nobody would learn who did.
    """
    if pilot.unneeded_since is None:
        return 0.0
    node = session.get(Node, pilot.node_id)
    grace_s = pool.term_grace_s if node is not None and _leaves(node) else 0.0
    return (now - pilot.unneeded_since).total_seconds() - grace_s


def _leaves(node: Node) -> bool:
    """Whether its worker was told to end."""
    return bool(node.report.get("leaving"))


def note_seen(
    session: Session, settings: Settings, pool: Pool, pilot: Pilot, seen: Seen, now: datetime
) -> None:
    """What the engine says of a pilot that has not ended."""
    if pilot.external_id is None:
        pilot.external_id = seen.external_id
    state, reason = seen.state.value, seen.reason[:300]
    if seen.state is PilotState.PENDING and pilot.state == PilotState.RUNNING:
        _tell_those_that_left(session, pilot, f"{_named(session, pilot)} was stopped: {reason}")
    if state == PilotState.RUNNING and pilot.state != state:  # maybe again: Kueue stops Jobs and starts them
        pilot.started_at = now
    if (pilot.state, pilot.reason) != (state, reason):
        pilot.state, pilot.reason = state, reason
        changes(session).plan = True
    if seen.state is PilotState.RUNNING:
        why = _too_short(settings, pool, pilot, seen.ends_at, now) or _no_node(session, pool, pilot, now)
        _note_end(session, pool, pilot, seen.ends_at)
        if pilot.leaves is None and why is not None:
            pilot.failed = let_go(session, settings, pool, pilot, why, now)
        elif pilot.leaves is None and _is_lost(session, settings, pool, pilot, now):
            let_go(
                session,
                settings,
                pool,
                pilot,
                f"its node has not reported for {pool.start_deadline_s:g} s",
                now,
            )


def _is_lost(session: Session, settings: Settings, pool: Pool, pilot: Pilot, now: datetime) -> bool:
    """Whether its node reported once and has been silent for as long as a worker may take to start."""
    return silence(session, settings, pilot, now) > timedelta(seconds=pool.start_deadline_s)


def _note_end(session: Session, pool: Pool, pilot: Pilot, ends_at: datetime | None) -> None:
    """Its node drains in good time before its end, or when an administrator has said if that is earlier."""
    if ends_at is None or ends_at < LONG_AGO:
        return
    before = pilot.ends_at - timedelta(seconds=pool.drain_s) if pilot.ends_at is not None else None
    if pilot.ends_at is None or abs(pilot.ends_at - ends_at) > CLOSE:
        pilot.ends_at = ends_at
    node = session.get(Node, pilot.node_id)
    if node is None or node.ordered_state == DRAINING:
        return
    drain_at = pilot.ends_at - timedelta(seconds=pool.drain_s)
    earlier = node.drain_at is not None and node.drain_at != before and node.drain_at < drain_at
    if earlier or node.drain_at == drain_at:
        return
    node.drain_at = drain_at
    if node.ordered_state is None:
        node.ordered_state_reason = f"its time in pool {pool.name} ends at {pilot.ends_at:%H:%M} UTC"
    changes(session).plan = True


def _too_short(
    settings: Settings, pool: Pool, pilot: Pilot, ends_at: datetime | None, now: datetime
) -> str | None:
    """Why no job would ever run there, once its engine has said for how long it has it."""
    if pilot.ends_at is not None or ends_at is None:
        return None
    seconds = (ends_at - now).total_seconds()
    if seconds > pool.drain_s + settings.min_run_s:
        return None
    return (
        f"its engine gives it {seconds:.0f} s, which is too short: drain_s ({pool.drain_s:g}) and "
        f"POWERMEAN_MIN_RUN_S ({settings.min_run_s:g}) are more"
    )


def _no_node(session: Session, pool: Pool, pilot: Pilot, now: datetime) -> str | None:
    """Why a pilot never becomes the node that was asked for: it goes, and counts as a failure."""
    began = pilot.started_at or now
    node = session.get(Node, pilot.node_id)
    if node is not None:
        return lacking(Shape.model_validate(pilot.shape), NodeReport.model_validate(node.report))
    late = now - began > timedelta(seconds=pool.start_deadline_s)
    return f"its worker did not report within {pool.start_deadline_s:g} s" if late else None


def waits_too_long(session: Session, pool: Pool, pilot: Pilot, now: datetime) -> str | None:
    """Why a pilot that its engine has not started is given up. While it waits, it keeps the work for itself,
    and the nodes of a job on several that are there already.
    """
    if pilot.state not in ("asked", "pending") or session.get(Node, pilot.node_id) is not None:
        return None
    since = pilot.started_at or pilot.created_at  # started once: its engine has stopped it since
    if pool.pending_deadline_s is None or now - since <= timedelta(seconds=pool.pending_deadline_s):
        return None
    kind = KINDS.get(pool.kind, pool.kind)
    last = f" ({kind}: {pilot.reason})" if pilot.reason else ""
    return f"{kind} has not started it within {pool.pending_deadline_s:g} s{last}"


def lacking(shape: Shape, report: NodeReport) -> str | None:
    """What a node has less of than its pool's shape says."""
    wanted = shape.gpu_type.casefold()
    gpus = sum(wanted in gpu.name.casefold() and gpu.memory_mb >= shape.gpu_memory_mb for gpu in report.gpus)
    if gpus < shape.gpus:
        kind = f" called {shape.gpu_type}" if wanted else ""
        return f"its node has {gpus} GPUs{kind} as shape says, instead of {shape.gpus}"
    missing = set(shape.engines) - set(report.engines)
    return f"its node has no {', '.join(sorted(missing))}, which shape.engines names" if missing else None


def end(
    session: Session, settings: Settings, pilot: Pilot, words: str, now: datetime, *, revoked: bool = False
) -> None:
    """Nothing of the pilot runs any more: what ran there goes on elsewhere, and what it held is free.

    The engine's word counts as the node's: nobody else will ever say it.
    """
    node = session.get(Node, pilot.node_id)
    pilot.failed = pilot.failed or (node is None and pilot.leaves is None and not revoked)
    pilot.state, pilot.reason, pilot.ended_at = ENDED, (pilot.leaves or words)[:300], now
    revoke_pilot_tokens(session, pilot.node_id, pilot.pool)
    gone = NodeGone(pilot.node_id, f"{_named(session, pilot)} ended: {words}", revoked)
    for attempt_id in attempts_holding(session, pilot.node_id, RUNNING):
        if attempts.lapse(session, settings, attempt_id, gone):
            log.warning("gave up attempt %s: %s", attempt_id, gone.message)
    for attempt_id in attempts_holding(session, pilot.node_id, OVER):
        allocations.release(session, attempt_id, now, node_id=pilot.node_id)
    if pilot.leaves is None:
        _tell_those_that_left(session, pilot, gone.message)
    if node is not None:
        session.delete(node)
    changes(session).plan = True
    log.info("pool %s: %s has ended: %s", pilot.pool, pilot.id, pilot.reason)


def _tell_those_that_left(session: Session, pilot: Pilot, words: str) -> None:
    """Attempts that left because the allocation was being ended learn why it was: now its engine says so."""
    since = pilot.started_at or pilot.created_at  # what ended before it was started again is another story
    here = Allocation.node_id == pilot.node_id, Allocation.released_at >= since
    query = select(Attempt).where(
        Attempt.id.in_(select(Allocation.attempt_id).where(*here)),
        Attempt.reason.contains(BEING_ENDED),
        Attempt.reason.contains(pilot.node_id, autoescape=True),
    )
    for attempt in session.scalars(query.order_by(Attempt.id)).all():
        lock_job(session, attempt.job_id)
        session.refresh(attempt)
        said = attempt.reason or ""
        if words not in said:
            attempt.reason = f"{said}; {words}"[:REASON_CHARACTERS]


def _named(session: Session, pilot: Pilot) -> str:
    """`pool gpu: Slurm's 17`."""
    engine = KINDS.get(_kind(session, pilot), "its engine")
    return f"pool {pilot.pool}: {engine}'s {pilot.external_id or 'allocation'}"


def _kind(session: Session, pilot: Pilot) -> str:
    return session.scalar(select(PoolStatus.kind).where(PoolStatus.name == pilot.pool)) or ""


def paused_until(session: Session, pool: str, now: datetime) -> tuple[datetime, str] | None:
    """Until when the pool is asked for nothing after its last pilots failed to start, and why."""
    query = select(Pilot, Node.id).outerjoin(Node, Node.id == Pilot.node_id).where(Pilot.pool == pool)
    query = query.where(Pilot.leaves.is_distinct_from(ALONE))  # it says nothing against the one that failed
    newest = Pilot.created_at.desc(), Pilot.failed.desc()
    failures: list[Pilot] = []
    for pilot, node_id in session.execute(query.order_by(*newest).limit(20)):
        if pilot.failed:
            failures.append(pilot)
        elif pilot.state == ENDED or node_id is not None:
            break
    if not failures:
        return None
    pause = timedelta(seconds=min(FIRST_PAUSE_S * 2 ** (len(failures) - 1), LONGEST_PAUSE_S))
    until = max(pilot.ended_at or now for pilot in failures) + pause
    if until <= now:
        return None
    why = failures[0].leaves or failures[0].reason
    if len(failures) == 1:
        return until, f"the last pilot did not become a node: {why}"
    return until, f"the last {len(failures)} pilots did not become nodes: {why}"


def prune(session: Session, pool: str, now: datetime) -> None:
    """Remove pilots that have ended long ago."""
    session.execute(delete(Pilot).where(Pilot.pool == pool, Pilot.ended_at < now - KEPT))
