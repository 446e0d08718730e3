"""The queue: own jobs with reasons, and nothing of others but their number."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from server.cluster.queue_listing import list_queue, told
from server.cluster.queue_view import Why
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


def test_reasons_name_other_projects_to_those_who_see_them_alone(service: ServiceDriver):
    theirs, mine = service.queued(project=service.project("team-b")), service.queued()
    text = f"needs 4 GPUs on one node; team-b is under its quota and goes first; ahead of you: {theirs}"
    whys = {
        theirs: Why("next", "it starts in a moment", 1),
        mine: Why(
            "quota", text, 2, (theirs,), ("team-b",), "ask team-b", SOON, f"{theirs} has 20 steps left"
        ),
    }
    for visible, named in ((frozenset({"default"}), False), (None, True)):
        with ScopedDatabase(service.database, visible).read() as session:
            (job,) = list_queue(session, whys, project="default", limit=10).items
        assert ("team-b" in job.model_dump_json(), theirs in job.model_dump_json()) == (named, named)
        assert ("another project is under its quota" in job.reason) == (not named)
        assert (job.ahead, job.ahead_others) == (((theirs,), 0) if named else ((), 1))
        assert job.starts_at == SOON


@given(
    names=st.sets(st.from_regex(r"\A[a-z0-9][a-z0-9-]{0,6}\Z"), min_size=1, max_size=5),
    words=st.lists(st.sampled_from(("needs", "4", "GPUs", "goes", "first;")), max_size=8),
)
def test_no_hidden_name_is_left_in_a_text(names: set[str], words: list[str]):
    text = " ".join([*words, *sorted(names), "wait."])
    seen = told(text, names, frozenset(), ())
    assert names.isdisjoint(seen.replace("another project", "").replace(".", "").split())
