"""Which jobs a command means: one by its id or name, or the newest of those that the API gives in pages."""

from collections.abc import Callable
from typing import Annotated, Protocol, TypeVar

import typer

from powermean.cli.progress import local_time
from powermean.client import Client
from powermean.errors import PowermeanError

PAGE = 200  # the most that the API gives at once
_SHOWN = 5  # of several jobs with one name
_LONGEST_NAME = 120

Item_co = TypeVar("Item_co", covariant=True)

ChosenJob = Annotated[
    str,
    typer.Argument(
        metavar="JOB", help="The job's id, or its name if no other job has it.", show_default=False
    ),
]


class UnclearJobError(PowermeanError):
    """No job has the name, or several have it."""


class Page(Protocol[Item_co]):
    """A part of a list, newest first, and the cursor of the next one."""

    @property
    def items(self) -> tuple[Item_co, ...]: ...

    @property
    def next(self) -> str | None: ...


def newest(
    fetch: Callable[[str | None, int], Page[Item_co]], limit: int | None
) -> tuple[tuple[Item_co, ...], str | None]:
    """Up to `limit` items from as many pages as that takes, and the cursor of what comes after them."""
    found: tuple[Item_co, ...] = ()
    cursor = None
    while True:
        page = fetch(cursor, PAGE if limit is None else min(PAGE, limit - len(found)))
        found += page.items
        cursor = page.next
        if cursor is None or (limit is not None and len(found) >= limit):
            return found, cursor


def job_id(client: Client, chosen: str) -> str:
    """The id of the job. What starts with `job-` is an id, anything else a name. Raises UnclearJobError."""
    if chosen.startswith("job-"):
        return chosen
    part = chosen[:_LONGEST_NAME]
    jobs, _ = newest(lambda cursor, limit: client.list_jobs(name=part, cursor=cursor, limit=limit), None)
    named = [job for job in jobs if job.name == chosen]
    if not named:
        raise UnclearJobError(f"no job is called {chosen!r}", remedy="`powermean list` lists the jobs.")
    if len(named) > 1:
        lines = [f"  {job.id}  {job.state}  {local_time(job.created_at)}" for job in named[:_SHOWN]]
        lines += [f"  and {len(named) - _SHOWN} more"] if len(named) > _SHOWN else []
        raise UnclearJobError(
            "\n".join([f"several jobs are called {chosen!r}:", *lines]), remedy="Give an id."
        )
    return named[0].id
