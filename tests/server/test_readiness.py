"""Health and readiness: what takes a server out of service, and what it says is wrong meanwhile."""

import asyncio
import shutil
import threading
from pathlib import Path

import httpx
import pytest

from powermean.artefacts import ArtefactStore, ArtefactStoreFullError
from server import readiness
from tests.support.service_driver import ADMIN_KEY, error_of, example_spec


@pytest.fixture
def kind() -> str:
    """What is seen from outside is the same on every database."""
    return "sqlite"


def test_health_needs_nothing(service):
    service.database.close()
    assert service.anyone.get("/healthz").json() == {"status": "ok"}


def test_readiness_names_what_is_wrong(service, monkeypatch):
    def full(store):
        raise ArtefactStoreFullError("no space left")

    monkeypatch.setattr(ArtefactStore, "probe", full)
    monkeypatch.setattr(readiness, "PATIENCE_S", 30.0)
    answer = service.anyone.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    wrong = {one["path"]: one["message"] for one in answer.json()["wrong"]}
    assert wrong == {"redis": "does not answer", "artefacts": "can't be written (artefact_store_full)"}
    assert all(one["remedy"] for one in answer.json()["wrong"])
    assert "127.0.0.1" not in answer.text
    numbers = service.person.get("/metrics").text
    for part in ("database", "redis", "artefacts", "scheduler"):
        assert f'powermean_part_up{{part="{part}"}} {float(part not in wrong)}' in numbers


def test_a_part_whose_check_breaks_off_is_named(service, monkeypatch):
    def broken(url):
        raise KeyError("of a library")

    monkeypatch.setattr(readiness, "_check_redis", broken)
    monkeypatch.setattr(readiness, "PATIENCE_S", 30.0)
    (one,) = service.anyone.get("/readyz").json()["wrong"]
    assert (one["path"], one["message"]) == ("redis", "can't be checked")


def test_readiness_is_checked_at_most_every_two_seconds(service, monkeypatch):
    checks = []
    monkeypatch.setattr(ArtefactStore, "probe", lambda store: checks.append(1))
    monkeypatch.setattr(readiness, "_check_redis", lambda url: None)
    assert [service.anyone.get("/readyz").status_code for _ in range(3)] == [200] * 3
    assert len(checks) == 1


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_part_that_hangs_holds_up_nobody(service, monkeypatch):
    asked, thawed = [], threading.Event()

    def frozen(url):
        asked.append(url)
        thawed.wait(30)

    monkeypatch.setattr(readiness, "_check_redis", frozen)
    monkeypatch.setattr(readiness, "CHECKS_TIMEOUT_S", 1.0)
    monkeypatch.setattr(readiness, "PATIENCE_S", 0.2)
    monkeypatch.setattr(readiness, "READINESS_S", 0.0)
    transport = httpx.ASGITransport(app=service.app)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as anyone:
            waiting = [asyncio.create_task(anyone.get("/readyz")) for _ in range(60)]
            await asyncio.sleep(0.1)
            jobs = await anyone.get("/v1/jobs", headers={"Authorization": f"Bearer {ADMIN_KEY}"})
            assert jobs.status_code == 200
            for answer in await asyncio.gather(*waiting):
                assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
                assert [one["path"] for one in answer.json()["wrong"]] == ["redis"]
            async with asyncio.timeout(20):
                while (await anyone.get("/readyz")).json()["wrong"][0]["message"] != "does not answer":
                    pass
        assert len(asked) == 1
    finally:
        thawed.set()


def test_a_database_whose_file_was_moved_takes_nothing(service, monkeypatch):
    monkeypatch.setattr(readiness, "_check_redis", lambda url: None)
    monkeypatch.setattr(readiness, "READINESS_S", -1.0)
    file = Path(service.database.engine.url.database)
    away = file.with_suffix(".away")
    before = service.submit()
    for put in (lambda: None, lambda: shutil.copy(away, file)):
        file.rename(away)
        put()
        refused = service.person.post("/v1/jobs", json=example_spec())
        assert (refused.status_code, error_of(refused)["code"]) == (503, "unavailable")
        ready = service.anyone.get("/readyz")
        assert ready.status_code == 503
        assert error_of(ready)["fields"][0]["message"] == "its file was moved or replaced"
        away.rename(file)
    assert service.anyone.get("/readyz").status_code == 200
    after = service.submit()
    assert {job["id"] for job in service.person.get("/v1/jobs").json()["items"]} == {before, after}
