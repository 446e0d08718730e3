"""The audit log, for administrators and auditors, and a project's part of it for its maintainers."""

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute

from powermean.contracts.audit import AuditHead, AuditPage, Outcome
from server.audit import reading
from server.audit.reading import AuditFilter
from server.db.models import MAX_BIG_INTEGER
from server.db.session import Database
from server.identity.callers import Caller
from server.routes.access import KnownCallerRoute, May
from server.routes.dependencies import RequestDatabase, RequestJournal

router = APIRouter(prefix="/v1", tags=["audit"], route_class=KnownCallerRoute)

Everything = Annotated[Caller, May("cluster.audit")]
OfProject = Annotated[Caller, May("audit.read")]
Before = Annotated[int | None, Query(ge=1, le=MAX_BIG_INTEGER, description="`next` of the previous page.")]
Limit = Annotated[int, Query(ge=1, le=500)]
_LINES = {"application/x-ndjson": {"schema": {"type": "string"}}}
_EXPORT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The contract AuditEntry, one on each line.", "content": _LINES}
}


def _wanted(
    actor: Annotated[
        str | None, Query(max_length=120, description="Id or name of a person, or id of an attempt.")
    ] = None,
    verb: Annotated[
        str | None, Query(max_length=64, description="Such as job.submit, or job for all about jobs.")
    ] = None,
    outcome: Outcome | None = None,
    since: Annotated[datetime | None, Query(description="Not before.")] = None,
    until: Annotated[datetime | None, Query(description="Before.")] = None,
) -> AuditFilter:
    return AuditFilter(
        actor=actor,
        verb=verb,
        outcome=outcome,
        since=reading.moment(since, "since"),
        until=reading.moment(until, "until"),
    )


Wanted = Annotated[AuditFilter, Depends(_wanted)]


@router.get("/audit", summary="The audit log")
def get_audit(
    caller: Everything,
    request: Request,
    database: RequestDatabase,
    journal: RequestJournal,
    wanted: Wanted,
    before: Before = None,
    limit: Limit = 50,
) -> AuditPage:
    """Who did what, newest first. Administrators and auditors only."""
    journal.seal()
    with database.read() as session:
        return _in_words(request, reading.page(session, wanted, before, limit))


@router.get("/audit/head", summary="The audit log's end, signed")
def get_head(caller: Everything, database: RequestDatabase, journal: RequestJournal) -> AuditHead:
    """Keep it elsewhere: it shows later that nothing up to there was changed or removed."""
    journal.seal()
    with database.read() as session:
        return journal.head(session)


@router.get(
    "/audit/export", summary="The audit log as JSON lines", response_class=Response, responses=_EXPORT
)
def export_audit(
    caller: Everything, database: RequestDatabase, journal: RequestJournal, wanted: Wanted
) -> Response:
    """Oldest first. Without a filter it is the whole chain, which `powermean audit verify` checks."""
    journal.seal()
    return _lines(database, wanted)


@router.get("/projects/{project}/audit", summary="A project's audit log")
def get_project_audit(
    project: str,
    caller: OfProject,
    request: Request,
    database: RequestDatabase,
    journal: RequestJournal,
    wanted: Wanted,
    before: Before = None,
    limit: Limit = 50,
) -> AuditPage:
    """Who did what in the project, newest first. Maintainers only."""
    journal.seal()
    with database.read() as session:
        return _in_words(request, reading.page(session, wanted.of(project), before, limit))


@router.get(
    "/projects/{project}/audit/export",
    summary="A project's audit log as JSON lines",
    response_class=Response,
    responses=_EXPORT,
)
def export_project_audit(
    project: str, caller: OfProject, database: RequestDatabase, journal: RequestJournal, wanted: Wanted
) -> Response:
    """Oldest first. The chain links all projects' entries, so it can't be checked from these alone."""
    journal.seal()
    return _lines(database, wanted.of(project))


def _in_words(request: Request, found: AuditPage) -> AuditPage:
    """The page with what its requests do, as the API's description calls it."""
    asked = {entry.request for entry in found.items}
    routes = (route for route in request.app.routes if isinstance(route, APIRoute))
    summaries = {
        f"{method} {route.path}": route.summary or route.name for route in routes for method in route.methods
    }
    return found.model_copy(update={"words": {one: summaries[one] for one in asked & summaries.keys()}})


def _lines(database: Database, wanted: AuditFilter) -> Response:
    def lines() -> Iterator[str]:
        for entries in reading.entries(database, wanted):
            yield "".join(f"{entry.model_dump_json()}\n" for entry in entries)

    return StreamingResponse(lines(), media_type="application/x-ndjson")
