"""The tokens of a trajectory, as they were recorded, on every database."""

import pytest

from powermean.artefacts import ArtefactStore
from powermean.contracts.token_records import StepFacts, TrajectoryTokens, UpdateFacts, UpdateTokens
from powermean.token_segments import write_segment
from tests.support.reports import next_attempt, trajectory
from tests.support.service_driver import error_of

FACTS = StepFacts(
    step=1,
    progress=0.5,
    mean_reward=0.25,
    reward_std=0.5,
    max_new_tokens=4,
    updates=(UpdateFacts(update=0, epoch=0, minibatch=0, trajectories=3, tokens=6),),
)


def record(index: int) -> TrajectoryTokens:
    seen = UpdateTokens(update=0, log_ratio=(0.5, -0.25), weight=(0.75, 0.25), clipped=(True, False))
    return TrajectoryTokens(
        index=index,
        token_ids=(5, 6),
        pieces=("<b>", "é"),
        sampler_log_probs=(-1.0, -2.0),
        old_log_probs=(-1.5, -2.0),
        updates=(seen,),
    )


def store_tokens(service, attempt, data: bytes):
    store = ArtefactStore(service.settings.artefacts_url)
    return store.put_bytes(f"jobs/{attempt.claim.job_id}/tokens", "1.jsonl.gz", data).model_dump()


def post_step(attempt, tokens, token_rows, rows=3):
    body = {"step": 1, "rows": [trajectory(i) for i in range(rows)], "tokens": tokens}
    return attempt.post("trajectories", body | {"token_rows": token_rows})


def tokens_of(service, attempt, index, step=1):
    path = f"/v1/jobs/{attempt.claim.job_id}/trajectories/{step}/{index}/tokens"
    return service.person.get(path)


@pytest.fixture
def recorded(service):
    attempt = service.running()
    data = write_segment(FACTS, [record(0), record(1)])
    assert post_step(attempt, store_tokens(service, attempt, data), 2).status_code == 204
    return attempt


def test_recorded_tokens_come_back(service, recorded):
    answer = tokens_of(service, recorded, 1)
    assert answer.status_code == 200, answer.text
    assert answer.json()["tokens"] == record(1).model_dump(mode="json")
    assert answer.json()["facts"] == FACTS.model_dump(mode="json")
    page = service.person.get(f"/v1/jobs/{recorded.claim.job_id}/trajectories").json()
    assert [item["has_tokens"] for item in page["items"]] == [True, True, False]


@pytest.mark.parametrize(
    ("step", "index", "says"), [(1, 2, "those of 0 to 1 were"), (1, 3, "no trajectory 3"), (2, 0, "step 2")]
)
def test_what_is_not_there_is_named(service, recorded, step, index, says):
    answer = tokens_of(service, recorded, index, step)
    assert answer.status_code == 404
    assert says in error_of(answer)["message"]


def test_a_step_without_records_names_the_field(service):
    attempt = service.running()
    assert post_step(attempt, None, 0).status_code == 204
    answer = tokens_of(service, attempt, 0)
    assert answer.status_code == 404
    assert "record.tokens" in error_of(answer)["remedy"]


def test_a_damaged_segment_is_an_error_with_a_name(service):
    attempt = service.running()
    assert post_step(attempt, store_tokens(service, attempt, b"not gzip"), 3).status_code == 204
    answer = tokens_of(service, attempt, 0)
    assert (answer.status_code, error_of(answer)["code"]) == (500, "artefact_corrupt")


@pytest.mark.slow
def test_records_of_another_job_or_of_too_many_are_refused(service):
    attempt = service.running()
    ref = store_tokens(service, attempt, write_segment(FACTS, [record(0)]))
    foreign = ref | {"key": "jobs/job-other/tokens/x"}
    assert error_of(post_step(attempt, foreign, 1))["fields"][0]["path"] == "tokens.key"
    for tokens, count in ((ref, 4), (None, 1)):
        answer = post_step(attempt, tokens, count)
        assert answer.status_code == 422
        assert error_of(answer)["fields"][0]["path"] == "token_rows"


@pytest.mark.slow
def test_a_later_attempts_records_count(service, recorded):
    later = next_attempt(service, recorded)
    assert post_step(later, None, 0).status_code == 204
    assert tokens_of(service, later, 0).status_code == 404
