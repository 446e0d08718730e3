"""The committed schema is the code's, and says what a client needs."""

import pytest

from server.openapi import FILE, as_text, schema

OPEN = {
    ("/healthz", "get"),
    ("/readyz", "get"),
    ("/v1/sign-in", "get"),
    ("/v1/sessions", "post"),
    ("/v1/sessions/oidc", "post"),
    ("/v1/device-codes", "post"),
    ("/v1/device-codes/claim", "post"),
}


@pytest.fixture(scope="module")
def document():
    return schema()


def operations(document):
    return [(path, verb, op) for path, verbs in document["paths"].items() for verb, op in verbs.items()]


@pytest.mark.slow
def test_the_committed_schema_is_in_step(document):
    assert FILE.read_text() == as_text(document), "run `python -m server.openapi` and commit openapi.json"


@pytest.mark.slow
def test_every_operation_says_what_it_does_and_how_it_refuses(document):
    for path, verb, operation in operations(document):
        assert operation["summary"], (path, verb)
        assert operation["description"], (path, verb)
        for status, answer in operation["responses"].items():
            if status >= "400":
                reference = answer["content"]["application/json"]["schema"]["$ref"]
                assert reference == "#/components/schemas/ErrorResponse", (path, verb, status)


@pytest.mark.slow
def test_everything_but_health_and_sign_in_needs_a_credential(document):
    unprotected = {
        (path, verb) for path, verb, operation in operations(document) if not operation.get("security")
    }
    assert unprotected == OPEN
