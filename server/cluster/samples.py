"""What nodes use, kept for an hour: one row of a node every ten seconds, from the first report in them.

These numbers change with every report, so they are no part of the node's row: nothing is planned anew for
them.
"""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, func, select, tuple_
from sqlalchemy.orm import Session

from powermean.contracts.api import NodeSample, NodeSamples
from powermean.contracts.attempts import GpuUse, NodeReport
from server.db.inserts import upsert
from server.db.models import Attempt, Job
from server.db.models import NodeSample as Row
from server.db.scoped import ScopedSession
from server.db.session import database_now

EVERY_S = 10
KEPT = timedelta(hours=1)
FRESH = timedelta(seconds=3 * EVERY_S)
GAUGES = frozenset(GpuUse.model_fields) - {"uuid"}


def record(session: Session, node_id: str, report: NodeReport, now: datetime) -> None:
    """Keep what a report says of the node's use, unless these ten seconds have a row."""
    at = datetime.fromtimestamp(now.timestamp() // EVERY_S * EVERY_S, UTC)
    gpus = [gpu.model_dump(mode="json", include={"uuid", *GAUGES}, exclude_none=True) for gpu in report.gpus]
    use = {"gpus": gpus, "attempts": [one.model_dump(mode="json") for one in report.use]}
    upsert(session, Row, [{"node_id": node_id, "at": at, "use": use}])


def latest(session: ScopedSession, now: datetime) -> dict[str, NodeSample]:
    """The newest sample of each node that has a fresh one."""
    newest = select(Row.node_id, func.max(Row.at)).where(Row.at > now - FRESH).group_by(Row.node_id)
    rows = session.scalars(select(Row).where(tuple_(Row.node_id, Row.at).in_(newest))).all()
    return dict(zip([row.node_id for row in rows], _as_seen(session, rows), strict=True))


def history(session: ScopedSession, node_id: str, since: datetime | None) -> NodeSamples:
    """A node's samples after `since`, oldest first; of attempts those that the caller sees."""
    now = database_now(session)
    after = max(now - KEPT, min(since, now)) if since is not None else now - KEPT
    query = select(Row).where(Row.node_id == node_id, Row.at > after).order_by(Row.at)
    return NodeSamples(every_s=EVERY_S, items=tuple(_as_seen(session, session.scalars(query).all())))


def prune(session: Session, now: datetime) -> None:
    """Forget what is older than an hour."""
    session.execute(delete(Row).where(Row.at <= now - KEPT))


def _as_seen(session: ScopedSession, rows: Collection[Row]) -> list[NodeSample]:
    named = {one["attempt_id"] for row in rows for one in row.use["attempts"]}
    query = select(Attempt.id).join(Job, Job.id == Attempt.job_id).where(Attempt.id.in_(named))
    seen = set(session.scalars(query)) if named else set()
    return [
        NodeSample(
            at=row.at,
            gpus=row.use["gpus"],
            attempts=tuple(one for one in row.use["attempts"] if one["attempt_id"] in seen),
        )
        for row in rows
    ]
