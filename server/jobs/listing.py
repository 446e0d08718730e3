"""Pages of the list of jobs, filtered and sorted; each continues after the last job of the one before.

A page is looked up by the order's key and the job's id alone, since specs are large; its jobs are then read.
"""

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, case, func, or_, select

from powermean.contracts.api import JobPage, JobSort, JobState, JobSummary
from server.db.models import Job, Person
from server.db.scoped import ScopedSession
from server.errors import InvalidInputError
from server.jobs.views import job_summary


@dataclass(frozen=True)
class JobFilter:
    """Which jobs are listed; None: all."""

    state: JobState | None = None
    name: str | None = None  # a part of it
    created_by: str | None = None  # id of the submitter
    project: str | None = None


@dataclass(frozen=True)
class _Key:
    """What an order sorts by."""

    column: ColumnElement[Any]
    kind: type[str] | type[int] | type[float]


_KEYS = {
    "created": _Key(Job.id.expression, str),  # ids sort by time
    "name": _Key(func.lower(Job.name), str),
    "state": _Key(case({state.value: n for n, state in enumerate(JobState)}, value=Job.state), int),
    "owner": _Key(func.lower(Person.name), str),
    "reward": _Key(Job.last_reward.expression, float),
    "held_out": _Key(Job.held_out.expression, float),
}


@dataclass(frozen=True)
class _Place:
    """A job in an order: jobs with equal keys come newest first, those without a key at the end."""

    key: Any
    job_id: str


def list_jobs(
    session: ScopedSession, wanted: JobFilter, sort: JobSort, cursor: str | None, limit: int
) -> JobPage:
    """Up to `limit` jobs in the order `sort` (`-`: descending), and the cursor of the next page.

    Raises InvalidInputError if the cursor is not one of this list in this order.
    """
    after = _read_cursor(cursor, sort) if cursor is not None else None
    places = [
        _Place(key, job_id) for key, job_id in session.execute(_ordered(wanted, sort, after, limit + 1))
    ]
    page = places[:limit]
    return JobPage(
        items=tuple(_read(session, [place.job_id for place in page])),
        next=_write_cursor(page[-1], sort) if len(places) > limit else None,
    )


def _ordered(wanted: JobFilter, sort: JobSort, after: _Place | None, limit: int) -> Select[Any]:
    key = _KEYS[sort.removeprefix("-")].column
    descending = sort.startswith("-")
    query = select(key, Job.id).join(Person, Person.id == Job.created_by)
    if wanted.state is not None:
        query = query.where(Job.state == wanted.state)
    if wanted.name is not None:
        query = query.where(Job.name.icontains(wanted.name, autoescape=True))
    if wanted.created_by is not None:
        query = query.where(Job.created_by == wanted.created_by)
    if wanted.project is not None:
        query = query.where(Job.project_id == wanted.project)
    if after is not None:
        query = query.where(_later(key, descending, after))
    in_order = key.desc() if descending else key.asc()
    if sort in ("created", "-created"):
        return query.order_by(in_order).limit(limit)
    return query.order_by(key.is_(None), in_order, Job.id.desc()).limit(limit)


def _later(key: ColumnElement[Any], descending: bool, after: _Place) -> ColumnElement[bool]:
    if after.key is None:
        return and_(key.is_(None), Job.id < after.job_id)
    beyond: ColumnElement[bool] = key < after.key if descending else key > after.key
    if after.key == after.job_id:  # the order by time
        return beyond
    return or_(beyond, and_(key == after.key, Job.id < after.job_id), key.is_(None))


def _read(session: ScopedSession, ids: Sequence[str]) -> list[JobSummary]:
    """The jobs with these ids, in their order."""
    query = select(Job, Person.name).join(Person, Person.id == Job.created_by).where(Job.id.in_(ids))
    found = {
        job.id: job_summary(job).model_copy(update={"owner": owner}) for job, owner in session.execute(query)
    }
    return [found[job_id] for job_id in ids]


def _write_cursor(place: _Place, sort: JobSort) -> str:
    return base64.urlsafe_b64encode(json.dumps([sort, place.key, place.job_id]).encode()).decode().rstrip("=")


def _read_cursor(cursor: str, sort: JobSort) -> _Place:
    """Anybody may write a cursor, so nothing but a key of this order gets into a query."""
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        written_for, key, job_id = json.loads(text)
        kind = _KEYS[sort.removeprefix("-")].kind
        if written_for != sort or not isinstance(key, kind | None) or not isinstance(job_id, str):
            raise ValueError("of another order")
        if "\0" in f"{key}{job_id}".encode().decode() or (isinstance(key, int) and not 0 <= key < 100):
            raise ValueError("not a value of this order")
    except (binascii.Error, ValueError, TypeError, RecursionError) as error:
        raise InvalidInputError.at(
            "cursor", "not a cursor of this list", "Take it from `next` of the previous page, in this order."
        ) from error
    return _Place(key, job_id)
