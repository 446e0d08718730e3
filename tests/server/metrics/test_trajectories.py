"""The trajectories of a step, sorted, in pages, with their texts."""

import gzip
import json

import pytest

from powermean.artefacts import ArtefactStore
from tests.support.reports import next_attempt, trajectory
from tests.support.service_driver import error_of


def store_texts(service, attempt, *indices):
    """A step's text segment, as a trainer writes it."""
    lines = [
        {
            "index": i,
            "prompt": f"{i} + 1 =",
            "completion": f"<b>{i + 1}</b>",
            "answer": str(i + 1),
        }
        for i in indices
    ]
    data = gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode())
    store = ArtefactStore(service.settings.artefacts_url)
    return store.put_bytes(f"jobs/{attempt.claim.job_id}/texts", "texts.jsonl.gz", data).model_dump()


def post_step(attempt, step, *rows, texts=None):
    answer = attempt.post("trajectories", {"step": step, "rows": rows, "texts": texts})
    assert answer.status_code == 204, answer.text


def get(service, attempt, **query):
    answer = service.person.get(f"/v1/jobs/{attempt.claim.job_id}/trajectories", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_page_joins_scalars_and_texts(service):
    attempt = service.running()
    post_step(attempt, 1, trajectory(0))
    post_step(
        attempt, 2, *(trajectory(i, p=0.5) for i in range(5)), texts=store_texts(service, attempt, 0, 1, 3)
    )
    page = get(service, attempt, step=2, offset=1, limit=3)
    assert (page["step"], page["total"], page["steps"]) == (2, 5, [1, 2])
    assert [item["index"] for item in page["items"]] == [1, 2, 3]
    assert [item["completion"] for item in page["items"]] == ["<b>2</b>", None, "<b>4</b>"]
    assert page["items"][0]["prompt"] == "1 + 1 ="
    assert page["items"][0]["updates"][1]["p"] == 0.5


@pytest.mark.slow
def test_one_trajectory_is_given_as_the_page_gives_it(service):
    attempt = service.running()
    post_step(attempt, 2, *(trajectory(i, p=0.5) for i in range(3)), texts=store_texts(service, attempt, 1))
    listed = get(service, attempt, step=2)["items"]
    path = f"/v1/jobs/{attempt.claim.job_id}/trajectories/2"
    assert [service.person.get(f"{path}/{index}").json() for index in range(3)] == listed
    assert listed[1]["completion"] == "<b>2</b>"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "message", "remedy"),
    [
        ("1/3", "no trajectory 3", "0 to 2"),
        ("2/0", "no trajectory 0", "has none"),
        ("9/0", "step 9", "1 to 2"),
    ],
)
def test_one_that_is_not_there_is_named(service, place, message, remedy):
    attempt = service.running()
    post_step(attempt, 1, *map(trajectory, range(3)))
    post_step(attempt, 2)
    answer = service.person.get(f"/v1/jobs/{attempt.claim.job_id}/trajectories/{place}")
    assert answer.status_code == 404
    assert message in error_of(answer)["message"]
    assert remedy in error_of(answer)["remedy"]


@pytest.mark.slow
def test_one_trajectory_that_a_later_attempt_repeats_does_not_count(service):
    first = service.running()
    post_step(first, 1, trajectory(0, reward=1.0), trajectory(1))
    second = next_attempt(service, first)
    path = f"/v1/jobs/{first.claim.job_id}/trajectories/1"
    assert service.person.get(f"{path}/0").status_code == 404
    post_step(second, 1, trajectory(0, reward=0.5))
    assert service.person.get(f"{path}/0").json()["reward"] == 0.5
    assert service.person.get(f"{path}/1").status_code == 404


def test_without_a_step_the_newest_is_given(service):
    attempt = service.running()
    assert get(service, attempt) == {"step": 0, "items": [], "total": 0, "steps": []}
    for step in (1, 2):
        post_step(attempt, step, trajectory(0))
    assert get(service, attempt)["step"] == 2


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("index", [0, 1, 2, 3]),
        ("reward", [1, 3, 0, 2]),
        ("-reward", [2, 0, 1, 3]),
        ("advantage", [2, 0, 1, 3]),
        ("-advantage", [1, 3, 0, 2]),
        ("p", [2, 0, 3, 1]),
        ("-p", [3, 0, 2, 1]),
    ],
)
def test_orders(service, sort, order):
    """p is that of the last update; where it is not defined the trajectory comes last either way.

    Postgres once counted from the end of the weight versions instead of the updates.
    """
    attempt = service.running()
    made = {"weight_versions": [{"version": 0, "start": 0, "end": 3}]}
    post_step(
        attempt,
        1,
        trajectory(0, 0.5, p=0.5, **made),
        trajectory(1, 0.0, **made),
        trajectory(2, 1.0, p=-0.25, **made),
        trajectory(3, 0.0, p=1.0, **made),
    )
    assert [item["index"] for item in get(service, attempt, sort=sort)["items"]] == order


@pytest.mark.slow
def test_what_a_later_attempt_repeats_does_not_count(service):
    first = service.running()
    for step in (1, 2, 3):
        post_step(first, step, trajectory(0, reward=1.0))
    first.commit(1)
    second = next_attempt(service, first)
    assert get(service, first)["steps"] == [1]
    post_step(second, 2, trajectory(0, reward=0.5))
    page = get(service, first)
    assert page["steps"] == [1, 2]
    assert page["items"][0]["reward"] == 0.5


def test_a_step_without_trajectories_is_named(service):
    attempt = service.running()
    post_step(attempt, 3, trajectory(0))
    path = f"/v1/jobs/{attempt.claim.job_id}/trajectories"
    answer = service.person.get(path, params={"step": 2})
    assert answer.status_code == 404
    assert "3" in error_of(answer)["remedy"]
    assert service.person.get("/v1/jobs/job-none/trajectories").status_code == 404
    assert service.person.get(path, params={"sort": "name"}).status_code == 422


def test_texts_that_are_lost_or_damaged_are_an_error_with_a_name(service):
    attempt = service.running()
    store = ArtefactStore(service.settings.artefacts_url)
    ref = store.put_bytes(f"jobs/{attempt.claim.job_id}/texts", "texts", b"not gzip").model_dump()
    post_step(attempt, 1, trajectory(0), texts=ref)
    path = f"/v1/jobs/{attempt.claim.job_id}/trajectories"
    damaged = service.person.get(path)
    assert (damaged.status_code, error_of(damaged)["code"]) == (500, "artefact_corrupt")
    store.delete_prefix(f"jobs/{attempt.claim.job_id}/texts")
    lost = service.person.get(path)
    assert (lost.status_code, error_of(lost)["code"]) == (404, "artefact_missing")
