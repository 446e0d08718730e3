"""The list of jobs in its orders: pages put together are the whole list, whatever the order."""

import base64
import json
from typing import get_args

import pytest
from sqlalchemy import update

from powermean.contracts.api import JobSort
from server.db.models import Job
from tests.support.reports import next_attempt, post_rows, row
from tests.support.service_driver import error_of, example_spec

NAMES = ["b", "A", "b", "c", "a", "B", "d"]
REWARDS = [0.5, None, 0.25, 0.5, None, 0.75, 0.5]


@pytest.fixture
def jobs(service):
    """Seven jobs of two owners, the oldest first."""
    bea = service.someone(name="Bea")
    ids = []
    for number, name in enumerate(NAMES):
        person = bea if number % 2 else service.person
        ids.append(person.post("/v1/jobs", json=example_spec(name=name)).json()["id"])
    with service.database.write() as session:
        for job_id, reward in zip(ids, REWARDS, strict=True):
            session.execute(update(Job).where(Job.id == job_id).values(last_reward=reward, held_out=reward))
        session.execute(update(Job).where(Job.id == ids[2]).values(state="failed"))
    return ids


def pages(service, **query):
    found, cursor = [], None
    while True:
        page = service.person.get("/v1/jobs", params=query | ({"cursor": cursor} if cursor else {})).json()
        found += page["items"]
        cursor = page["next"]
        if cursor is None:
            return found


@pytest.mark.parametrize("sort", get_args(JobSort))
def test_pages_of_an_order_are_the_whole_list_in_that_order(service, jobs, sort):
    found = pages(service, sort=sort, limit=2)
    assert found == pages(service, sort=sort)
    assert sorted(job["id"] for job in found) == jobs
    field, descending = sort.removeprefix("-"), sort.startswith("-")
    field = {"created": "created_at", "reward": "last_reward"}.get(field, field)
    values = [job[field] for job in found if job[field] is not None]
    assert [job[field] for job in found[len(values) :]] == [None] * (len(found) - len(values))
    if field == "state":  # in the order of a job's life
        assert values == (["failed"] + ["validating"] * 6 if descending else ["validating"] * 6 + ["failed"])
        return
    by_case = [value.lower() if isinstance(value, str) else value for value in values]
    assert by_case == sorted(by_case, reverse=descending)


def test_filters_hold_on_every_page(service, jobs):
    found = pages(service, sort="name", name="B", limit=1)
    assert [job["name"].lower() for job in found] == ["b", "b", "b"]
    bea = next(job["created_by"] for job in found if job["owner"] == "Bea")
    assert {job["owner"] for job in pages(service, created_by=bea, limit=2)} == {"Bea"}


@pytest.mark.parametrize(
    "cursor",
    [
        "%%%", "e30", ["name", "x", "job-1"], ["reward", "x", "job-1"], ["reward", 1.0, 5], ["reward", 1.0],
        ["reward", [1], "job-1"], ["reward", 1.0, "job-\0"], ["reward", 1.0, "\ud800"], "[" * 900,
    ],
)  # fmt: skip
def test_a_cursor_that_is_not_of_this_order_is_refused(service, jobs, cursor):
    text = (
        cursor if isinstance(cursor, str) else base64.urlsafe_b64encode(json.dumps(cursor).encode()).decode()
    )
    answer = service.person.get("/v1/jobs", params={"sort": "reward", "cursor": text})
    assert answer.status_code == 422
    assert error_of(answer)["fields"][0]["path"] == "cursor"


def shown(service) -> dict[str, object]:
    (job,) = service.person.get("/v1/jobs").json()["items"]
    names = ("last_reward", "last_p", "last_p_defined", "last_p_undefined", "held_out_before", "held_out")
    return {name: job[name] for name in names}


def test_the_list_shows_a_job_s_newest_results(service):
    attempt = service.running()
    post_rows(attempt, row(0, "eval/reward", 0.25))
    post_rows(attempt, row(1), row(1, "p/mean", 1.0, update=0), row(1, "p/mean", 0.75, update=1))
    post_rows(attempt, row(1, "eval/reward", 0.5))
    job = shown(service)
    assert (job["last_p"], job["held_out_before"], job["held_out"]) == (0.75, 0.25, 0.5)
    post_rows(attempt, row(2), *pooled(2, 0.5, 8, 56))
    job = shown(service)
    assert (job["last_p"], job["last_p_defined"], job["last_p_undefined"]) == (0.5, 8, 56)


def pooled(step: int, p: float, defined: int, undefined: int) -> list[dict[str, object]]:
    """Numbers of a step's last pass."""
    named = {"mean": p, "defined": defined, "undefined": undefined}
    return [row(step, f"p/last_pass/{name}", value) for name, value in named.items()]


@pytest.mark.slow
def test_a_restart_takes_back_what_no_longer_counts(service):
    first = service.running(evaluation={"every": 2})
    post_rows(first, row(0, "eval/reward", 0.1), row(1, value=0.1))
    post_rows(first, row(2, value=0.2), row(2, "eval/reward", 0.2), *pooled(2, 0.75, 3, 1))
    post_rows(first, row(3, value=0.3))  # all rewards of a group are equal: there is no p
    first.commit(3)
    before = shown(service)
    post_rows(first, row(4, value=0.9), row(4, "eval/reward", 0.9), *pooled(4, 0.25, 1, 3))
    assert shown(service) != before
    next_attempt(service, first)
    assert before["held_out"] == 0.2
    assert shown(service) == before


@pytest.mark.slow
def test_a_restart_from_the_start_has_nothing_to_show(service):
    first = service.running()
    post_rows(first, row(0, "eval/reward", 0.1), row(1), *pooled(1, 0.75, 3, 1))
    next_attempt(service, first)
    assert set(shown(service).values()) == {None}
