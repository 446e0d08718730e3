"""A plain FastAPI service to compare submits with: it checks the spec and stores a row, a transaction each.

    python benchmarks/bare_service.py DATABASE_URL PORT

It keeps no events, sends nothing, and knows nobody. benchmarks/service.py asks it before and after the real
service in one run.
"""

import secrets
import sys
import threading
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any

import uvicorn
from fastapi import FastAPI
from sqlalchemy import JSON, Connection, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from powermean.contracts.job import JobSpec


class Base(DeclarativeBase):
    pass


class Job(Base):
    __tablename__ = "bare_jobs"
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime]


def application(database_url: str) -> FastAPI:
    engine = create_engine(database_url, pool_size=50)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _as_the_service)
        event.listen(engine, "begin", _one_writer)
    Base.metadata.create_all(engine)
    # SQLite has one writer; those that find it taken would look again after pauses that get longer
    writer = threading.Lock() if engine.dialect.name == "sqlite" else nullcontext()
    app = FastAPI()

    @app.get("/readyz")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/v1/jobs")
    def submit(spec: JobSpec) -> dict[str, Any]:
        with writer, Session(engine) as session, session.begin():
            job = Job(
                id=secrets.token_hex(8),
                name=spec.name,
                spec=spec.model_dump(mode="json"),
                created_at=datetime.now(UTC),
            )
            session.add(job)
            session.flush()
            return {"id": job.id, "name": job.name, "spec": job.spec, "created_at": job.created_at}

    return app


def _as_the_service(connection: DBAPIConnection, _entry: object) -> None:
    connection.isolation_level = None
    for pragma in ("busy_timeout = 15000", "journal_mode = WAL", "synchronous = FULL"):
        connection.execute(f"PRAGMA {pragma}")


def _one_writer(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


if __name__ == "__main__":
    uvicorn.run(application(sys.argv[1]), port=int(sys.argv[2]), log_level="warning")
