"""Checkpoints over REST: what is committed, kept, dropped and refused, and where the next attempt goes on."""

import json

import pytest
from sqlalchemy import select

from server.db.models import Checkpoint, Garbage
from tests.support.service_driver import ServiceDriver, error_of, example_checkpoint, example_ref


@pytest.mark.slow
def test_the_next_attempt_goes_on_from_the_last_checkpoint(service: ServiceDriver):
    first = service.running()
    job_id = first.claim.job_id
    for step in (5, 10):
        assert first.commit(step).status_code == 204
    service.let_lease_run_out(first.id)
    service.scheduler.turn()
    service.report(running=())
    service.scheduler.turn()
    second = service.claim(f"{job_id}.2")
    assert second.claim.resume is not None
    assert second.claim.resume.step == 10
    job = service.job(job_id)
    assert [attempt.first_step for attempt in job.attempts] == [0, 11]
    assert [attempt.state for attempt in job.attempts] == ["lapsed", "running"]
    assert job.step == 10
    rewinds = [event.data for event in service.events(job_id) if event.kind == "rewind"]
    assert rewinds == [{"attempt": 2, "from_step": 11}]
    assert first.commit(15).status_code == 409


def test_committing_twice_is_committing_once(service: ServiceDriver):
    attempt = service.running()
    for _ in range(2):
        assert attempt.commit(5).status_code == 204
    with service.database.read() as session:
        assert [c.step for c in session.execute(select(Checkpoint)).scalars()] == [5]
    assert [e.data["step"] for e in service.events(attempt.claim.job_id) if e.kind == "checkpoint"] == [5]


def test_a_late_repeat_of_an_older_commit_does_not_bring_it_back(service: ServiceDriver):
    attempt = service.running(checkpoints={"every": 5, "keep": 1})
    for step in (5, 10, 5):
        assert attempt.commit(step).status_code == 204
    with service.database.read() as session:
        assert [c.step for c in session.execute(select(Checkpoint)).scalars()] == [10]


def test_old_checkpoints_are_dropped_and_their_files_with_them(service: ServiceDriver):
    attempt = service.running(checkpoints={"every": 1, "keep": 2})
    store = service.scheduler.artefacts
    owner = f"jobs/{attempt.claim.job_id}/checkpoints"
    shared = store.put_bytes(owner, "tokenizer", b"same").model_dump()
    own = [store.put_bytes(f"{owner}/{i}", "weights", b"%d" % i).model_dump() for i in range(4)]
    for step in range(4):
        manifest = {"files": {"tokenizer": shared, "weights": own[step]}}
        assert attempt.post("checkpoints", {"step": step + 1, "manifest": manifest}).status_code == 204
    with service.database.read() as session:
        assert sorted(c.step for c in session.execute(select(Checkpoint)).scalars()) == [3, 4]
    service.scheduler.turn()
    assert [ref.key for ref in store.list(owner)] == sorted([shared["key"], own[2]["key"], own[3]["key"]])
    with service.database.read() as session:
        assert session.execute(select(Garbage)).first() is None


def test_what_killed_attempts_left_in_the_store_goes_when_the_job_is_over(service: ServiceDriver):
    attempt = service.running()
    store, owner = service.scheduler.artefacts, f"jobs/{attempt.claim.job_id}"
    for name in ("weights/1.3", "checkpoints/1-10", "checkpoints/1-20", "model", "texts/1"):
        store.put_bytes(f"{owner}/{name}", "data", b"x")
    committed = store.list(f"{owner}/checkpoints/1-10")[0].model_dump()
    attempt.post("checkpoints", {"step": 10, "manifest": {"files": {"data": committed}}})
    attempt.finish("failed", error={"code": "x", "message": "y"})
    service.scheduler.turn()
    left = {ref.key.removeprefix(f"{owner}/").rpartition("/")[0] for ref in store.list(owner)}
    assert left == {"checkpoints/1-10", "model", "texts/1"}


def huge_checkpoint(job_id: str):
    commit = example_checkpoint(job_id, 1, "a", "b")
    for ref in commit["manifest"]["files"].values():
        ref["size"] = 2**62
    return commit


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("commit", "path"),
    [
        (example_checkpoint("JOB", 21, "a"), "step"),
        (example_checkpoint("JOB", 2), "manifest.files"),
        (example_checkpoint("JOB", -1, "a"), "step"),
        (example_checkpoint("another-job", 1, "a"), "manifest.files.a.key"),
        (huge_checkpoint("JOB"), "manifest.files"),
        ({"step": 1, "manifest": {"files": {"a": example_ref("a", "..")}}}, "manifest.files.a.key"),
    ],
)
def test_a_checkpoint_that_cannot_be_is_refused(service: ServiceDriver, commit, path):
    attempt = service.running()
    answer = attempt.post("checkpoints", json.loads(json.dumps(commit).replace("JOB", attempt.claim.job_id)))
    assert answer.status_code == 422
    assert error_of(answer)["fields"][0]["path"] == path
