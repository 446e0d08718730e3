"""A scoped session sees its projects' rows in every kind of statement."""

import pytest
from sqlalchemy import delete, func, select, text, update
from sqlalchemy.orm import aliased

from server.db.models import Attempt, Base, Dataset, Job, OwnedByProject, Project
from server.db.scoped import ScopedDatabase, UnscopedStatementError
from server.db.session import Database, database_now
from tests.support.people import add_person


@pytest.fixture
def ours(database: Database) -> ScopedDatabase:
    with database.write() as session:
        now, ada = database_now(session), add_person(session)
        for project in ("a", "b"):
            session.add(Project(id=project, title=project, created_at=now))
            session.flush()
            session.add(
                Job(
                    id=f"job-{project}", project_id=project, name=project, state="queued", spec={},
                    algorithm="pmpo", total_steps=1, spec_sha256="", created_by=ada.person_id, created_at=now,
                )
            )  # fmt: skip
            session.flush()
            session.add(
                Attempt(
                    id=f"job-{project}.1", job_id=f"job-{project}", number=1, state="ended", created_at=now
                )
            )
    return ScopedDatabase(database, frozenset({"a"}))


def test_reads_are_restricted(ours: ScopedDatabase):
    other = aliased(Job)
    with ours.read() as session:
        assert session.scalars(select(Job.id)).all() == ["job-a"]
        assert session.scalar(select(func.count()).select_from(Job)) == 1
        assert session.get(Job, "job-b") is None
        assert session.get(Job, "job-a") is not None
        assert session.scalars(select(other.name)).all() == ["a"]
        joined = select(Attempt.id).join(Job, Job.id == Attempt.job_id)
        assert session.scalars(joined).all() == ["job-a.1"]
        inside = select(Attempt.id).where(Attempt.job_id.in_(select(Job.id)))
        assert session.scalars(inside).all() == ["job-a.1"]
        assert session.query(Job).count() == 1


def test_writes_are_restricted(ours: ScopedDatabase):
    with ours.write() as session:
        session.execute(update(Job).values(name="mine"))
        session.execute(delete(Dataset))
    with ours.write() as session:
        session.projects = None
        assert set(session.scalars(select(Job.name))) == {"mine", "b"}


def test_nobody_s_session_sees_nothing(database: Database, ours: ScopedDatabase):
    with ScopedDatabase(database, frozenset()).read() as session:
        assert session.scalars(select(Job.id)).all() == []


def test_ways_past_the_classes_are_a_defect(ours: ScopedDatabase):
    with ours.read() as session:
        with pytest.raises(UnscopedStatementError):
            session.execute(select(Job.__table__.c.id))
        with pytest.raises(UnscopedStatementError):
            session.execute(text("SELECT id FROM jobs"))


def test_whatever_has_a_project_is_owned_by_it():
    for mapper in Base.registry.mappers:
        if "project_id" in mapper.columns and mapper.class_.__name__ not in ("Membership", "ApiKey"):
            assert issubclass(mapper.class_, OwnedByProject), mapper.class_
