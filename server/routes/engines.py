"""Engine services that LoRA jobs share: declared by administrators, shown to everyone."""

from typing import Annotated

from fastapi import APIRouter, Response, status

from powermean.contracts.engines import EngineService, EngineServiceList, EngineSpec
from server.audit.journal import note
from server.cluster import engines
from server.identity.callers import Caller
from server.nodes import living_ids
from server.routes.access import KnownCallerRoute, May
from server.routes.dependencies import CallersDatabase, RequestSettings

router = APIRouter(prefix="/v1/engines", tags=["engines"], route_class=KnownCallerRoute)


@router.post("", status_code=status.HTTP_201_CREATED, summary="Declare an engine")
def create_engine(
    spec: EngineSpec,
    caller: Annotated[Caller, May("cluster.change")],
    database: CallersDatabase,
    settings: RequestSettings,
    response: Response,
) -> EngineService:
    """A node with vLLM keeps it running from now on; LoRA jobs on its model share it. Administrators only."""
    with database.write() as session:
        made = engines.create(session, caller.person_id, spec, settings.allowed_models)
        note(target=made.id)
    response.headers["Location"] = f"/v1/engines/{made.id}"
    return made


@router.get("", summary="List the engines")
def list_engines(
    caller: Annotated[Caller, May("cluster.read")], database: CallersDatabase, settings: RequestSettings
) -> EngineServiceList:
    """By name: where each runs, its state and load, and the jobs that sample from it."""
    with database.read() as session:
        return EngineServiceList(items=tuple(engines.list_engines(session, living_ids(session, settings))))


@router.get("/{engine_id}", summary="Show an engine")
def get_engine(
    engine_id: str,
    caller: Annotated[Caller, May("cluster.read")],
    database: CallersDatabase,
    settings: RequestSettings,
) -> EngineService:
    """One engine service."""
    with database.read() as session:
        return engines.show(session, engine_id, living_ids(session, settings))


@router.delete("/{engine_id}", status_code=status.HTTP_202_ACCEPTED, summary="Remove an engine")
def remove_engine(
    engine_id: str,
    caller: Annotated[Caller, May("cluster.change")],
    database: CallersDatabase,
    settings: RequestSettings,
) -> EngineService:
    """It takes no new jobs and ends once its current ones have ended. Administrators only."""
    with database.write() as session:
        return engines.remove(session, engine_id, living_ids(session, settings))
