"""The queue as a person may see it: their projects' jobs with reasons, of all others the number alone.

A reason may name other projects and their jobs, since who goes first depends on them. Whoever can't see a
project is told "another project" instead: not its name, its jobs, or how much it has.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, select

from powermean.contracts.api import JobState
from powermean.contracts.sharing import Needs, Queue, QueuedJob
from server.cluster.queue_view import Why
from server.db.models import Job, Person
from server.db.scoped import ScopedSession
from server.errors import NotFoundError
from server.jobs.demand import stored_demand

AHEAD_NAMED = 5  # jobs of one's own projects that are named; of the rest there is the position
OTHER_PROJECT = "another project"
OTHER_JOB = "another project's job"
_JOB_ID = re.compile(r"\bjob-[0-9a-z]+\b")


def list_queue(
    session: ScopedSession,
    whys: Mapping[str, Why],
    *,
    project: str | None = None,
    job: str | None = None,
    limit: int,
) -> Queue:
    """The waiting jobs that the session sees, in order; of one project, or one job, if that is asked for.

    Raises NotFoundError: the job that was asked for doesn't wait.
    """
    owners = _own_jobs(session)
    own = [job_id for job_id in sorted(whys, key=lambda one: whys[one].position) if job_id in owners]
    place = {job_id: number for number, job_id in enumerate(own)}
    chosen = [one for one in own if project in (None, owners[one]) and job in (None, one)]
    if job is not None and not chosen:
        raise NotFoundError(f"job {job} is not in the queue", remedy="GET /v1/jobs/{id} says what it does.")
    shown = chosen[:limit]
    readable = _mentioned(session, [whys[one] for one in shown])
    rows = {row.id: row for row in _rows(session, shown)}
    return Queue(
        items=tuple(
            _queued(rows[one], whys[one], place[one], place, session.projects, readable)
            for one in shown
            if one in rows
        ),
        others=len(whys) - len(own),
        left_out=len(chosen) - len(shown),
    )


def told(text: str, projects: Collection[str], visible: frozenset[str] | None, jobs: Collection[str]) -> str:
    """The text without the names of those `projects` that are not `visible` (None: all are), and without the
    ids of any but these `jobs`."""
    if visible is None:
        return text
    for name in sorted(set(projects) - visible, key=len, reverse=True):
        text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", OTHER_PROJECT, text)
    return _JOB_ID.sub(lambda found: found[0] if found[0] in jobs else OTHER_JOB, text)


def _own_jobs(session: ScopedSession) -> dict[str, str]:
    """The queued jobs that the session sees, with their projects."""
    query = select(Job.id, Job.project_id).where(Job.state == JobState.QUEUED)
    return {row.id: row.project_id for row in session.execute(query)}


def _rows(session: ScopedSession, job_ids: Sequence[str]) -> Iterable[Row[Any]]:
    columns = (Job.id, Job.name, Job.project_id, Job.priority, Job.queued_at, Job.created_at, Job.demand)
    query = select(*columns, Person.name.label("owner")).join(Person, Person.id == Job.created_by)
    return session.execute(query.where(Job.id.in_(job_ids)))


def _mentioned(session: ScopedSession, whys: Sequence[Why]) -> frozenset[str]:
    """Of the jobs that these reasons mention, those that the session sees, waiting or not."""
    ids = {found for why in whys for found in _JOB_ID.findall(f"{why.text} {why.help} {why.basis}")}
    return frozenset(session.scalars(select(Job.id).where(Job.id.in_(ids)))) if ids else frozenset()


def _queued(
    row: Row[Any],
    why: Why,
    own_ahead: int,
    own: Collection[str],
    visible: frozenset[str] | None,
    readable: Collection[str],
) -> QueuedJob:
    def said(text: str) -> str:
        return told(text, why.projects, visible, readable)

    demand = stored_demand(row.demand)
    shared = demand.adapter is not None and demand.adapter.required
    return QueuedJob(
        id=row.id,
        name=row.name,
        project=row.project_id,
        owner=row.owner,
        priority=row.priority,
        position=why.position,
        since=row.queued_at or row.created_at,
        needs=Needs(
            gpus=demand.gpus + (0 if shared else demand.rollout_gpus),
            gpu_type=demand.gpu_type,
            gpu_memory_gib=round(demand.gpu_memory_mb / 1024, 1),
            node_labels=dict(demand.labels),
            shared_engine=shared,
        ),
        kind=why.kind,
        reason=said(why.text),
        help=said(why.help) if why.help else None,
        ahead=tuple(one for one in why.ahead if one in own)[:AHEAD_NAMED],
        ahead_others=max(0, why.position - 1 - own_ahead),
        starts_at=why.starts_at,
        basis=said(why.basis) if why.basis else None,
    )
