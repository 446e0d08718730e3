"""Postgres stores no NUL in text: whoever sends one gets an answer, not a failure."""

import pytest

from tests.support.reports import trajectory


@pytest.mark.parametrize(
    "path",
    [
        "/v1/jobs/%00",
        "/v1/jobs/%00/metrics?name=%00",
        "/v1/jobs/%00/logs",
        "/v1/jobs/%00/files/%00",
        "/v1/jobs?name=%00",
        "/v1/jobs?created_by=%00",
        "/v1/datasets/%00",
        "/v1/engines/%00",
    ],
)
def test_in_addresses(service, path):
    assert service.person.get(path).status_code == 400


def test_in_bodies(service):
    attempt = service.running()
    rows = [trajectory(0, problem="a\0b", grader_error="\0", reward_parts={"c\0d": 1.0})]
    assert attempt.post("trajectories", {"step": 1, "rows": rows}).status_code == 204
    assert attempt.post("logs", {"offset": 0, "text": "a\0b"}).status_code == 204
    assert attempt.beat("a\0b").status_code in (200, 422)
    assert service.person.post("/v1/keys", json={"name": "\0"}).status_code == 422
    assert service.person.post("/v1/sessions", json={"key": "\0"}).status_code == 401
    assert service.person.post("/v1/datasets", content=b'{"a\\u0000": "\\u0000"}').status_code in (201, 422)
    engine = {"name": "e", "model": {"folder": "a\0b"}}
    assert service.person.post("/v1/engines", json=engine).status_code == 201
    said = {"id": "engine-1", "generation": 1, "state": "failed", "error": {"code": "x", "message": "\0"}}
    service.report(services=(said,))
    assert len(service.person.get("/v1/engines").json()["items"]) == 1
    shown = service.person.get(f"/v1/jobs/{attempt.claim.job_id}/trajectories?sort=p")
    assert shown.json()["items"][0]["problem"] == "a\ufffdb"
    assert shown.json()["items"][0]["reward_parts"] == {"c\ufffdd": 1.0}
