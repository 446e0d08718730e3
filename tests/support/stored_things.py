"""Jobs with something in every table and in the artefact store."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from sqlalchemy import String, Table, cast, select, update

from powermean.artefacts import ArtefactStore
from powermean.contracts.artefacts import ArtefactRef
from server.cluster.cleaner import Cleaner
from server.db.models import Base, Job
from server.db.session import Database, database_now
from tests.support.service_driver import AttemptDriver, ServiceDriver

# What is to be removed, what was done to whom, and what was held for how long: the last two outlive all.
# Those of a node or of the whole service: their number is no matter of which jobs there are.
NOT_OF_JOBS = {"garbage", "audit_pending", "audit_entries", "node_samples", "usage_records"}


def store_of(service: ServiceDriver) -> ArtefactStore:
    return ArtefactStore(service.settings.artefacts_url)


def put(service: ServiceDriver, owner: str, name: str, text: str) -> dict[str, Any]:
    """An object, as a reference to it."""
    return store_of(service).put_bytes(owner, name, text.encode()).model_dump(mode="json")


def commit(service: ServiceDriver, attempt: AttemptDriver, step: int) -> None:
    """A checkpoint with a file of its own."""
    owner = f"jobs/{attempt.claim.job_id}/checkpoints/1-{step}"
    files = {"weights": put(service, owner, "weights", f"weights {step}")}
    answer = attempt.post("checkpoints", {"step": step, "manifest": {"files": files}})
    assert answer.status_code == 204, answer.text


def finish(service: ServiceDriver, attempt: AttemptDriver) -> None:
    """The end of a job, with a model."""
    files = {"config.json": put(service, f"jobs/{attempt.claim.job_id}/model", "config.json", "the model")}
    result = {"steps": 20, "reward_before": 0.3, "reward_after": 0.8, "tokens": 1, "model": {"files": files}}
    answer = attempt.finish("finished", result=result)
    assert answer.status_code == 204, answer.text


def full_job(service: ServiceDriver, steps: int = 2, **changes: Any) -> str:
    """A finished job with metrics, trajectories, logs, checkpoints, a model and a replay."""
    attempt = service.running(**changes)
    job_id = attempt.claim.job_id
    for step in range(1, steps + 1):
        rows = [{"step": step, "update": 0, "name": name, "value": 0.5} for name in ("reward", "eval/reward")]
        assert attempt.post("metrics", {"rows": rows}).is_success
        texts = put(service, f"jobs/{job_id}/texts/1", f"{step}.gz", f"texts {step}")
        tokens = put(service, f"jobs/{job_id}/tokens/1", f"{step}.gz", f"tokens {step}")
        row = {"index": 0, "group": 0, "reward": 1.0, "advantage": 0.0, "length": 3, "weight_version": 0}
        row |= {"problem": "1+1", "truncated": False}
        batch = {"step": step, "rows": [row], "texts": texts, "tokens": tokens, "token_rows": 1}
        answer = attempt.post("trajectories", batch)
        assert answer.is_success, answer.text
        commit(service, attempt, step)
    log = attempt.post("logs", {"offset": 0, "text": "hello\n"})
    assert log.is_success, log.text
    finish(service, attempt)
    service.report()
    assert replay(service, job_id).status_code == 202
    return job_id


def replay(service: ServiceDriver, job_id: str, step: int = 1) -> Any:
    return service.person.post(f"/v1/jobs/{job_id}/replays", json={"step": step})


def fail_replays(service: ServiceDriver, job_id: str) -> None:
    """End the job's replays with an error."""
    for one in service.person.get(f"/v1/jobs/{job_id}/replays").json()["items"]:
        error = {"code": "odd", "message": "odd"}
        answer = service.node.post(f"/v1/replays/{one['id']}/outcome", json={"error": error})
        assert answer.status_code == 204, answer.text


def let_time_pass(service: ServiceDriver, job_id: str, days: int) -> None:
    """As if the job had ended so many days ago."""
    with service.database.write() as session:
        past = database_now(session) - timedelta(days=days)
        session.execute(update(Job).where(Job.id == job_id).values(finished_at=past))


def cleaner(service: ServiceDriver) -> Cleaner:
    """The cleaner of the replica that leads."""
    service.scheduler.turn()
    return Cleaner(service.database, service.settings, service.scheduler.holder)


def sweep(service: ServiceDriver) -> None:
    """Let the leader remove all that was deleted, and its files."""
    cleaning, idle = cleaner(service), 0
    while idle < 2:  # it does nothing, too, while the leader's lease is due for renewal
        idle = 0 if cleaning.turn() else idle + 1
        service.scheduler.turn()


def rows_with(database: Database, text: str) -> Iterator[tuple[str, Any]]:
    """Every row of every table that has the text in any column, except for notes of garbage."""
    with database.read() as session:
        for table in Base.metadata.sorted_tables:
            for column in table.columns:
                query = select(table).where(cast(column, String).contains(text))
                if table.name not in NOT_OF_JOBS and (row := session.execute(query).first()) is not None:
                    yield f"{table.name}.{column.name}", row


def counts(database: Database) -> dict[str, int]:
    """Table -> its rows."""
    with database.read() as session:
        tables = [table for table in Base.metadata.sorted_tables if table.name not in NOT_OF_JOBS]
        return {table.name: _count(session, table) for table in tables}


def _count(session: Any, table: Table) -> int:
    return len(session.execute(select(*table.primary_key)).all())


def refs_below(service: ServiceDriver, owner: str) -> tuple[ArtefactRef, ...]:
    return store_of(service).list(owner)
