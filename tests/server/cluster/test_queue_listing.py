"""The queue: own jobs with reasons, and nothing of others but their number."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from server.cluster.queue_listing import list_queue
from server.db.scoped import ScopedDatabase
from tests.support.service_driver import ServiceDriver, error_of

SOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


def test_a_waiting_job_is_told_its_place_its_needs_and_why(service: ServiceDriver):
    service.running_on(1, resources={"gpus": 1})
    first, second = (service.queued(name=name, resources={"gpus": 1}) for name in ("first", "second"))
    found = service.person.get("/v1/queue").json()
    assert [one["id"] for one in found["items"]] == [first, second]
    assert [one["position"] for one in found["items"]] == [1, 2]
    assert (found["others"], found["left_out"]) == (0, 0)
    job = found["items"][0]
    assert (job["project"], job["priority"], job["needs"]["gpus"]) == ("default", "normal", 1)
    assert "GPU" in job["reason"]
    alone = service.person.get(f"/v1/queue?job={second}").json()["items"]
    assert [one["id"] for one in alone] == [second]
    assert service.person.get("/v1/queue?limit=1").json()["left_out"] == 1


def test_a_job_that_does_not_wait_is_not_in_the_queue(service: ServiceDriver):
    attempt = service.running()
    answer = service.person.get(f"/v1/queue?job={attempt.claim.job_id}")
    assert answer.status_code == 404
    assert "is not in the queue" in error_of(answer)["message"]


def test_jobs_of_others_are_only_counted(service: ServiceDriver):
    service.project("team-b")
    theirs = service.queued(name="secret plan", project="team-b")
    mine = service.queued(name="mine")
    member = service.someone()
    answer = member.get("/v1/queue")
    (job,) = answer.json()["items"]
    assert (job["id"], job["position"], job["ahead_others"], answer.json()["others"]) == (mine, 2, 1, 1)
    for secret in (theirs, "team-b", "secret plan"):
        assert secret not in answer.text
    hidden, missing = (member.get(f"/v1/queue?job={one}") for one in (theirs, "job-none"))
    assert (hidden.status_code, hidden.text.replace(theirs, "")) == (
        404,
        missing.text.replace("job-none", ""),
    )
    assert member.get("/v1/queue?project=team-b").json()["items"] == []


@dataclass(frozen=True)
class Named:
    """A reason that names another project."""

    position: int
    kind: str = "behind"
    help: str | None = "A job of fewer GPUs finds room sooner."
    start_at: float | None = SOON.timestamp()
    basis: str | None = "by the pace of the running jobs"

    def words(self, may_see: Callable[[str], bool]) -> str:
        return f"{'team-b' if may_see('team-b') else 'another project'} is under its quota and goes first"


def test_reasons_name_other_projects_to_those_who_see_them_alone(service: ServiceDriver):
    theirs, mine = service.queued(project=service.project("team-b")), service.queued()
    reasons = {theirs: Named(1), mine: Named(2)}
    for visible, named in ((frozenset({"default"}), False), (None, True)):
        with ScopedDatabase(service.database, visible).read() as session:
            (job,) = list_queue(session, reasons, project="default", limit=10).items
        assert ("team-b" in job.model_dump_json(), theirs in job.model_dump_json()) == (named, named)
        assert ("another project is under its quota" in job.reason) == (not named)
        assert (job.ahead, job.ahead_own, job.ahead_others) == (((theirs,), 1, 0) if named else ((), 0, 1))
        assert job.starts_at == SOON


def test_the_nearest_jobs_before_it_are_named(service: ServiceDriver):
    jobs = [service.queued(name=f"job {n}") for n in range(8)]
    with ScopedDatabase(service.database, None).read() as session:
        reasons = {job: Named(place) for place, job in enumerate(jobs, start=1)}
        last = list_queue(session, reasons, job=jobs[-1], limit=1).items[0]
    assert (last.ahead, last.ahead_own) == (tuple(reversed(jobs[2:7])), 7)
