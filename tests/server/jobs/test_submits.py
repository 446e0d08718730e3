"""Submits that are stored together: as alone, and none stands or falls with another."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import select, text

from powermean.allowed_models import read_allowed_models
from powermean.contracts.audit import AuditEvent
from powermean.contracts.job import JobSpec
from server.audit.journal import Record
from server.db.models import Base, Dataset, Job, JobEvent, Outbox, Person, PriorityClass
from server.db.scoped import ScopedDatabase
from server.db.session import DatabaseBusyError
from server.identity.callers import Caller
from server.jobs import service as alone
from server.jobs import submits
from server.jobs.submits import Submission, Submits, accept
from server.storage.projects import delete_project
from tests.support.embedded_service import until
from tests.support.service_driver import ServiceDriver, error_of, example_spec

DATASET = {"kind": "jsonl", "dataset": "none", "prompt": "{question}", "answer_field": "answer"}
LEFT_OPEN: dict[str, dict[str, Any]] = {
    "a fork": {"model": {"from": "job-none"}},
    "a dataset": {"data": DATASET},
    "a secret": {"secrets": {"HF_TOKEN": "hub"}},
    "a model that is not allowed": {"model": {"name": "other/model"}},
    "a priority that is not there": {"priority": "none"},
    "a priority for others": {"priority": "mine"},
    "a project that is not there": {"project": "none"},
    "a project with a limit": {"project": "limited"},
    "a project of others": {"project": "others"},
}


@pytest.fixture
def caller(service: ServiceDriver) -> Caller:
    """A member of the project `default`."""
    service.someone()
    with service.database.read() as session:
        person = session.scalars(select(Person).where(Person.name == "Ada")).one()
    roles = {"default": "member", "limited": "member"}
    return Caller(person.id, "Ada", None, None, roles, "default")


def submission(caller: Caller, key: str | None = None, **changes: Any) -> Submission:
    record = Record(
        AuditEvent(at=datetime.now(UTC), verb="job.submit", request="POST /v1/jobs", outcome="allowed")
    )
    spec = JobSpec.model_validate(example_spec(**changes))
    return Submission(caller, spec, "the text", key, record)


def stored(service: ServiceDriver, model: type[Base], **wanted: Any) -> list[dict[str, Any]]:
    table = model.__table__
    with service.database.read() as session:
        rows = session.execute(select(table).filter_by(**wanted)).mappings()
        return [dict(row) for row in rows]


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def test_a_job_is_stored_as_if_it_had_come_alone(service: ServiceDriver, caller: Caller):
    one = submission(caller, "first", model={"name": "tiny/model", "lora": {"rank": 8}})
    with service.database.write() as session:
        together, _other = accept(session, [one, submission(caller)], ())
    with ScopedDatabase(service.database, caller.visible).write() as scoped:
        apart = alone.submit(scoped, caller, one.spec, one.text, "second")
    ids = together.job.id, apart.job.id
    jobs = [stored(service, Job, id=job_id)[0] for job_id in ids]
    own = "id", "created_at", "idempotency_key"
    assert without(jobs[0], *own) == without(jobs[1], *own)
    assert [job["idempotency_key"] for job in jobs] == ["first", "second"]
    messages = [stored(service, Outbox, subject=job_id) for job_id in ids]
    own = "id", "subject", "created_at", "next_send_at"
    assert [without(one, *own) for one in messages[0]] == [without(one, *own) for one in messages[1]] != []
    events = [stored(service, JobEvent, job_id=job_id) for job_id in ids]
    assert [[(one["seq"], one["kind"]) for one in own] for own in events] == [[(1, "state")]] * 2
    assert events[0][0]["data"] == {**events[1][0]["data"], **own_data(together)}
    own = "id", "created_at"
    assert without(dict(together.job), *own) == without(dict(apart.job), *own)
    assert one.record is not None
    assert (one.record.event.target, one.record.event.project) == (ids[0], "default")


def own_data(submitted: alone.Submitted) -> dict[str, Any]:
    return submitted.job.model_dump(mode="json", include={"id", "created_at"})


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize("changes", LEFT_OPEN.values(), ids=LEFT_OPEN)
def test_what_has_to_be_looked_at_is_left_open(service: ServiceDriver, caller: Caller, changes):
    service.person.put("/v1/priorities/mine", json={"value": 1, "role": "admin"})
    for project in ("limited", "others"):
        service.project(project)
    service.person.put("/v1/projects/limited/storage/limit", json={"bytes": 10**9})
    wanted = [submission(caller), submission(caller, **changes), submission(caller)]
    with service.database.write() as session:
        first, left, last = accept(session, wanted, read_allowed_models("tiny/*"))
    assert left is None
    assert len({first.job.id, last.job.id}) == 2 == len(stored(service, Job))
    assert [one.record.event.target is None for one in wanted if one.record] == [False, True, False]


def test_a_key_that_was_used_is_left_open(service: ServiceDriver, caller: Caller):
    with service.database.write() as session:
        accept(session, [submission(caller, "used")], ())
    keys = ["used", "new", "new", None, None]
    with service.database.write() as session:
        answers = accept(session, [submission(caller, key) for key in keys], ())
    assert [answer is None for answer in answers] == [True, False, True, False, False]
    assert len(stored(service, Job)) == 4 == len(stored(service, Outbox))


@pytest.mark.slow
def test_whoever_submits_at_once_gets_a_job_or_an_error_each(service: ServiceDriver):
    others = [{"priority": "none"}, {"model": {"from": "job-none"}}]

    def submit(number: int) -> tuple[int, str]:
        changes = others[number % 5] if number % 5 < len(others) else {"name": f"job {number}"}
        answer = service.person.post("/v1/jobs", json=example_spec(**changes))
        named = answer.json().get("name") or error_of(answer)["fields"][0]["path"]
        return answer.status_code, named

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(submit, range(20)))
    wrong = [(422, "priority"), (422, "model.from")]
    right = [(202, f"job {number}") for number in range(20)]
    assert answers == [wrong[n % 5] if n % 5 < 2 else right[n] for n in range(20)]
    assert len(stored(service, Job)) == 12 == len(stored(service, JobEvent))
    service.app.state.journal.seal()
    log = service.person.get("/v1/audit", params={"verb": "job.submit"}).json()["items"]
    assert {entry["target"] for entry in log} == {row["id"] for row in stored(service, Job)}


def together(service: ServiceDriver, wanted: list[Submission]) -> list[alone.Submitted | None]:
    async def submit_all() -> list[alone.Submitted | None]:
        return await asyncio.gather(*map(service.app.state.submits.submit, wanted))

    return asyncio.run(submit_all())


def test_what_the_database_refuses_leaves_each_to_itself(
    service: ServiceDriver, caller: Caller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuse(session, wanted, allowed):
        accept(session, wanted, allowed)
        raise RuntimeError("a value that no column takes")

    monkeypatch.setattr(submits, "accept", refuse)
    wanted = [submission(caller) for _ in range(3)]
    assert together(service, wanted) == [None] * 3
    assert stored(service, Job) == []
    assert not any(one.record.stored for one in wanted if one.record)
    assert "a value that no column takes" in caplog.text
    monkeypatch.undo()
    assert all(together(service, wanted))
    assert all(one.record.stored for one in wanted if one.record)


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize("where", ["before the commit", "after the commit"])
def test_what_may_be_stored_is_not_stored_again(
    service: ServiceDriver, caller: Caller, monkeypatch: pytest.MonkeyPatch, where: str
):
    def fail(*_: object) -> None:
        raise RuntimeError("the connection is lost")

    if where == "before the commit":
        service.database.before_commit(fail)
    else:
        service.database.listen(fail)
    with pytest.raises(RuntimeError, match="the connection is lost"):
        together(service, [submission(caller)])
    assert len(stored(service, Job)) == (0 if where == "before the commit" else 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["postgres"], indirect=True)
def test_who_holds_a_lock_holds_up_those_alone_who_need_it(service: ServiceDriver, caller: Caller):
    with service.database.write() as session:
        session.get(PriorityClass, "low", with_for_update=True)
        wanted = [submission(caller), submission(caller, priority="low"), submission(caller)]
        began = time.monotonic()
        assert together(service, wanted)[1] is None
        assert service.submit()
        assert time.monotonic() - began < 10  # a statement waits for 15 s otherwise


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["postgres"], indirect=True)
def test_nothing_gets_into_a_project_that_is_being_deleted(service: ServiceDriver):
    service.project("ours")
    spec = example_spec(project="ours")
    late = [
        lambda: service.person.post("/v1/jobs", json=spec),
        lambda: service.person.post("/v1/jobs/text", json={"text": json.dumps(spec)}),
        lambda: service.person.post("/v1/datasets?project=ours", content=b'{"question": "1"}'),
    ]
    with ThreadPoolExecutor(len(late)) as threads:
        with service.database.write() as session:
            delete_project(session, "ours", cascade=True)
            answers = [threads.submit(one) for one in late]
            wait_for_waiters(service, len(late))
        assert [answer.result().status_code for answer in answers] == [422] * len(late)
    assert stored(service, Job, project_id="ours") == []
    assert stored(service, Dataset, project_id="ours") == []


def wait_for_waiters(service: ServiceDriver, wanted: int) -> None:
    """Until so many requests wait for a lock; a transaction sees one moment of that view."""
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )

    def all_wait() -> bool:
        with service.database.read() as session:
            return bool(session.execute(waiting).scalar_one() >= wanted)

    until(all_wait, 10, "requests wait for the project's row")


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_a_busy_database_is_said_to_all_of_them(
    service: ServiceDriver, caller: Caller, monkeypatch: pytest.MonkeyPatch
):
    def busy(session, wanted, allowed):
        raise DatabaseBusyError("others hold it")

    monkeypatch.setattr(submits, "accept", busy)
    with pytest.raises(DatabaseBusyError):
        together(service, [submission(caller), submission(caller)])
    answer = service.person.post("/v1/jobs", json=example_spec())
    assert answer.status_code == 503


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_a_request_that_is_given_up_holds_up_nobody(service: ServiceDriver, caller: Caller):
    line = Submits(service.database, ())

    async def submit_all() -> alone.Submitted | None:
        given_up = asyncio.create_task(line.submit(submission(caller)))
        await asyncio.sleep(0)
        given_up.cancel()
        return await line.submit(submission(caller))

    assert asyncio.run(submit_all()) is not None
    line.close()
    assert asyncio.run(line.submit(submission(caller))) is None
