"""Who a key stands for is remembered for a moment, and forgotten as soon as that may have changed."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import event

from server.db.models import Person
from server.identity import recent
from server.identity.callers import Caller
from tests.support.service_driver import ServiceDriver


@pytest.fixture(autouse=True)
def long_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "REMEMBERED_S", 60.0)


def questions(service: ServiceDriver, ask: Callable[[], object]) -> list[str]:
    """The statements about keys, people and their projects while something is asked."""
    seen: list[str] = []

    def note(_connection, _cursor, statement, *_rest) -> None:
        if any(f"FROM {table}" in statement for table in ("api_keys", "people", "memberships")):
            seen.append(statement)

    event.listen(service.database.engine, "before_cursor_execute", note)
    ask()
    event.remove(service.database.engine, "before_cursor_execute", note)
    return seen


def test_a_busy_key_is_looked_up_once(service: ServiceDriver):
    assert questions(service, lambda: service.person.get("/v1/jobs"))
    assert not questions(service, lambda: service.person.get("/v1/jobs"))
    assert not questions(service, service.submit)


def test_a_revoked_key_is_refused_at_once(service: ServiceDriver):
    made = service.person.post("/v1/keys", json={"name": "laptop"}).json()
    holder = service.client(made["key"])
    assert holder.get("/v1/jobs").status_code == 200
    assert service.person.delete(f"/v1/keys/{made['id']}").status_code == 204
    assert holder.get("/v1/jobs").status_code == 401


def test_a_person_who_is_taken_out_of_a_project_sees_it_no_more_at_once(service: ServiceDriver):
    ada = service.someone()
    job_id = service.submit()
    assert ada.get(f"/v1/jobs/{job_id}").status_code == 200
    me = ada.get("/v1/me").json()["id"]
    assert service.person.delete(f"/v1/projects/default/members/{me}").status_code == 204
    assert ada.get(f"/v1/jobs/{job_id}").status_code == 404


def test_a_person_who_has_left_is_refused_at_once(service: ServiceDriver):
    ada = service.someone()
    me = ada.get("/v1/me").json()["id"]
    assert service.person.patch(f"/v1/people/{me}", json={"active": False}).status_code == 200
    assert ada.get("/v1/jobs").status_code == 401


def test_what_another_server_changed_counts_after_a_moment(
    service: ServiceDriver, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(recent, "REMEMBERED_S", 0.1)
    ada = service.someone()
    me = ada.get("/v1/me").json()["id"]
    monkeypatch.setattr(service.database, "_listeners", [])  # as another process, whose commits nobody tells
    with service.database.write() as session:
        session.get_one(Person, me).active = False
    time.sleep(0.11)
    assert ada.get("/v1/jobs").status_code == 401


def test_who_was_read_before_a_change_is_not_remembered_after_it(service: ServiceDriver):
    service.person.get("/v1/jobs")
    callers = service.app.state.callers
    (caller, _until), *_ = callers._known.values()
    before = callers.forgotten
    service.person.post("/v1/keys", json={"name": "any change"})
    callers.remember("pm_old", caller, before)
    assert callers.find("pm_old") is None
    callers.remember("pm_new", caller, callers.forgotten)
    assert callers.find("pm_new") == caller


def test_those_who_show_one_key_at_once_have_it_looked_up_once(service: ServiceDriver):
    service.person.get("/v1/jobs")  # compiles the statements
    service.app.state.callers = recent.RecentCallers(service.database)

    def ask_at_once() -> None:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: service.person.get("/v1/jobs"), range(8)))
        assert {answer.status_code for answer in answers} == {200}

    assert len([one for one in questions(service, ask_at_once) if "FROM api_keys" in one]) == 1


def test_whoever_waited_for_a_look_that_found_nobody_looks_for_themselves(service: ServiceDriver):
    callers = recent.RecentCallers(service.database)

    async def wait() -> Caller | None:
        with callers.looking_for("pm_wrong"):
            waiting = asyncio.create_task(callers.find_soon("pm_wrong"))
            await asyncio.sleep(0)
            assert not waiting.done()
        return await waiting

    assert asyncio.run(wait()) is None
