"""The service's server processes, for those who run it."""

from typing import Annotated

from fastapi import APIRouter

from powermean.contracts.api import ServerList
from server.cluster import presence
from server.identity.callers import Caller
from server.routes.access import KnownCallerRoute, May
from server.routes.dependencies import RequestDatabase, RequestSettings

router = APIRouter(prefix="/v1/servers", tags=["operations"], route_class=KnownCallerRoute)


@router.get("", summary="List the servers")
def list_servers(
    caller: Annotated[Caller, May("operations.read")], database: RequestDatabase, settings: RequestSettings
) -> ServerList:
    """The processes that share the database, which of them leads, and those that died since yesterday."""
    with database.read() as session:
        return presence.list_servers(session, settings)
