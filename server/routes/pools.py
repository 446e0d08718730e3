"""Pools for people: where nodes come from when there is work. They are declared in a file, not here."""

from typing import Annotated

from fastapi import APIRouter, Path

from powermean.contracts.pools import PoolList, PoolView
from server.identity.callers import Caller
from server.pools import views
from server.routes.access import KnownCallerRoute, May
from server.routes.dependencies import CallersDatabase, RequestSettings

router = APIRouter(prefix="/v1/pools", tags=["pools"], route_class=KnownCallerRoute)


@router.get("", summary="List the pools")
def list_pools(
    caller: Annotated[Caller, May("cluster.read")], database: CallersDatabase, settings: RequestSettings
) -> PoolList:
    """What each pool has and is starting, and why it starts nothing, if so."""
    with database.read() as session:
        return views.list_pools(session, settings)


@router.get("/{name}", summary="Show a pool")
def get_pool(
    name: Annotated[str, Path(min_length=1, max_length=64)],
    caller: Annotated[Caller, May("cluster.read")],
    database: CallersDatabase,
    settings: RequestSettings,
) -> PoolView:
    """One pool, as in the list."""
    with database.read() as session:
        return views.show_pool(session, settings, name)
