"""After a clock that was ahead has been set right: times that it wrote lie too far in the future.

Each kind of time has a longest distance from now. What lies further ahead was written by the wrong clock, and
would keep silent attempts alive, messages unsent and jobs waiting until then.
"""

from datetime import datetime, timedelta

from sqlalchemy import update
from sqlalchemy.orm import Session

from server.db.models import Job, Node, Outbox, Replay
from server.jobs.endings import LONGEST_PAUSE_S
from server.settings import Settings

LONGEST_RESEND_S = 60.0


def bound_times(session: Session, settings: Settings, now: datetime) -> None:
    """Bring times that lie too far ahead as near as they can be. Attempts' leases are the caller's."""
    resend = now + timedelta(seconds=max(LONGEST_RESEND_S, settings.poll_s))
    pause = now + timedelta(seconds=LONGEST_PAUSE_S)
    replay = now + timedelta(seconds=settings.replay_s)
    owed, open_ = Outbox.done_at.is_(None), Replay.finished_at.is_(None)
    for changed in (
        update(Outbox).where(owed, Outbox.next_send_at > resend).values(next_send_at=now),
        update(Job).where(Job.not_before > pause).values(not_before=now),
        update(Node).where(Node.seen_at > now).values(seen_at=now),
        update(Replay).where(open_, Replay.deadline_at > replay).values(deadline_at=replay),
    ):
        session.execute(changed.execution_options(synchronize_session=False))
