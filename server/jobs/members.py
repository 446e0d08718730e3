"""The nodes of an attempt that runs on several.

Each claims its part, keeps its own lease, and says when its processes are gone. The attempt's own lease is
the earliest of theirs: one node that falls silent ends the attempt everywhere. An attempt on one node has no
members, and nothing here is called for it. Every function runs with the job locked.
"""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from powermean.contracts.attempts import Finish, Heartbeat, JobError, Member, MemberReport
from powermean.contracts.names import RANK_LOST
from powermean.tokens import AttemptClaims
from server.db.models import Attempt, AttemptMember, Job
from server.errors import FencedError, NotFoundError
from server.settings import Settings

LAPSED = "lapsed"
STOPPED = "stopped"  # because the attempt had ended on another node
GANG_INCOMPLETE = "gang_incomplete"


def enlist(session: Session, attempt: Attempt, nodes: Sequence[str], until: datetime) -> None:
    """The nodes of a new attempt, in order of their ranks; each has until then to claim its part."""
    for rank, node_id in enumerate(nodes):
        session.add(
            AttemptMember(attempt_id=attempt.id, node_rank=rank, node_id=node_id, lease_expires_at=until)
        )


def of(session: Session, attempt: Attempt) -> Sequence[AttemptMember]:
    """All of them, by rank, as they are now."""
    query = select(AttemptMember).where(AttemptMember.attempt_id == attempt.id)
    query = query.order_by(AttemptMember.node_rank).execution_options(populate_existing=True)
    return session.execute(query).scalars().all()


def claim(
    session: Session,
    settings: Settings,
    attempt: Attempt,
    node_id: str,
    claim_id: str | None,
    now: datetime,
) -> tuple[int, bool]:
    """The rank of a node that claims its part, and whether it repeats its claim.

    Raises FencedError: it did so before, by another claim.
    """
    members = of(session, attempt)
    mine = next(member for member in members if member.node_id == node_id)
    repeated = claim_id is not None and mine.claim_id == claim_id and mine.ended_at is None
    if mine.claimed_at is not None and not repeated:
        raise FencedError(
            f"node {node_id} has claimed its part of attempt {attempt.id} already", remedy="Drop the task."
        )
    mine.claimed_at, mine.claim_id = mine.claimed_at or now, claim_id
    mine.lease_expires_at = now + timedelta(seconds=settings.lease_s)
    _shorten_lease(attempt, members)
    return mine.node_rank, repeated


def beat(
    session: Session, settings: Settings, attempt: Attempt, heard: Heartbeat, now: datetime
) -> tuple[Member, ...]:
    """Renew a node's lease and keep what it says of itself; all nodes, for the answer."""
    members = of(session, attempt)
    mine = _at_work(attempt, members, heard.node_rank)
    mine.lease_expires_at = now + timedelta(seconds=settings.lease_s)
    if heard.member is not None:
        mine.report = heard.member.model_dump(mode="json")
    _shorten_lease(attempt, members)
    return tuple(_view(member) for member in members)


def end(session: Session, attempt: Attempt, report: Finish, now: datetime) -> AttemptMember | None:
    """A node's processes are gone. None: it said so before."""
    members = of(session, attempt)
    mine = _known(attempt, members, report.node_rank)
    if mine.ended_at is not None:
        return None
    outcome: str = report.outcome
    error = report.error
    if error is not None and error.code == RANK_LOST and attempt.state not in ("starting", "running"):
        outcome, error = STOPPED, None  # nothing failed there
    mine.ended_at, mine.outcome, mine.lease_expires_at = now, mine.outcome or outcome, None
    mine.error = error.model_dump(mode="json") if error else None
    _shorten_lease(attempt, members)
    return mine


def silent(session: Session, attempt: Attempt, now: datetime) -> list[AttemptMember]:
    """Those whose lease or time to claim is over; none: the attempt's lease is put right."""
    members = of(session, attempt)
    found = [one for one in members if one.lease_expires_at is not None and one.lease_expires_at <= now]
    if not found:
        _shorten_lease(attempt, members)
    return found


def named(member: AttemptMember, report: Finish) -> Finish:
    """A report in the attempt's own words: what befell another node than the first says on which."""
    if member.node_rank == 0 or report.outcome == "finished":
        return report
    where, error = f"node {member.node_id}: ", report.error
    if error is None and report.outcome == "failed":
        error = JobError(code="unknown", message="it failed without giving a reason; its log may say more")
    if error is None and report.outcome == "cancelled":
        error = JobError(code="stopped", message="the attempt was stopped there, not by an order")
    return report.model_copy(
        update={
            "error": error and error.model_copy(update={"message": f"{where}{error.message}"}),
            "reason": report.reason and f"{where}{report.reason}",
        }
    )


def give_up(silent: Collection[AttemptMember], attempt: Attempt) -> JobError:
    """Why the attempt is over: these of its nodes fell silent, or never claimed their part."""
    for member in silent:
        member.outcome = LAPSED
    quiet = [member.node_id for member in silent if member.claimed_at is not None]
    if quiet:
        return JobError(
            code="lease_lapsed",
            message=f"{_nodes(quiet)} stopped sending heartbeats of attempt {attempt.number}",
            remedy="Check whether each is up, can reach the server and has CPU time and memory left.",
        )
    return JobError(
        code=GANG_INCOMPLETE if attempt.state == "running" else "not_claimed",
        message=f"{_nodes([one.node_id for one in silent])} did not claim attempt {attempt.number} in time",
        remedy="Check whether a worker is running there and can reach Redis and the server.",
    )


def may_begin(session: Session, attempt_id: str, node_id: str, since: datetime) -> bool:
    """Whether the node claimed its part of an attempt after `since`: a report on its way may not tell of the
    processes yet.
    """
    mine = AttemptMember.attempt_id == attempt_id, AttemptMember.node_id == node_id
    late = select(AttemptMember.node_rank).where(
        *mine, AttemptMember.claimed_at > since, AttemptMember.ended_at.is_(None)
    )
    return session.execute(late).first() is not None


def lost(session: Session, attempt: Attempt, node_id: str) -> None:
    """Somebody who must know says that nothing of the node is left."""
    gone = update(AttemptMember).where(
        AttemptMember.attempt_id == attempt.id, AttemptMember.node_id == node_id
    )
    session.execute(gone.values(outcome=LAPSED, lease_expires_at=None))


def unclaimed(session: Session, attempt: Attempt) -> frozenset[str]:
    """The nodes that have not claimed their part: nothing runs there."""
    return frozenset(one.node_id for one in of(session, attempt) if one.claimed_at is None)


def is_ending(session: Session, claims: AttemptClaims) -> bool:
    """Whether another node has ended the job's newest attempt, and this one still stops its processes."""
    attempt = session.get(Attempt, claims.attempt_id)
    if attempt is None or attempt.nodes == 1 or attempt.state != "ended":
        return False
    newest = session.scalar(select(Job.attempt).where(Job.id == attempt.job_id))
    mine = session.get(AttemptMember, (attempt.id, claims.node_rank))
    return newest == attempt.number and mine is not None and mine.ended_at is None


def extend_leases(session: Session, settings: Settings, now: datetime) -> None:
    """As attempts.extend_leases()."""
    live = select(Attempt.id).where(Attempt.state.in_(("starting", "running")), Attempt.nodes > 1)
    theirs = AttemptMember.attempt_id.in_(live), AttemptMember.lease_expires_at.is_not(None)
    for claimed, period in ((False, settings.claim_s), (True, settings.lease_s)):
        which = AttemptMember.claimed_at.is_not(None) if claimed else AttemptMember.claimed_at.is_(None)
        until = now + timedelta(seconds=period)
        session.execute(update(AttemptMember).where(*theirs, which).values(lease_expires_at=until))


def _view(member: AttemptMember) -> Member:
    report = MemberReport.model_validate(member.report) if member.report else None
    return Member(node_rank=member.node_rank, node_id=member.node_id, report=report)


def _known(attempt: Attempt, members: Sequence[AttemptMember], node_rank: int) -> AttemptMember:
    if node_rank >= len(members):
        raise NotFoundError(f"attempt {attempt.id} has {len(members)} nodes, and none of rank {node_rank}")
    mine = members[node_rank]
    if mine.claimed_at is None:
        raise FencedError(
            f"node {mine.node_id} has not claimed its part of attempt {attempt.id}", remedy="Claim it first."
        )
    return mine


def _at_work(attempt: Attempt, members: Sequence[AttemptMember], node_rank: int) -> AttemptMember:
    mine = _known(attempt, members, node_rank)
    if mine.ended_at is not None:
        raise FencedError(
            f"node {mine.node_id} has said that its part of attempt {attempt.id} is over",
            remedy="Stop the attempt's processes.",
        )
    return mine


def _shorten_lease(attempt: Attempt, members: Sequence[AttemptMember]) -> None:
    attempt.lease_expires_at = min(
        (one.lease_expires_at for one in members if one.lease_expires_at is not None),
        default=attempt.lease_expires_at,
    )


def _nodes(ids: Sequence[str]) -> str:
    return f"node{'s' * (len(ids) > 1)} {', '.join(ids)}"
