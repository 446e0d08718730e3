"""The migrations make exactly the tables that the models name, on both databases."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.command import downgrade
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from powermean.contracts.job import JobSpec
from server.db.migrate import alembic_config, migrate, pending_revision
from server.db.models import ApiKey, Base, Job
from server.db.session import Database, database_now
from server.jobs import service
from server.jobs.demand import demand_of
from tests.support.service_driver import example_spec


@pytest.fixture
def empty(empty_url: str) -> Iterator[Database]:
    database = Database(empty_url)
    yield database
    database.close()


def test_migrations_and_models_agree(empty: Database):
    migrate(empty)
    with empty.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_migrating_again_changes_nothing(empty: Database):
    assert pending_revision(empty) is not None
    for _ in range(2):
        migrate(empty)
        assert pending_revision(empty) is None


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


def test_the_way_back(empty: Database):
    migrate(empty)
    with empty.write() as session:  # what a removed node leaves
        for statement in (
            "INSERT INTO api_keys (id, name, role, key_sha256, created_at) VALUES ('k', '', '', '', :now)",
            "INSERT INTO jobs (id, name, state, spec, algorithm, total_steps, step, seq, attempt, restarts, "
            "cancel_requested, spec_sha256, created_by, created_at) "
            "VALUES ('j', '', '', '{}', '', 1, 0, 0, 1, 0, :no, '', 'k', :now)",
            'INSERT INTO attempts (id, job_id, number, state, first_step, "order", created_at) '
            "VALUES ('j.1', 'j', 1, '', 0, '', :now)",
            "INSERT INTO allocations (id, attempt_id, role, node_id, gpu_uuids) "
            "VALUES (1, 'j.1', '', 'gone', '[]')",
        ):
            session.execute(text(statement), {"now": datetime.now(UTC), "no": False})
    config = alembic_config()
    with empty.write() as session:
        config.attributes["connection"] = session.connection()
        downgrade(config, "base")
    assert inspect(empty.engine).get_table_names() == ["alembic_version"]


SPECS: list[dict[str, Any]] = [
    {},
    {"resources": {"gpus": 1, "placement": "split"}},
    {"model": {"folder": "a", "lora": {"rank": 4}}, "rollout": {"sharing": "shared"}},
    {"model": {"name": "a", "lora": {"rank": 4}, "dtype": "float32"}, "rollout": {"publish": "shm"}},
    {"model": {"name": "a", "lora": {"rank": 4}}, "rollout": {"sharing": "own"}},
]


def test_jobs_from_before_get_their_demand(empty: Database):
    migrate(empty)
    specs = [JobSpec.model_validate(example_spec(**changes)) for changes in SPECS]
    with empty.write() as session:
        now = database_now(session)
        session.add(ApiKey(id="key", name="key", role="admin", key_sha256="0", created_at=now))
    with empty.write() as session:
        jobs = [service.submit(session, "key", spec, None).job.id for spec in specs]
    config = alembic_config()
    with empty.write() as session:
        config.attributes["connection"] = session.connection()
        downgrade(config, "0006")
    migrate(empty)
    with empty.read() as session:
        found = [session.get_one(Job, job_id).demand for job_id in jobs]
    assert found == [demand_of(spec) for spec in specs]
