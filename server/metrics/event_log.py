"""A job's events from the database, in pages of encoded frames.

A sequence number belongs to one ingest or one event, so it merges metrics and events in the order in which
they happened.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import attrgetter
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from powermean.contracts.api import JobState
from server.db.models import Job, JobEvent, Metric, MetricReport
from server.jobs.repository import no_job

PAGE = 64  # sequence numbers read at once


@dataclass(frozen=True)
class Frame:
    """One encoded event."""

    seq: int
    data: bytes


@dataclass(frozen=True)
class Page:
    """All events in (start, upto]."""

    start: int
    upto: int
    frames: tuple[Frame, ...]
    latest: int  # the job's last number at the time of reading
    final: bool  # the job has ended, so nothing follows `latest`

    @property
    def ended(self) -> bool:
        """Whether this is the last page."""
        return self.final and self.upto >= self.latest

    @cached_property
    def data(self) -> bytes:
        """All frames, joined once for any number of clients."""
        return b"".join(frame.data for frame in self.frames)

    def after(self, seq: int) -> bytes:
        """The frames later than `seq`, joined."""
        if seq <= self.start:
            return self.data
        return b"".join(frame.data for frame in self.frames if frame.seq > seq)


def read_page(session: Session, job_id: str, after: int) -> Page:
    """The next events after number `after`.

    A number that the job has not reached must come from another database: the events then start over.
    Raises NotFoundError if there is no such job.
    """
    job = session.execute(select(Job.seq, Job.state).where(Job.id == job_id)).one_or_none()
    if job is None:
        raise no_job(job_id)
    if after > job.seq:
        after = 0
    upto = min(after + PAGE, job.seq)
    frames = _metric_frames(session, job_id, after, upto) + _event_frames(session, job_id, after, upto)
    return Page(
        start=after,
        frames=tuple(sorted(frames, key=attrgetter("seq"))),
        upto=upto,
        latest=job.seq,
        final=JobState(job.state).final,
    )


def _metric_frames(session: Session, job_id: str, after: int, upto: int) -> list[Frame]:
    written = select(func.min(MetricReport.first_step), func.max(MetricReport.last_step)).where(
        MetricReport.job_id == job_id, MetricReport.seq > after, MetricReport.seq <= upto
    )
    steps = session.execute(written).one()
    if None in steps:
        return []
    rows = session.execute(
        select(Metric.seq, Metric.attempt, Metric.step, Metric.update, Metric.name, Metric.value)
        .where(Metric.job_id == job_id, Metric.step.between(*steps))
        .where(Metric.seq > after, Metric.seq <= upto)
        .order_by(Metric.seq, Metric.step, Metric.update, Metric.name)
    )
    frames = []
    for (seq, attempt), group in groupby(rows, key=lambda row: (row.seq, row.attempt)):
        points = [
            {"step": row.step, "update": row.update, "name": row.name, "value": row.value} for row in group
        ]
        frames.append(encode(seq, "metrics", {"attempt": attempt, "rows": points}))
    return frames


def _event_frames(session: Session, job_id: str, after: int, upto: int) -> list[Frame]:
    events = session.scalars(
        select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.seq > after, JobEvent.seq <= upto)
    )
    return [encode(event.seq, event.kind, event.data) for event in events]


def encode(seq: int, kind: str, data: dict[str, Any]) -> Frame:
    """An event (contracts.api.Event) in text/event-stream."""
    body = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Frame(seq, f"id: {seq}\nevent: {kind}\ndata: {body}\n\n".encode())
