"""Old names over REST: they work, answers tell of them, and rows that were stored with them still read."""

import json
from typing import Any

import pytest
from sqlalchemy import select

from powermean.contracts.algorithms import Pmpo
from powermean.contracts.trajectories import TrajectoryRow
from powermean.deprecations import PATHS, SINCE
from server.db.models import Job, TrajectoryStep
from server.db.packing import pack, unpack_rows
from server.openapi import FILE
from tests.support.reports import trajectory
from tests.support.service_driver import ServiceDriver, error_of, example_spec

OLD_ALGORITHM = {"name": "pmpo", "sampler_weight": "token", "sampler_weight_cap": 3.0}
NEW_ALGORITHM = {
    "name": "pmpo",
    "importance_sampling_correction": "token",
    "importance_sampling_clip_max": 3.0,
}
OLD_ROW = {"token_weight": 1.5, "sequence_weight": 2.5, "sampler_weight": 1.25}
NEW_ROW = {
    "importance_sampling_ratio": 1.5,
    "sequence_importance_sampling_ratio": 2.5,
    "applied_importance_sampling_ratio": 1.25,
}
CORRECTION = {
    "path": "algorithm.sampler_weight",
    "replacement": "algorithm.importance_sampling_correction",
    "message": "algorithm.sampler_weight is now algorithm.importance_sampling_correction; "
    "the old name works until 1.0",
}


def stored_spec(service: ServiceDriver, job_id: str) -> dict[str, Any]:
    with service.database.read() as session:
        return session.get_one(Job, job_id).spec


def test_a_spec_under_old_names_is_accepted_and_told(service: ServiceDriver):
    answer = service.person.post("/v1/jobs", json=example_spec(algorithm=OLD_ALGORITHM))
    assert answer.status_code == 202
    told = answer.json()["deprecations"]
    assert [one["path"] for one in told] == ["algorithm.sampler_weight", "algorithm.sampler_weight_cap"]
    assert told[0] == CORRECTION
    assert "deprecation" not in answer.headers  # the resource is not deprecated
    shown = service.person.get(answer.headers["location"]).json()["spec"]["algorithm"]
    assert shown.items() >= (OLD_ALGORITHM | NEW_ALGORITHM).items()
    stored = stored_spec(service, answer.json()["id"])["algorithm"]
    assert stored.items() >= NEW_ALGORITHM.items()
    assert not stored.keys() & {"sampler_weight", "sampler_weight_cap"}


def test_new_names_and_answers_that_come_back_are_not_told(service: ServiceDriver):
    answer = service.person.post("/v1/jobs", json=example_spec(algorithm=NEW_ALGORITHM))
    assert answer.json()["deprecations"] == []
    again = service.person.post("/v1/jobs", json=answer.json()["spec"])
    assert (again.status_code, again.json()["deprecations"]) == (202, [])


def test_the_same_spec_under_either_name_is_the_same_submission(service: ServiceDriver):
    key = {"Idempotency-Key": "once"}
    first = service.person.post("/v1/jobs", json=example_spec(algorithm=OLD_ALGORITHM), headers=key)
    second = service.person.post("/v1/jobs", json=example_spec(algorithm=NEW_ALGORITHM), headers=key)
    assert (second.status_code, second.json()["id"]) == (200, first.json()["id"])
    assert second.json()["deprecations"] == []


@pytest.mark.parametrize(
    ("algorithm", "path"),
    [
        (OLD_ALGORITHM | {"sampler_weight": "group"}, "algorithm.sampler_weight"),
        (OLD_ALGORITHM | {"sampler_weights": "off"}, "algorithm.sampler_weights"),
        (OLD_ALGORITHM | NEW_ALGORITHM | {"sampler_weight": "off"}, "algorithm.sampler_weight"),
    ],
)
def test_mistakes_are_named_as_they_were_sent(service: ServiceDriver, algorithm: dict[str, Any], path: str):
    refused = service.person.post("/v1/jobs", json=example_spec(algorithm=algorithm))
    assert refused.status_code == 422
    assert [one["path"] for one in error_of(refused)["fields"]] == [path]


@pytest.mark.slow
@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
def test_a_body_that_is_no_json_is_still_the_callers_mistake(service: ServiceDriver, body: bytes, kind: str):
    refused = service.person.post("/v1/jobs", content=body, headers={"Content-Type": kind})
    assert refused.status_code in (400, 422)
    if (kind, body) == ("text/plain", b"{"):
        assert "Content-Type: application/json" in error_of(refused)["remedy"]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.old)
def test_an_old_path_answers_as_the_new_one_and_says_which_that_is(service: ServiceDriver, path):
    attempt = service.running()
    attempt.post("trajectories", {"step": 5, "rows": [trajectory(0, weight_version=2, **NEW_ROW)]})
    old, new = (one.format(job_id=attempt.claim.job_id) for one in (path.old, path.new))
    answer, current = service.person.get(old), service.person.get(new)
    assert answer.json() == current.json()
    assert answer.headers["deprecation"] == f"@{int(SINCE.timestamp())}"
    assert answer.headers["link"] == f'<{new}>; rel="successor-version"'
    assert not {"deprecation", "link"} & current.headers.keys()
    paths = json.loads(FILE.read_text())["paths"]  # which is the code's: see test_openapi.py
    assert paths[path.old]["get"]["deprecated"]
    assert "deprecated" not in paths[path.new]["get"]


@pytest.mark.slow
def test_answers_have_both_names(service: ServiceDriver):
    attempt = service.running()
    attempt.post("trajectories", {"step": 5, "rows": [trajectory(0, weight_version=2, **NEW_ROW)]})
    path = f"/v1/jobs/{attempt.claim.job_id}"
    one = service.person.get(f"{path}/trajectories/5/0").json()
    assert one.items() >= (OLD_ROW | NEW_ROW | {"lag": 2, "staleness": 2}).items()
    (row,) = service.person.get(f"{path}/staleness").json()["rows"]
    shared = {name: value for name, value in (OLD_ROW | NEW_ROW).items() if not name.startswith("sequence")}
    assert row.items() >= (shared | {"lag": 2, "staleness": 2}).items()


@pytest.mark.slow
def test_an_attempt_may_report_under_old_names(service: ServiceDriver):
    """One that was started before the server was replaced."""
    attempt = service.running()
    batch = {"step": 5, "rows": [trajectory(0, **OLD_ROW)]}
    assert attempt.post("trajectories", batch).status_code == 204
    seq = service.job(attempt.claim.job_id).seq
    repeated = {"step": 5, "rows": [trajectory(0, **NEW_ROW)]}
    assert attempt.post("trajectories", repeated).status_code == 204
    assert service.job(attempt.claim.job_id).seq == seq


def test_a_stored_spec_with_old_names_reads(service: ServiceDriver):
    job_id = service.submit(algorithm=NEW_ALGORITHM)
    spec = stored_spec(service, job_id)
    new = Pmpo.old_names.values()
    kept = {name: value for name, value in spec["algorithm"].items() if name not in new}
    with service.database.write() as session:
        session.get_one(Job, job_id).spec = spec | {"algorithm": kept | OLD_ALGORITHM}
    shown = service.job(job_id).spec.algorithm
    assert shown.model_dump().items() >= NEW_ALGORITHM.items()


@pytest.mark.slow
def test_a_stored_trajectory_with_old_names_reads(service: ServiceDriver):
    """Mixed with new ones: their means go over both."""
    attempt = service.running()
    rows = [trajectory(0, weight_version=4, **NEW_ROW), trajectory(1, weight_version=4, **NEW_ROW)]
    attempt.post("trajectories", {"step": 5, "rows": rows})
    with service.database.write() as session:
        found = session.scalars(select(TrajectoryStep)).one()
        first, second = unpack_rows(found.rows)
        kept = {k: v for k, v in second.items() if k not in TrajectoryRow.old_names.values()}
        found.rows = pack([first, kept | OLD_ROW | {"token_weight": 2.5}])
    path = f"/v1/jobs/{attempt.claim.job_id}"
    one = service.person.get(f"{path}/trajectories/5/1").json()
    assert one.items() >= (NEW_ROW | {"importance_sampling_ratio": 2.5}).items()
    (row,) = service.person.get(f"{path}/staleness").json()["rows"]
    assert (row["trajectories"], row["importance_sampling_ratio"]) == (2, 2.0)
    assert row["applied_importance_sampling_ratio"] == 1.25
