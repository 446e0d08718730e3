"""Generated requests, valid and not: no failure, and every answer is one that openapi.json declares."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

from server.openapi import schema
from tests.support.service_driver import ADMIN_KEY, NODE_TOKEN

EXAMPLES = 6
CHECKED = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
]
NOTHING_TO_GENERATE = {"GET /healthz", "GET /readyz"}
# An attempt that has ended leaves nothing to talk about; the stream of a running job never ends.
NOT_ON_THE_REAL_JOB = ("/finish", "/cancel", "/events")


@pytest.fixture
def kind() -> str:
    """What a node may send is decided before any database."""
    return "sqlite"


@pytest.fixture(scope="module")
def document():
    return schema()


def credential(operation, attempt):
    """The operation's own: a person's key, the node's token or the attempt's."""
    schemes = [name for one in operation.definition.raw.get("security", []) for name in one]
    if schemes == ["attempt token"]:
        return attempt.token
    return NODE_TOKEN if schemes == ["key"] else ADMIN_KEY


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("real", [True, False], ids=["of the running job", "of anything"])
def test_every_answer_is_a_declared_one(service, document, mode, real):
    attempt = service.running()
    loaded = schemathesis.openapi.from_dict(document)
    loaded.app = service.app
    ids = {"job_id": attempt.claim.job_id, "attempt_id": attempt.id}
    checks = [CHECKS.get_one(name) for name in CHECKED]

    for found in loaded.get_all_operations():
        operation = found.ok()
        named = [name for name in ids if f"{{{name}}}" in operation.path]
        if operation.label in NOTHING_TO_GENERATE:
            continue
        if real and (not named or operation.path.endswith(NOT_ON_THE_REAL_JOB)):
            continue
        headers = {"Authorization": f"Bearer {credential(operation, attempt)}", "Host": "127.0.0.1"}
        _converse(operation, mode, headers, {name: ids[name] for name in named} if real else {}, checks)


def _converse(operation, mode, headers, ids, checks):
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case):
        case.path_parameters = dict(case.path_parameters or {}) | ids
        case.cookies = {}
        answer = case.call(base_url="http://127.0.0.1", headers=headers)
        case.validate_response(answer, checks=checks)

    one()
