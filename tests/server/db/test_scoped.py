"""A scoped session sees its projects' rows in every kind of statement."""

import pytest
from sqlalchemy import Executable, delete, func, insert, select, text, union, update
from sqlalchemy.orm import aliased

from server.db.models import Attempt, Base, Dataset, Garbage, Job, OwnedByProject, Project
from server.db.scoped import _OWNED, ScopedDatabase, UnscopedStatementError
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


_TABLE = Job.__table__


@pytest.mark.parametrize(
    "statement",
    [
        select(Attempt.id).join(_TABLE, _TABLE.c.id == Attempt.job_id),
        select(Attempt.id).where(Attempt.job_id.in_(select(_TABLE.c.id))),
        select(Attempt.id).where(Attempt.job_id == _TABLE.c.id),
        select(Attempt.id, select(_TABLE.c.name).limit(1).scalar_subquery()),
        select(Attempt.id, _TABLE.alias().c.name),
        select(Attempt.id).where(text("job_id IN (SELECT id FROM jobs)")),
        select(Job).from_statement(text("SELECT * FROM jobs")),
        text("SELECT id FROM jobs").columns(Job.id),
        update(Attempt).where(Attempt.job_id == _TABLE.c.id).values(reason="x"),
    ],
)
def test_ways_past_the_classes_inside_a_statement_on_classes(ours: ScopedDatabase, statement: Executable):
    with ours.read() as session, pytest.raises(UnscopedStatementError):
        session.execute(statement)


def test_changes_without_a_condition_are_a_defect(ours: ScopedDatabase):
    copy = insert(Garbage).from_select(["key", "created_at"], select(Job.id, Job.created_at))
    with ours.write() as session:
        with pytest.raises(UnscopedStatementError):
            session.execute(update(Job), [{"id": "job-b", "name": "stolen"}])
        with pytest.raises(UnscopedStatementError):
            session.execute(copy)


def test_a_condition_holds_in_every_place_of_a_statement(ours: ScopedDatabase):
    job = select(Job.id).cte()
    with ours.read() as session:
        for statement in (
            select(Job.id.expression).order_by(func.lower(Job.name)),
            union(select(Job.id), select(Job.id)),
            select(job.c.id),
            select(aliased(Job, select(Job).subquery()).id),
            select(Job.id).where(Job.attempts.any(Attempt.number == 1)),
        ):
            assert session.scalars(statement).all() == ["job-a"]
        for statement in (
            select(Attempt.id).where(Attempt.job_id == Job.id),
            select(Attempt.id).where(select(Job.id).where(Job.id == Attempt.job_id).exists()),
        ):
            assert session.scalars(statement).all() == ["job-a.1"]
        assert session.scalar(select(func.count()).where(Job.state == "queued")) == 1
        outer = select(Attempt.id, Job.name).outerjoin(Job, Job.id == Attempt.job_id)
        assert set(session.execute(outer)) == {("job-a.1", "a"), ("job-b.1", None)}


def test_a_cached_statement_serves_each_caller_their_own(database: Database, ours: ScopedDatabase):
    jobs, renamed = select(Job.id).order_by(Job.id), update(Job).values(name="x")
    for projects in ("a", "b", "ab", "", "b", "a"):
        seen = [f"job-{project}" for project in projects]
        scoped = ScopedDatabase(database, frozenset(projects))
        with scoped.read() as session:
            assert session.scalars(jobs).all() == seen
            assert session.scalar(select(func.count()).select_from(Job)) == len(seen)
            assert (session.get(Job, "job-b") is None) == ("b" not in projects)
        with scoped.write() as session:
            assert session.execute(renamed).rowcount == len(seen)
    with ScopedDatabase(database, None).read() as session:
        assert session.scalars(jobs).all() == ["job-a", "job-b"]


def test_whatever_has_a_project_is_owned_by_it():
    for mapper in Base.registry.mappers:
        if "project_id" in mapper.columns and mapper.class_.__name__ not in (
            "Membership",
            "ApiKey",
            "DeviceSignIn",
        ):
            assert issubclass(mapper.class_, OwnedByProject), mapper.class_
            assert mapper.local_table in _OWNED, mapper.class_
