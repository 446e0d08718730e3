"""For how long jobs held GPUs and CPU slots: exact from their allocations, also after they are deleted.

An attempt holds what it was given from its creation, which is one transaction with the allocation, until that
is released. A GPU that its trainer and its engine share counts once; a slot in a shared engine holds nothing.
When a job's rows go, `keep` leaves what it held in `usage_records`.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from server.db.models import Allocation, Attempt, UsageRecord
from server.jobs import allocations
from server.jobs.allocations import Past

MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True)
class Holding:
    """GPUs and CPU slots that a job held from `start` to `end`; None: it still does."""

    job_id: str
    project: str
    person_id: str
    gpus: int
    cpu_slots: int
    start: datetime
    end: datetime | None
    job_name: str | None = None  # None: the job was deleted

    def microseconds(self, since: datetime, until: datetime) -> int:
        """How long of the time from `since` to `until`."""
        end = until if self.end is None else min(self.end, until)
        return max(0, (end - max(self.start, since)) // MICROSECOND)


def holdings(
    session: Session, since: datetime, until: datetime, projects: frozenset[str] | None
) -> Iterator[Holding]:
    """What these projects (None: all) held at some time from `since` to `until`."""
    parts = allocations.within(session, since, until, projects=projects)
    yield from merged(parts)
    seen = {part.job_id for part in parts}
    query = select(UsageRecord).where(UsageRecord.ended_at > since, UsageRecord.started_at < until)
    if projects is not None:
        query = query.where(UsageRecord.project.in_(projects))
    for row in session.scalars(query):
        if row.job_id in seen:  # its rows went between the two queries
            continue
        times = row.started_at, row.ended_at
        yield Holding(row.job_id, row.project, row.person_id, row.gpus, row.cpu_slots, *times)


def places(parts: Iterable[Past]) -> dict[tuple[str, str, str | None], Past]:
    """By attempt, node and GPU (None: a CPU slot) the part that was released last, or still is held."""
    found: dict[tuple[str, str, str | None], Past] = {}
    for part in parts:
        if part.engine_id is not None:
            continue
        for gpu in part.gpu_uuids or (None,):
            key = (part.attempt_id, part.node_id, gpu)
            before = found.get(key)
            if before is None or part.end is None or (before.end is not None and before.end < part.end):
                found[key] = part
    return found


def merged(parts: Iterable[Past]) -> list[Holding]:
    """Allocations as holdings: each GPU and each slot of an attempt once, until its last part is released."""
    alike: dict[tuple[str, datetime | None], list[tuple[str | None, Past]]] = defaultdict(list)
    for (attempt, _, gpu), part in places(parts).items():
        alike[attempt, part.end].append((gpu, part))
    found = []
    for some in alike.values():
        gpus, part = sum(gpu is not None for gpu, _ in some), some[0][1]
        found.append(
            Holding(
                job_id=part.job_id,
                project=part.project,
                person_id=part.person_id,
                gpus=gpus,
                cpu_slots=len(some) - gpus,
                start=part.start,
                end=part.end,
                job_name=None if part.deleted else part.job_name,
            )
        )
    return found


def keep(session: Session, job_id: str) -> None:
    """Leave a record of what a job held, instead of its allocations: all of them have been released."""
    for held in merged(allocations.of_job(session, job_id)):
        if held.end is None:
            raise ValueError(f"job {job_id} still holds something")
        if held.end > held.start:
            session.add(
                UsageRecord(
                    job_id=job_id,
                    project=held.project,
                    person_id=held.person_id,
                    gpus=held.gpus,
                    cpu_slots=held.cpu_slots,
                    started_at=held.start,
                    ended_at=held.end,
                )
            )
    attempts = select(Attempt.id).where(Attempt.job_id == job_id)
    session.execute(delete(Allocation).where(Allocation.attempt_id.in_(attempts)))


def forget_project(session: Session, project: str) -> None:
    """Its name is free again, and who takes it must not see what the old one's jobs held."""
    records = update(UsageRecord).where(UsageRecord.project == project)
    session.execute(records.values(project=f"{project} (deleted)"))
