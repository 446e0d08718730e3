"""One leader among the server's replicas, by a lease in the database."""

from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.db.inserts import upsert
from server.db.models import Leader
from server.db.session import database_now

SCHEDULER = "scheduler"


class Standing(StrEnum):
    """Whether a replica leads."""

    LEADER = "leader"
    NEW_LEADER = "new leader"  # since just now: before, another replica led, or none
    FOLLOWER = "follower"


def acquire_lead(session: Session, holder: str, lease_s: float) -> Standing:
    """Take the scheduler's lease, or renew it in its second half.

    Its row stays locked until the commit, so no other leader acts meanwhile.

    A leader whose own lease had run out counts as new, because it did not keep watch in between. A lease that
    ends later than a new one would was taken by a clock that has been set back since: it is void.
    """
    now = database_now(session)
    upsert(session, Leader, [{"name": SCHEDULER, "holder": "", "expires_at": now}])
    query = select(Leader).where(Leader.name == SCHEDULER).with_for_update()
    lease = session.execute(query.execution_options(populate_existing=True)).scalar_one()
    now = database_now(session)
    valid = now < lease.expires_at <= now + timedelta(seconds=lease_s)
    if valid and lease.holder != holder:
        return Standing.FOLLOWER
    standing = Standing.LEADER if valid and lease.holder == holder else Standing.NEW_LEADER
    gap = abs(now - lease.expires_at)
    if lease.served_since is None or (standing is Standing.NEW_LEADER and gap > timedelta(seconds=lease_s)):
        lease.served_since = now
    if standing is Standing.NEW_LEADER or lease.expires_at < now + timedelta(seconds=lease_s / 2):
        lease.holder = holder
        lease.expires_at = now + timedelta(seconds=lease_s)
    return standing


def leads(session: Session, holder: str, lease_s: float) -> bool:
    """Whether the lease is this holder's and needs no renewal yet; takes no lock."""
    now, lease = database_now(session), session.get(Leader, SCHEDULER)
    if lease is None or lease.holder != holder:
        return False
    return now + timedelta(seconds=lease_s / 2) <= lease.expires_at <= now + timedelta(seconds=lease_s)


def served_since(session: Session) -> datetime | None:
    """Since when attempts could tell some replica of their steps: replicas that take turns leave no gap."""
    lease = session.get(Leader, SCHEDULER)
    return lease.served_since if lease is not None else None


def leader(session: Session, lease_s: float) -> str | None:
    """Whose lease is valid now."""
    now, lease = database_now(session), session.get(Leader, SCHEDULER)
    if lease is None or not now < lease.expires_at <= now + timedelta(seconds=lease_s):
        return None
    return lease.holder


def is_led(session: Session, lease_s: float) -> bool:
    """Whether some replica leads, or did less than a lease ago."""
    now, lease = database_now(session), session.get(Leader, SCHEDULER)
    if lease is None:
        return False
    return abs(lease.expires_at - now) <= timedelta(seconds=lease_s)


def keeps_lead(session: Session, holder: str) -> bool:
    """Whether nobody else has taken the lease; until the commit nobody can."""
    query = select(Leader.holder).where(Leader.name == SCHEDULER).with_for_update()
    return session.execute(query).scalar_one_or_none() == holder


def resign(session: Session, holder: str) -> None:
    """Give up the lease at once, so that another replica need not wait for it to expire."""
    query = select(Leader).where(Leader.name == SCHEDULER, Leader.holder == holder).with_for_update()
    lease = session.execute(query).scalar_one_or_none()
    if lease is not None:
        lease.expires_at = database_now(session)
