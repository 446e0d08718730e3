"""A query parameter that an address doesn't have is refused, and said what is known there."""

import pytest

from server.routes.api import api_routes
from tests.support.service_driver import ServiceDriver, error_of


@pytest.fixture
def kind() -> str:
    return "sqlite"


LISTS = sorted(route.path for route in api_routes() if "GET" in route.methods and "{" not in route.path)


@pytest.mark.parametrize("path", [path for path in LISTS if path.startswith("/v1/")])
def test_every_list_refuses_what_it_does_not_have(service: ServiceDriver, path: str):
    answer = service.person.get(path, params={"offsett": "3"})
    if answer.status_code == 403:
        pytest.skip("not for this caller")
    assert answer.status_code == 422
    assert [field["path"] for field in error_of(answer)["fields"]] == ["offsett"]


def test_what_is_known_is_named(service: ServiceDriver):
    (field,) = error_of(service.person.get("/v1/jobs?limti=3"))["fields"]
    assert field["message"] == "there is no such parameter: did you mean limit?"
    assert "Parameters here: " in field["remedy"]
    assert "cursor" in field["remedy"]
    (field,) = error_of(service.person.get("/v1/nodes?a=1"))["fields"]
    assert field["remedy"] == "This address takes none."


def test_an_older_offset_is_not_taken_for_the_first_page(service: ServiceDriver):
    assert service.person.get("/v1/datasets?offset=50").status_code == 422
    assert service.person.get("/v1/datasets?limit=50").status_code == 200


def test_the_answer_is_short_however_many_there_are(service: ServiceDriver):
    answer = service.person.get("/v1/jobs", params={f"{'x' * 100}{number}": 1 for number in range(300)})
    assert answer.status_code == 422
    assert len(answer.content) < 10_000


def test_strangers_learn_no_parameters(service: ServiceDriver):
    assert service.client("pm_unknown").get("/v1/jobs?a=1").status_code == 401
