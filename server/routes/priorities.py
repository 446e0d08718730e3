"""Priority classes: declared by administrators, shown to everyone."""

from typing import Annotated

from fastapi import APIRouter, status

from powermean.contracts.priorities import PriorityClass, PriorityClassList, PriorityName, PriorityRank
from server.identity.callers import Caller
from server.jobs import priorities
from server.routes.access import KnownCallerRoute, May
from server.routes.dependencies import CallersDatabase

router = APIRouter(prefix="/v1/priorities", tags=["priorities"], route_class=KnownCallerRoute)


@router.get("", summary="List the priority classes")
def list_priorities(
    caller: Annotated[Caller, May("cluster.read")], database: CallersDatabase
) -> PriorityClassList:
    """The highest first."""
    with database.read() as session:
        return PriorityClassList(items=priorities.list_classes(session))


@router.get("/{name}", summary="Show a priority class")
def get_priority(
    name: PriorityName, caller: Annotated[Caller, May("cluster.read")], database: CallersDatabase
) -> PriorityClass:
    """One class."""
    with database.read() as session:
        return priorities.show_class(session, name)


@router.put("/{name}", summary="Make or change a priority class")
def set_priority_class(
    name: PriorityName,
    rank: PriorityRank,
    caller: Annotated[Caller, May("cluster.change")],
    database: CallersDatabase,
) -> PriorityClass:
    """Jobs that have it take its new value at once. Administrators only."""
    with database.write() as session:
        return priorities.set_class(session, name, rank)


@router.delete("/{name}", status_code=status.HTTP_204_NO_CONTENT, summary="Remove a priority class")
def remove_priority_class(
    name: PriorityName, caller: Annotated[Caller, May("cluster.change")], database: CallersDatabase
) -> None:
    """One that no live job has. Administrators only."""
    with database.write() as session:
        priorities.remove_class(session, name)
