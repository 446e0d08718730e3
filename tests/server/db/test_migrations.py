"""The migrations make exactly the tables that the models name, on both databases."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.command import downgrade, upgrade
from alembic.migration import MigrationContext
from pydantic import SecretStr
from sqlalchemy import MetaData, Table, insert, inspect, select, text

from powermean.contracts.job import JobSpec
from server.db.migrate import alembic_config, migrate, pending_revision
from server.db.models import ApiKey, Base, BrowserSession, Dataset, Job, Membership, Person
from server.db.scoped import ScopedDatabase
from server.db.session import Database
from server.identity.keys import bootstrap_keys, digest, find_key
from server.identity.people import caller_of
from server.identity.projects import members
from server.jobs import service
from server.jobs.demand import demand_of
from server.metrics.event_log import read_page
from server.metrics.trajectories import read_trajectories
from tests.support.histories import metrics_history
from tests.support.people import add_person
from tests.support.reports import blocks_made_anew, kept_blocks, trajectory
from tests.support.service_driver import example_spec


@pytest.fixture
def empty(empty_url: str) -> Iterator[Database]:
    database = Database(empty_url)
    yield database
    database.close()


@pytest.mark.slow
def test_migrations_and_models_agree(empty: Database):
    migrate(empty)
    with empty.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


@pytest.mark.slow
def test_migrating_again_changes_nothing(empty: Database):
    assert pending_revision(empty) is not None
    for _ in range(2):
        migrate(empty)
        assert pending_revision(empty) is None


@pytest.mark.slow
def test_servers_that_start_together_take_turns(empty_url: str):
    databases = [Database(empty_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(migrate, databases))
    assert pending_revision(databases[0]) is None
    for database in databases:
        database.close()


def test_a_migration_that_fails_leaves_nothing_behind(empty: Database, monkeypatch: pytest.MonkeyPatch):
    def fail(*args: object, **keywords: object) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr("alembic.operations.Operations.create_index", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        migrate(empty)
    assert inspect(empty.engine).get_table_names() == []


@pytest.mark.slow
def test_the_way_back(empty: Database):
    migrate(empty)
    with empty.write() as session:  # what a removed node leaves
        for statement in (
            "INSERT INTO people (id, name, kind, active, created_at) "
            "VALUES ('person-1', '', 'person', :no, :now)",
            "INSERT INTO jobs (id, project_id, name, state, spec, algorithm, total_steps, step, seq, "
            "attempt, restarts, cancel_requested, spec_sha256, created_by, created_at) "
            "VALUES ('j', 'default', '', '', '{}', '', 1, 0, 0, 1, 0, :no, '', 'person-1', :now)",
            'INSERT INTO attempts (id, job_id, number, state, first_step, "order", created_at) '
            "VALUES ('j.1', 'j', 1, '', 0, '', :now)",
            "INSERT INTO allocations (id, attempt_id, role, node_id, gpu_uuids) "
            "VALUES (1, 'j.1', '', 'gone', '[]')",
        ):
            session.execute(text(statement), {"now": datetime.now(UTC), "no": False})
    _revise(empty, downgrade, "base")
    assert inspect(empty.engine).get_table_names() == ["alembic_version"]


SPECS: list[dict[str, Any]] = [
    {},
    {"resources": {"gpus": 1, "placement": "split"}},
    {"model": {"folder": "a", "lora": {"rank": 4}}, "rollout": {"sharing": "shared"}},
    {"model": {"name": "a", "lora": {"rank": 4}, "dtype": "float32"}, "rollout": {"publish": "shm"}},
    {"model": {"name": "a", "lora": {"rank": 4}}, "rollout": {"sharing": "own"}},
]


@pytest.mark.slow
def test_jobs_from_before_get_their_demand(empty: Database):
    migrate(empty)
    specs = [JobSpec.model_validate(example_spec(**changes)) for changes in SPECS]
    with empty.write() as session:
        ada = add_person(session)
    with ScopedDatabase(empty, None).write() as scoped:
        jobs = [service.submit(scoped, ada, spec, "", None).job.id for spec in specs]
    _revise(empty, downgrade, "0006")
    migrate(empty)
    with empty.read() as session:
        found = [session.get_one(Job, job_id).demand for job_id in jobs]
    assert found == [demand_of(spec) for spec in specs]


NOW = datetime(2026, 1, 1, tzinfo=UTC)
OLD_JOB = {
    "id": "job-1", "name": "old", "state": "running", "spec": {}, "algorithm": "pmpo", "total_steps": 400,
    "step": 300, "seq": 30, "attempt": 2, "restarts": 0, "cancel_requested": False, "spec_sha256": "",
    "created_by": "key-1", "created_at": NOW,
}  # fmt: skip
OLD_METRICS = [
    {
        "job_id": "job-1", "attempt": attempt, "step": step, "update": update, "name": name,
        "value": value, "seq": seq,
    }
    for attempt, steps in ((1, range(1, 280)), (2, range(272, 301)))
    for step in steps
    for update, name, value, seq in (
        (-1, "reward", step / 7, step // 10),
        (0, "p/mean", None, step // 10),
        (1, "p/mean", attempt + step / 1000, step // 10),
    )
]  # fmt: skip
OLD_TRAJECTORIES = [trajectory(index, reward=index / 4, p=1 - index / 9) for index in range(5)]


def _revise(database: Database, change: Callable[..., None], revision: str) -> None:
    config = alembic_config()
    with database.rebuild() as connection:
        config.attributes["connection"] = connection
        change(config, revision)


def _old_rows(database: Database) -> dict[str, list[dict[str, Any]]]:
    with database.engine.connect() as connection:
        tables = [Table(name, MetaData(), autoload_with=connection) for name in ("metrics", "trajectories")]
        return {
            table.name: sorted((dict(row) for row in connection.execute(select(table)).mappings()), key=str)
            for table in tables
        }


def _insert_old(database: Database) -> None:
    place = {"job_id": "job-1", "step": 300, "attempt": 2}
    stored = [{name: row[name] for name in ("index", "reward", "advantage")} for row in OLD_TRAJECTORIES]
    rows = {
        "api_keys": [{"id": "key-1", "name": "me", "role": "admin", "key_sha256": "", "created_at": NOW}],
        "jobs": [OLD_JOB],
        "attempts": [
            {
                "id": f"job-1.{number}", "job_id": "job-1", "number": number, "state": "ended",
                "first_step": first_step, "order": "continue", "created_at": NOW,
            }
            for number, first_step in ((1, 0), (2, 272))
        ],
        "metrics": [*OLD_METRICS, OLD_METRICS[0] | {"name": "eval/reward", "step": 0, "value": 0.25}],
        "trajectory_steps": [place | {"count": 5, "token_rows": 0}],
        "trajectories": [
            place | columns | {"row": row} for columns, row in zip(stored, OLD_TRAJECTORIES, strict=True)
        ],
    }  # fmt: skip
    with database.write() as session:
        for name, values in rows.items():
            table = Table(name, MetaData(), autoload_with=session.connection())
            session.execute(insert(table), values)


@pytest.mark.slow
def test_old_numbers_are_found_in_their_new_place_and_go_back(empty: Database):
    _revise(empty, upgrade, "0010")
    _insert_old(empty)
    before = _old_rows(empty)
    migrate(empty)
    with empty.write() as session:
        history = metrics_history(session, "job-1", ["reward", "p/mean"], None, None, 1000)
        points = {one.name: {(p.step, p.update): p.value for p in one.points} for one in history.series}
        assert points["reward"] == {(step, -1): step / 7 for step in range(1, 301)}
        assert points["p/mean"][(271, 1)] == 1.271
        assert points["p/mean"][(272, 1)] == 2.272
        page = read_page(session, "job-1", 0)
        assert {frame.seq for frame in page.frames} == {row["seq"] for row in OLD_METRICS} - {0}
        found = read_trajectories(session, "job-1", None, 0, 10, "-p")
        assert [row.index for row in found.rows] == [0, 1, 2, 3, 4]
        assert found.rows[3].updates[1].p == 1 - 3 / 9
        job = session.get_one(Job, "job-1")
        assert (job.last_p, job.held_out_before, job.held_out) == (2.3, 0.25, 0.25)
        assert kept_blocks(session) == blocks_made_anew(session) != []
        session.rollback()
    _revise(empty, downgrade, "0010")
    after = _old_rows(empty)
    assert after["metrics"] == before["metrics"]
    assert [row["row"]["updates"] for row in after["trajectories"]] == [
        row["row"]["updates"] for row in before["trajectories"]
    ]


OLD_ROLES = {"ada": "admin", "bob": "member", "cyd": "member", "n": "node"}
OLD_KEYS = [
    {
        "id": f"key-{name}", "name": name, "role": role, "key_sha256": name, "created_at": NOW,
        "revoked_at": NOW if name == "cyd" else None,
    }
    for name, role in OLD_ROLES.items()
]  # fmt: skip


@pytest.mark.slow
def test_old_keys_become_people_and_what_they_made_the_first_project_s(empty: Database):
    _revise(empty, upgrade, "0012")
    artefact = {"key": "datasets/x", "sha256": "f" * 64, "size": 3}
    rows = {
        "api_keys": OLD_KEYS,
        "jobs": [OLD_JOB | {"id": f"job-{maker}", "created_by": f"key-{maker}"} for maker in ("ada", "bob")],
        "attempts": [
            {
                "id": "job-bob.1", "job_id": "job-bob", "number": 1, "state": "ended", "first_step": 0,
                "order": "continue", "created_at": NOW,
            }
        ],
        "datasets": [
            {
                "id": "ds-1", "name": "sums", "rows": 2, "fields": [], "lacking": {}, "artefact": artefact,
                "created_at": NOW,
            }
        ],
        "browser_sessions": [
            {"id_sha256": "s", "kind": "session", "key_id": "key-bob", "expires_at": NOW}
        ],
    }  # fmt: skip
    with empty.write() as session:
        for name, values in rows.items():
            session.execute(insert(Table(name, MetaData(), autoload_with=session.connection())), values)
    migrate(empty)
    with empty.read() as session:
        people = {person.name: person for person in session.scalars(select(Person))}
        assert {name: (one.cluster_role, one.active) for name, one in people.items()} == {
            "ada": ("admin", True), "bob": (None, True), "cyd": (None, False),
        }  # fmt: skip
        members = {(one.person_id, one.project_id, one.role) for one in session.scalars(select(Membership))}
        assert members == {(people[name].id, "default", "member") for name in ("bob", "cyd")}
        assert {job.id: job.created_by for job in session.scalars(select(Job))} == {
            f"job-{name}": people[name].id for name in ("ada", "bob")
        }
        assert set(session.scalars(select(Job.project_id))) == {"default"}
        keys = {key.id: key.person_id for key in session.scalars(select(ApiKey))}
        assert keys == {f"key-{name}": person.id for name, person in people.items()} | {"key-n": None}
        assert session.get_one(Dataset, "ds-1").sha256 == "f" * 64
        assert session.scalars(select(BrowserSession.person_id)).all() == [people["bob"].id]
    _revise(empty, downgrade, "0012")
    with empty.engine.connect() as connection:
        jobs = Table("jobs", MetaData(), autoload_with=connection)
        makers = dict(connection.execute(select(jobs.c.id, jobs.c.created_by)).all())
    assert makers == {"job-ada": "key-ada", "job-bob": "key-bob"}


@pytest.mark.slow
def test_odd_keys_of_before_leave_a_service_that_somebody_manages(empty: Database):
    """The only administrator's key is revoked, people share a name, and a revoked key has made a job."""
    _revise(empty, upgrade, "0012")
    keys = [
        {
            "id": f"key-{number}", "name": "same", "role": role, "key_sha256": digest(f"pm_{number}"),
            "created_at": NOW, "revoked_at": NOW if revoked else None,
        }
        for number, role, revoked in (
            (1, "admin", True), (2, "member", False), (3, "member", False), (4, "member", True),
        )
    ]  # fmt: skip
    jobs = [OLD_JOB | {"id": f"job-{key}", "created_by": f"key-{key}"} for key in (1, 2, 4)]
    with empty.write() as session:
        for name, values in {"api_keys": keys, "jobs": jobs}.items():
            session.execute(insert(Table(name, MetaData(), autoload_with=session.connection())), values)
    migrate(empty)
    with empty.write() as session:
        bootstrap_keys(session, SecretStr("pm_" + "z" * 43), None)
    with empty.read() as session:
        known = {number: find_key(session, f"pm_{number}") for number in (1, 2, 3, 4)}
        assert [number for number, found in known.items() if found is not None] == [2, 3]
        ids = {found.person.id for found in known.values() if found is not None and found.person}
        assert len(ids) == 2
        made = session.scalars(select(Job).join(Person, Person.id == Job.created_by)).all()
        assert len(made) == len(jobs)
        found = find_key(session, "pm_" + "z" * 43)
        assert found is not None
        assert found.person is not None
        assert caller_of(session, found.person, found.key).cluster_role == "admin"
        assert [one.role for one in members(session, "default")] == ["member"] * 3
    _revise(empty, downgrade, "0012")
    migrate(empty)
