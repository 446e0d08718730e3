"""Why each queued job waits: planned afresh from the database, so that every replica can tell."""

from sqlalchemy.orm import Session

from server.cluster import line, state
from server.db.session import database_now
from server.placement.plan import plan
from server.placement.why import Part, Why, explain
from server.settings import Settings

STARTS_NEXT = "a place is free: it starts in a moment"


def waiting(session: Session, settings: Settings) -> dict[str, Why]:
    """Of every queued job. Those that the plan starts come first, those that pause after a failure last.

    The session must see all projects. `Why.words` leaves out the names of those that a caller may not see.
    """
    now = database_now(session)
    queued = line.queued(session)
    due = [one for one in queued if one.is_due(now)]
    made_of = state.read(session, settings, [one.job for one in due], now)
    made = plan(made_of)
    found: dict[str, Why] = {}
    for place, start in enumerate(made.starts, start=1):
        project = next(one.job.project for one in due if one.job.id == start.job_id)
        found[start.job_id] = _plain("next", STARTS_NEXT, project, place)
    starting = len(found)
    for job_id, why in explain(made_of, made, first=starting + 1).items():
        found[job_id] = why
    for one in queued:
        if not one.is_due(now):
            text = one.phase or "it restarts after a pause"
            found[one.job.id] = _plain("restarting", text, one.job.project, len(found) + 1)
    return found


def _plain(kind: str, text: str, project: str, position: int) -> Why:
    return Why(kind, text, project, position, ahead=position - 1, parts=(Part(text),))
