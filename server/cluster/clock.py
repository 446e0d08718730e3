"""The database's clock may jump.

Just after it has, nothing is done that a time alone decides and that can't be taken back: it may be set right
at once. After a clock that was ahead has been set right, times that it wrote lie too far in the future. Each
kind of time has a longest distance from now: what lies further ahead would keep silent attempts alive,
messages unsent and jobs waiting until then.
"""

import logging
import time
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import update
from sqlalchemy.orm import Session

from server.db.models import Job, Node, Outbox, Replay
from server.db.session import database_now
from server.jobs.endings import LONGEST_PAUSE_S
from server.settings import Settings

log = logging.getLogger(__name__)

LONGEST_RESEND_S = 60.0
JUMP_S = 5.0  # less may be a clock that is set right bit by bit
SETTLE_S = 30.0  # after a jump


@dataclass
class ClockWatch:
    """Compares the database's clock with one of this process's that never jumps."""

    offset: float | None = None
    trusted_from: float = float("-inf")

    def trusts(self, session: Session) -> bool:
        """Whether the clock, which is asked now, has not jumped for a while.

        When it was read is known as well as its answer was quick: somewhere between asking and hearing.
        """
        asked = time.monotonic()
        now = database_now(session).timestamp()
        heard = time.monotonic()
        least, most = now - heard, now - asked
        before = (least + most) / 2 if self.offset is None else self.offset
        self.offset = min(max(before, least), most)
        if abs(jump := self.offset - before) > JUMP_S:
            log.warning("the database's clock has jumped by %.0f s", jump)
            self.trusted_from = heard + SETTLE_S
        return heard >= self.trusted_from


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
