"""The removal of what nobody owns."""

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert

from powermean.artefacts import ArtefactStore
from powermean.contracts.storage import Collected
from server.db.models import Checkpoint, LogChunk, Outbox
from server.db.session import database_now
from server.storage import collection
from server.storage.references import referenced
from tests.support.service_driver import ServiceDriver
from tests.support.stored_things import fail_replays, full_job, put, refs_below, store_of, sweep

KEPT = ("texts", "tokens", "checkpoints", "model", "logs")


def collect(service: ServiceDriver, *, dry_run: bool = False, grace: timedelta = timedelta()) -> Collected:
    return collection.collect(service.database, store_of(service), dry_run=dry_run, after=None, grace=grace)


@pytest.mark.slow
def test_a_dry_run_removes_nothing_and_says_what_it_would(service: ServiceDriver):
    job = full_job(service)
    fail_replays(service, job)
    sweep(service)
    all_of_it = refs_below(service, "jobs")
    lost = put(service, "jobs/job-0123456789abcdef/texts/1", "x", "nobody's")
    left = put(service, f"jobs/{job}/weights/1.2", "x", "a killed attempt's")
    old = put(service, "datasets/ds-0/1", "x", "a deleted dataset's")
    probe = put(service, "probe/0", "probe", "a probe's")
    gone = {ref["key"] for ref in (lost, left, old, probe)}
    said = collect(service, dry_run=True)
    assert (said.objects, set(said.keys)) == (4, gone)
    assert said.looked_at == len(all_of_it) + 4
    assert said.bytes == sum(ref["size"] for ref in (lost, left, old, probe))
    assert collect(service, dry_run=True) == said
    done = collect(service)
    assert (done.objects, done.bytes, done.dry_run) == (said.objects, said.bytes, False)
    assert refs_below(service, "jobs") == all_of_it
    assert collect(service).objects == 0


def test_young_objects_and_those_of_live_jobs_stay(service: ServiceDriver):
    attempt = service.running()
    put(service, f"jobs/{attempt.claim.job_id}/texts/1", "x", "about to be reported")
    young = put(service, "jobs/job-0123456789abcdef/texts/1", "x", "about to be reported")
    assert collect(service, grace=timedelta(hours=1)).objects == 0
    path = Path(service.settings.artefacts_url.removeprefix("file://")) / young["key"]
    hours_ago = time.time() - 2 * 3600
    os.utime(path, (hours_ago, hours_ago))
    assert collect(service, grace=timedelta(hours=1)).keys == (young["key"],)
    assert len(refs_below(service, "jobs")) == 1


def test_messages_about_what_is_gone_go(service: ServiceDriver):
    job = service.submit()
    service.person.post(f"/v1/jobs/{job}/cancel")
    with service.database.write() as session:
        now = database_now(session)
        row = {"task": "x", "subject": "job-gone", "sends": 1, "next_send_at": now, "created_at": now}
        session.execute(insert(Outbox), [row | {"done_at": now}])
    assert collect(service, dry_run=True).rows == 1
    assert collect(service).rows == 1
    assert collect(service).rows == 0


def test_parts_cover_the_whole_store(service: ServiceDriver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(collection, "OWNERS", 2)
    for number in range(5):
        put(service, f"jobs/job-{number}/texts/1", "x", "nobody's")
        put(service, f"datasets/ds-{number}/1", "x", "nobody's")
    monkeypatch.setattr(collection, "GRACE", timedelta())
    found, after, parts = 0, None, 0
    while True:
        query = {"dry_run": "true"} | ({"after": after} if after else {})
        part = service.person.post("/v1/gc", params=query).json()
        found, after, parts = found + part["looked_at"], part["next"], parts + 1
        if after is None:
            break
    assert (found, parts) == (10, 5)
    assert service.someone("maintainer").post("/v1/gc").status_code == 403


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_nothing_that_a_row_refers_to_is_removed(service: ServiceDriver):
    """Whatever set of references: what is left is what rows refer to, and all of that."""
    attempt = service.running()
    job, store = attempt.claim.job_id, store_of(service)
    names = st.integers(0, 5)
    references = st.lists(st.tuples(st.sampled_from(["checkpoints", "logs"]), names), max_size=8)
    service.person.post(f"/v1/jobs/{job}/cancel")
    assert attempt.finish("cancelled").status_code == 204

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(references, st.lists(st.tuples(st.sampled_from(["checkpoints", "logs"]), names), max_size=8))
    def law(kept: list[tuple[str, int]], others: list[tuple[str, int]]) -> None:
        refs = {
            one: store.put_bytes(f"jobs/{job}/{one[0]}/1", "x", str(one).encode()) for one in [*kept, *others]
        }
        with service.database.write() as session:
            for place, one in enumerate(kept):  # several rows may refer to one object
                ref = refs[one].model_dump(mode="json")
                if one[0] == "logs":
                    session.add(LogChunk(job_id=job, attempt=1, offset=place, size=1, artefact=ref))
                else:
                    manifest = {"files": {"x": ref}}
                    row = {"step": place, "attempt": 1, "manifest": manifest, "size": 1}
                    session.add(Checkpoint(job_id=job, created_at=database_now(session), **row))
        wanted = {refs[one].key for one in kept}
        with service.database.read() as session:
            assert referenced(session, [ref.key for ref in refs.values()]) == wanted
        collect(service)
        assert {ref.key for ref in store.list(f"jobs/{job}")} == wanted
        with service.database.write() as session:
            for model in (LogChunk, Checkpoint):
                session.execute(delete(model))
        collect(service)
        assert store.list(f"jobs/{job}") == ()

    law()


def test_other_stores_tell_times_too():
    store = ArtefactStore("memory://collection")
    store.put_bytes("jobs/job-1/texts", "x", b"x")
    (found,) = store.list_stored("jobs")
    assert abs(found.modified.timestamp() - time.time()) < 60
    assert store.children("jobs") == ("job-1",)
    assert store.children("datasets") == ()
    store.delete_prefix("jobs")
