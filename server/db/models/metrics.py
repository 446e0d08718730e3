"""What attempts report of their steps."""

from typing import Any

from sqlalchemy import JSON, BigInteger, Float, ForeignKey, Integer, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from server.db.models.base import Base


class Metric(Base):
    """One number; `seq` is the ingest that wrote it. Ordered by step, so a report is stored in one place."""

    __tablename__ = "metrics"
    __table_args__ = ({"sqlite_with_rowid": False},)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    step: Mapped[int] = mapped_column(Integer, primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    update: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String(80), primary_key=True)
    value: Mapped[float | None] = mapped_column(Float)  # null: not finite
    seq: Mapped[int] = mapped_column(BigInteger)


class MetricReport(Base):
    """Which steps an ingest wrote: finds the metrics of a `seq`."""

    __tablename__ = "metric_reports"
    __table_args__ = ({"sqlite_with_rowid": False},)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    first_step: Mapped[int]
    last_step: Mapped[int]


class MetricBlock(Base):
    """An attempt's numbers of one series and update over the steps [start, start + width), summarised.

    Derived from `metrics`; server/metrics/blocks.py keeps it so, up to the attempt's `summarised`.
    """

    __tablename__ = "metric_blocks"
    __table_args__ = ({"sqlite_with_rowid": False},)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    width: Mapped[int] = mapped_column(Integer, primary_key=True)
    start: Mapped[int] = mapped_column(Integer, primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    update: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String(80), primary_key=True)
    last_step: Mapped[int]
    count: Mapped[int]
    finite: Mapped[int]  # how many are not null
    total: Mapped[float | None] = mapped_column(Float)  # their sum, times blocks.SCALE
    low: Mapped[float | None] = mapped_column(Float)
    high: Mapped[float | None] = mapped_column(Float)


class TrajectoryStep(Base):
    """One attempt's trajectories of a step: their scalars, and where their texts and tokens are."""

    __tablename__ = "trajectory_steps"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    step: Mapped[int] = mapped_column(Integer, primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    count: Mapped[int]
    texts: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    tokens: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    token_rows: Mapped[int] = mapped_column(Integer, server_default="0")  # trajectories 0 to token_rows - 1
    rows: Mapped[bytes] = mapped_column(LargeBinary, deferred=True)  # TrajectoryRows, by packing.py
