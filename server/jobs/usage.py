"""GPU-hours and CPU-slot-hours of a period, by person, project or job."""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from powermean.contracts.sharing import Usage, UsageBy, UsageRow
from server.db.models import Person, Project
from server.db.session import database_now
from server.errors import InvalidInputError
from server.jobs.hours import MICROSECOND, Holding, holdings

PERIOD = timedelta(days=30)
LONGEST = timedelta(days=400)
HOUR = timedelta(hours=1) // MICROSECOND
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell starts that a spreadsheet computes


def report(
    session: Session,
    visible: frozenset[str] | None,
    by: UsageBy,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    project: str | None = None,
    limit: int | None,
) -> Usage:
    """What the `visible` projects held (None: all), the most first; of the last 30 days unless it is said.

    Raises InvalidInputError: the period is empty or too long, or it begins before there are dates.
    """
    since, until = _period(start, end, database_now(session))
    if project is not None:
        visible = frozenset({project} if visible is None or project in visible else ())
    seen = list(holdings(session, since, until, visible))
    rows = summed(seen, by, since, until)
    names = _names(session, by)
    named = [row.model_copy(update={"name": names.get(row.key, row.name)}) for row in rows]
    total = _row("total", seen, since, until)
    return Usage(
        start=since,
        end=until,
        by=by,
        rows=tuple(named[:limit]),
        total=total,
        left_out=len(named) - len(named[:limit]),
    )


def _period(start: datetime | None, end: datetime | None, now: datetime) -> tuple[datetime, datetime]:
    until = now if end is None else min(end, now)
    try:
        since = until - PERIOD if start is None else start
    except OverflowError:
        raise InvalidInputError.at("to", "is too early", "Name a later time.") from None
    if since >= until:
        raise InvalidInputError.at("from", "is not before the end of the period", "Name an earlier time.")
    if until - since > LONGEST:
        raise InvalidInputError.at(
            "from",
            f"is more than {LONGEST.days} days before the end of the period",
            "Ask for one year after another.",
        )
    return since, until


def summed(held: Iterable[Holding], by: UsageBy, since: datetime, until: datetime) -> list[UsageRow]:
    """Rows by person, project or job, the most GPU-hours first."""
    groups: dict[str, list[Holding]] = defaultdict(list)
    for one in held:
        groups[{"person": one.person_id, "project": one.project, "job": one.job_id}[by]].append(one)
    rows = [_row(key, some, since, until) for key, some in groups.items()]
    if by == "job":
        rows = [
            row.model_copy(
                update={"name": groups[row.key][0].job_name, "project": groups[row.key][0].project}
            )
            for row in rows
        ]
    return sorted(rows, key=lambda row: (-row.gpu_hours, -row.cpu_slot_hours, row.key))


def as_csv(usage: Usage) -> str:
    """The rows as CSV, with no cell that a spreadsheet would take for a formula."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(("key", "name", "project", "gpu_hours", "cpu_slot_hours", "jobs"))
    for row in usage.rows:
        texts = (_plain(text or "") for text in (row.key, row.name, row.project))
        writer.writerow((*texts, repr(row.gpu_hours), repr(row.cpu_slot_hours), row.jobs))
    return out.getvalue()


def _row(key: str, held: Iterable[Holding], since: datetime, until: datetime) -> UsageRow:
    """Whole microseconds are added up, so that sums over parts are equal to the last digit."""
    sums: Counter[str] = Counter()
    jobs = set()
    for one in held:
        lasted = one.microseconds(since, until)
        sums["gpus"] += one.gpus * lasted
        sums["slots"] += one.cpu_slots * lasted
        jobs.add(one.job_id)
    return UsageRow(
        key=key, gpu_hours=sums["gpus"] / HOUR, cpu_slot_hours=sums["slots"] / HOUR, jobs=len(jobs)
    )


def _names(session: Session, by: UsageBy) -> dict[str, str]:
    if by == "person":
        return {row.id: row.name for row in session.execute(select(Person.id, Person.name))}
    if by == "project":
        return {row.id: row.title for row in session.execute(select(Project.id, Project.title))}
    return {}


def _plain(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text
