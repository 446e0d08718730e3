"""Generated requests, valid and not: no failure, and every answer is one that openapi.json declares."""

import os

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

from server.openapi import schema
from tests.support.service_driver import ADMIN_KEY, NODE_TOKEN

FUZZING = "POWERMEAN_FUZZ" in os.environ  # `make fuzz` sets how many requests an operation gets
EXAMPLES = int(os.environ.get("POWERMEAN_FUZZ", "6"))
CHECKED = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
]
NOTHING_TO_GENERATE = {"GET /healthz", "GET /readyz", "GET /v1/sign-in", "POST /v1/sessions/oidc"}
# An attempt that has ended leaves nothing to talk about; the stream of a running job never ends.
NOT_ON_THE_REAL_JOB = ("/finish", "/cancel", "/events")


@pytest.fixture
def kind() -> str:
    """What a node may send is decided before any database."""
    return "sqlite"


@pytest.fixture(scope="module")
def document():
    return schema()


@pytest.mark.slow
@pytest.mark.timeout(3600 if FUZZING else 300)  # thousands of requests, on a machine that others use too
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("real", [True, False], ids=["of the running job", "of anything"])
@pytest.mark.parametrize("role", ["admin", "maintainer", "member", "viewer", "auditor"])
def test_every_answer_is_a_declared_one(service, document, mode, real, role):
    attempt = service.running()
    loaded = schemathesis.openapi.from_dict(document)
    loaded.app = service.app
    ids = {"job_id": attempt.claim.job_id, "attempt_id": attempt.id, "project": "default"}
    person = ADMIN_KEY if role == "admin" else _key_of(service, role)
    asked, failures = 0, []
    for found in loaded.get_all_operations():
        operation = found.ok()
        named = [name for name in ids if f"{{{name}}}" in operation.path]
        schemes = [name for one in operation.definition.raw.get("security", []) for name in one]
        if operation.label in NOTHING_TO_GENERATE or (role != "admin" and "browser session" not in schemes):
            continue
        if real and (not named or operation.path.endswith(NOT_ON_THE_REAL_JOB)):
            continue
        secret = (
            attempt.token if schemes == ["attempt token"] else NODE_TOKEN if schemes == ["key"] else person
        )
        headers = {"Authorization": f"Bearer {secret}", "Host": "127.0.0.1"}
        examples = EXAMPLES if role == "admin" or FUZZING else 1
        try:
            asked += _converse(
                operation, mode, headers, {name: ids[name] for name in named} if real else {}, examples
            )
        except Exception as failure:  # noqa: BLE001 - all operations are tried, and all failures told
            failures.append(f"{operation.label}: {failure}")
    print(f"fuzzed: {asked} requests as {role}, {len(failures)} operations failed")
    assert failures == [], "\n\n".join(failures)


def _key_of(service, role):
    """The key of a new person: of the project `default`, or an auditor of all."""
    wanted = (
        {"name": role, "cluster_role": "auditor"}
        if role == "auditor"
        else {"name": role, "role": role, "project": "default"}
    )
    person = service.person.post("/v1/people", json=wanted).json()["id"]
    wanted = {"name": "fuzz", "role": "admin", "person_id": person}
    return service.person.post("/v1/keys", json=wanted).json()["key"]


def _converse(operation, mode, headers, ids, examples):
    """Send generated requests; how many."""
    checks = [CHECKS.get_one(name) for name in CHECKED]
    asked = 0

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=not FUZZING,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case):
        nonlocal asked
        asked += 1
        case.path_parameters = dict(case.path_parameters or {}) | ids
        case.cookies = {}
        answer = case.call(base_url="http://127.0.0.1", headers=headers)
        case.validate_response(answer, checks=checks)

    one()
    return asked
