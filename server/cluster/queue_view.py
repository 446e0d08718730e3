"""Why jobs wait, for people: planned afresh from the database, so that every replica can tell."""

from sqlalchemy.orm import Session

from server.cluster import line, state
from server.db.session import database_now
from server.placement.plan import plan
from server.placement.why import Why, explain
from server.settings import Settings


def waiting(session: Session, settings: Settings) -> dict[str, Why]:
    """Why each queued job waits, by id; those about to start have no entry.

    The session must see all projects. `Why.words` leaves out the names of those that a caller may not see.
    """
    now = database_now(session)
    made = state.read(session, settings, [one.job for one in line.queued(session, now)], now)
    return explain(made, plan(made))
