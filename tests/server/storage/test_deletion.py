"""Deleting jobs and what they stored, projects and datasets."""

import subprocess
import sys
import time
from statistics import median

import pytest
from sqlalchemy import insert, select

from server.db.models import Base, Job, Metric
from server.storage.rows import deleted_job, remove_some
from tests.support.service_driver import ServiceDriver, error_of, example_spec
from tests.support.stored_things import (
    commit,
    counts,
    fail_replays,
    finish,
    full_job,
    refs_below,
    replay,
    rows_with,
    sweep,
)


def delete(service: ServiceDriver, path: str):
    return service.person.delete(f"/v1/{path}")


@pytest.mark.slow
def test_nothing_refers_to_a_deleted_job(service: ServiceDriver):
    kept = full_job(service)
    fail_replays(service, kept)
    sweep(service)
    before = counts(service.database)
    files = refs_below(service, f"jobs/{kept}")
    gone = full_job(service)
    fail_replays(service, gone)
    assert dict(rows_with(service.database, gone))
    assert delete(service, f"jobs/{gone}").status_code == 204
    sweep(service)
    assert dict(rows_with(service.database, gone)) == {}
    assert refs_below(service, f"jobs/{gone}") == ()
    assert counts(service.database) == before
    assert refs_below(service, f"jobs/{kept}") == files


@pytest.mark.slow
def test_every_table_of_a_job_has_rows_in_these_tests(service: ServiceDriver):
    job = full_job(service)
    service.submit(model={"from": f"{job}@1"})
    names = {where.partition(".")[0] for where, _ in rows_with(service.database, job)}
    of_jobs = {
        table.name
        for table in Base.metadata.sorted_tables
        for key in table.foreign_keys
        if key.column.table.name in ("jobs", "attempts")
    }
    # made of many steps, by retention, and on several nodes (jobs/test_gangs.py)
    assert of_jobs - names == {"metric_blocks", "removed_parts", "attempt_members"}


@pytest.mark.slow
def test_a_deleted_job_is_invisible_at_once(service: ServiceDriver):
    job = full_job(service)
    fail_replays(service, job)
    assert delete(service, f"jobs/{job}").status_code == 204
    for path in ("", "/metrics", "/logs", "/checkpoints", "/files", "/replays", "/events", "/health"):
        assert service.person.get(f"/v1/jobs/{job}{path}").status_code == 404
    assert service.person.get("/v1/jobs").json()["items"] == []
    assert service.person.get("/v1/projects/default/storage").json()["bytes"] == 0
    assert 'powermean_jobs{state="finished"} 0.0' in service.person.get("/metrics").text
    assert delete(service, f"jobs/{job}").status_code == 404


def test_the_storage_says_what_is_refused(service: ServiceDriver):
    row = b'{"question": "1+1", "answer": "2"}'
    dataset = service.person.post("/v1/datasets?project=default", content=row).json()["id"]
    attempt = service.running(data={"kind": "jsonl", "dataset": dataset})
    job = attempt.claim.job_id
    for step in (1, 2):
        commit(service, attempt, step)

    def reasons() -> dict[str, str | None]:
        paths = {
            "datasets": "datasets/{id}",
            "checkpoints": "jobs/{id}/checkpoints/{step}",
            "models": "jobs/{id}/files",
        }
        found = service.person.get("/v1/projects/default/storage").json()["largest"]
        return {paths[one["kind"]].format(**one): one["in_use"] for one in found}

    told = reasons()
    assert told == {
        f"datasets/{dataset}": "1 job trains on it",
        f"jobs/{job}/checkpoints/1": None,
        f"jobs/{job}/checkpoints/2": "the job is running and resumes from it",
    }
    for path, reason in told.items():
        assert delete(service, path).status_code == (409 if reason else 204)
    finish(service, attempt)
    told = reasons()
    assert len(told) == 3
    for path, reason in told.items():
        assert (reason, delete(service, path).status_code) == (None, 204)


def test_an_idempotency_key_is_free_again(service: ServiceDriver):
    def submit():
        headers = {"Idempotency-Key": "once"}
        return service.person.post("/v1/jobs", json=example_spec(), headers=headers)

    first = submit().json()["id"]
    service.person.post(f"/v1/jobs/{first}/cancel")
    delete(service, f"jobs/{first}")
    answer = submit()
    assert (answer.status_code, answer.json()["id"] != first) == (202, True)


@pytest.mark.slow
def test_only_ended_jobs_go(service: ServiceDriver):
    attempt = service.running()
    job = attempt.claim.job_id
    commit(service, attempt, 1)
    commit(service, attempt, 2)
    for path in (f"jobs/{job}", f"jobs/{job}/files", f"jobs/{job}/checkpoints/2"):
        refused = delete(service, path)
        assert refused.status_code == 409, path
        assert "ended" in error_of(refused)["remedy"]
    assert delete(service, f"jobs/{job}/checkpoints/1").status_code == 204
    assert delete(service, f"jobs/{job}/checkpoints/1").status_code == 404
    assert service.job(job).state == "running"


@pytest.mark.slow
def test_what_a_lapsed_attempt_holds_on_a_node_is_remembered(service: ServiceDriver):
    attempt = service.running(max_restarts=0)
    service.report(running=(attempt.id,))
    service.let_lease_run_out(attempt.id)
    service.scheduler.turn()
    job = attempt.claim.job_id
    assert service.job(job).state == "failed"
    assert delete(service, f"jobs/{job}").status_code == 204
    sweep(service)
    assert dict(rows_with(service.database, job))  # its processes are still there
    service.report(running=())
    sweep(service)
    assert {where.partition(".")[0] for where, _ in rows_with(service.database, job)} <= {"nodes"}
    late = attempt.beat()
    assert (late.status_code, error_of(late)["code"]) == (409, "fenced")


@pytest.mark.slow
def test_replays_hold_their_job(service: ServiceDriver):
    job = full_job(service)
    (waiting,) = service.person.get(f"/v1/jobs/{job}/replays").json()["items"]
    refused = error_of(delete(service, f"jobs/{job}"))
    assert refused["fields"][0]["path"] == f"replays.{waiting['id']}"
    claimed = service.node.post(f"/v1/replays/{waiting['id']}/claim", json={"node_id": "node-1"})
    assert claimed.status_code == 200
    for path in (f"jobs/{job}?cascade=true", f"jobs/{job}/replays/{waiting['id']}"):
        assert delete(service, path).status_code == 409
    fail_replays(service, job)
    assert delete(service, f"jobs/{job}/replays/{waiting['id']}").status_code == 204
    assert dict(rows_with(service.database, waiting["id"])) == {}
    assert replay(service, job).status_code == 202
    assert delete(service, f"jobs/{job}?cascade=true").status_code == 204


@pytest.mark.slow
def test_a_model_goes_and_its_job_stays(service: ServiceDriver):
    job = full_job(service)
    assert delete(service, f"jobs/{job}/files").status_code == 204
    service.scheduler.turn()
    assert refs_below(service, f"jobs/{job}/model") == ()
    assert service.job(job).result.reward_after == 0.8
    gone = service.person.get(f"/v1/jobs/{job}/files")
    assert "was deleted" in error_of(gone)["message"]
    assert delete(service, f"jobs/{job}/files").status_code == 404


@pytest.mark.slow
def test_pinned_checkpoints_stay(service: ServiceDriver):
    attempt = service.running(checkpoints={"every": 1, "keep": 1})
    job = attempt.claim.job_id
    commit(service, attempt, 1)
    path = f"/v1/jobs/{job}/checkpoints/1"
    assert service.person.put(f"{path}/pin").status_code == 204
    commit(service, attempt, 2)
    commit(service, attempt, 3)
    found = service.person.get(f"/v1/jobs/{job}/checkpoints").json()["items"]
    assert [(one["step"], one["pinned"]) for one in found] == [(1, True), (3, False)]
    service.scheduler.turn()
    assert len(refs_below(service, f"jobs/{job}/checkpoints")) == 2
    assert service.person.delete(path).status_code == 409
    assert service.person.delete(f"{path}/pin").status_code == 204
    assert service.person.delete(path).status_code == 204
    assert service.person.put("/v1/jobs/{job}/checkpoints/7/pin").status_code == 404


def test_datasets_are_held_by_jobs_that_have_not_ended(service: ServiceDriver):
    rows = b'{"question": "1+1", "answer": "2"}'
    made = service.person.post("/v1/datasets?name=sums", content=rows).json()["id"]
    again = service.person.post("/v1/datasets?name=again", content=rows).json()
    assert (again["id"], again["name"]) == (made, "sums")
    service.scheduler.turn()
    assert len(refs_below(service, f"datasets/{made}")) == 1
    jobs = [service.submit(data={"kind": "jsonl", "dataset": made}) for _ in range(2)]
    refused = error_of(delete(service, f"datasets/{made}"))
    assert {field["path"] for field in refused["fields"]} == {f"jobs.{job}" for job in jobs}
    for job in jobs:
        service.person.post(f"/v1/jobs/{job}/cancel")
    assert delete(service, f"datasets/{made}").status_code == 204
    other = service.person.post("/v1/datasets?name=other", content=rows).json()
    assert other["id"] == made  # before the old file is removed
    service.scheduler.turn()
    assert len(refs_below(service, f"datasets/{made}")) == 1


@pytest.mark.slow
def test_a_project_goes_with_all_it_holds(service: ServiceDriver):
    for name in ("our-lab", "theirs"):
        service.project(name)
        service.someone(project=name, name=f"member of {name}")
        service.person.post(f"/v1/datasets?project={name}", content=b'{"of": "%s"}' % name.encode())
    theirs = full_job(service, project="theirs")
    ours = full_job(service, project="our-lab")
    fail_replays(service, theirs)
    live = service.submit(project="our-lab")
    refused = error_of(delete(service, "projects/our-lab?cascade=true"))
    assert refused["fields"][0]["path"] == f"jobs.{live}"
    service.person.post(f"/v1/jobs/{live}/cancel")
    refused = error_of(delete(service, "projects/our-lab"))
    held = {field["path"]: field["message"] for field in refused["fields"]}
    assert held == {"jobs": "2", "datasets": "1", "memberships": "1"}
    assert delete(service, "projects/our-lab?cascade=true").status_code == 204
    assert service.person.get("/v1/projects/our-lab").status_code == 404
    assert {one["name"] for one in service.person.get("/v1/projects").json()["items"]} == {
        "default",
        "theirs",
    }
    assert service.person.post("/v1/jobs", json=example_spec(project="our-lab")).status_code == 422
    sweep(service)
    for text in (ours, live, "our-lab"):
        assert {where for where, _ in rows_with(service.database, text)} - {
            "people.name",
            "api_keys.name",
        } == set()
    assert refs_below(service, f"jobs/{ours}") == ()
    assert len(refs_below(service, "datasets")) == 1
    assert service.person.get(f"/v1/jobs/{theirs}").status_code == 200
    assert service.person.post("/v1/projects", json={"name": "our-lab"}).status_code == 201


def test_an_empty_project_goes_without_more(service: ServiceDriver):
    service.project("ours")
    assert service.someone("maintainer", project="ours").delete("/v1/projects/ours").status_code == 403
    service.project("empty")
    assert delete(service, "projects/empty").status_code == 204


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
def test_the_sweep_may_stop_anywhere(service: ServiceDriver, monkeypatch: pytest.MonkeyPatch, batch: int):
    monkeypatch.setattr("server.storage.rows.BATCH", batch)
    job = full_job(service)
    fail_replays(service, job)
    delete(service, f"jobs/{job}")
    turns = 0
    while True:
        with service.database.write() as session:  # each turn is a transaction, after which all may end
            found = deleted_job(session)
            if found is None:
                break
            remove_some(session, found)
        turns += 1
        assert service.person.get(f"/v1/jobs/{job}").status_code == 404
    assert turns > 10 // batch
    with service.database.read() as session:
        assert session.scalars(select(Job.id)).all() == []
    service.scheduler.turn()
    assert refs_below(service, f"jobs/{job}") == ()


@pytest.mark.slow
def test_kill_9_in_mid_sweep(service: ServiceDriver):
    job = full_job(service, steps=10)
    fail_replays(service, job)
    delete(service, f"jobs/{job}")
    command = [sys.executable, "-m", "tests.support.sweeper", service.settings.database_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sweeping:
        assert sweeping.stdout is not None
        for _ in range(4):
            assert sweeping.stdout.readline()
        sweeping.kill()
    left = dict(rows_with(service.database, job))
    assert "jobs.id" in left
    assert service.person.get(f"/v1/jobs/{job}").status_code == 404
    sweep(service)
    assert dict(rows_with(service.database, job)) == {}
    assert refs_below(service, f"jobs/{job}") == ()


@pytest.mark.slow
def test_a_long_history_goes_in_short_transactions(service: ServiceDriver):
    """60,000 metrics: no transaction holds the write lock for longer than a small one does."""
    job = full_job(service)
    fail_replays(service, job)
    rows = [
        {"job_id": job, "step": 100 + n // 20, "attempt": 1, "update": 0, "name": f"m{n % 20}", "seq": 1}
        for n in range(60_000)
    ]
    with service.database.write() as session:
        session.execute(insert(Metric), rows)
    delete(service, f"jobs/{job}")
    seconds = []
    while True:
        began = time.process_time()
        with service.database.write() as session:
            found = deleted_job(session)
            if found is None:
                break
            remove_some(session, found)
        seconds.append(time.process_time() - began)
    print(f"{len(seconds)} writes: median {median(seconds) * 1e3:.1f} ms, most {max(seconds) * 1e3:.1f} ms")
    assert len(seconds) > 30
    assert median(seconds[-30:-15]) < 5 * median(seconds[:20])  # not slower towards the end
