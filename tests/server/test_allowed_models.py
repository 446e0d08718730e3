"""The administrator's list of models, where jobs are submitted and engines declared."""

from collections.abc import Iterator

import pytest

from powermean.allowed_models import read_allowed_models
from server.settings import Settings
from tests.support.service_driver import ServiceDriver, example_spec


@pytest.fixture
def service(settings: Settings) -> Iterator[ServiceDriver]:
    allowed = read_allowed_models(f"tiny/*, team/*@{'a' * 40}")
    driver = ServiceDriver(settings.model_copy(update={"allowed_models": allowed}))
    yield driver
    driver.close()


@pytest.mark.parametrize(("name", "status"), [("tiny/model", 202), ("team/one", 202), ("other/model", 422)])
def test_a_job_names_a_model_of_the_list(service: ServiceDriver, name: str, status: int):
    answer = service.person.post("/v1/jobs", json=example_spec(model={"name": name}))
    assert answer.status_code == status
    if status == 422:
        (field,) = answer.json()["error"]["fields"]
        assert field["path"] == "model.name"
        assert "tiny/*" in field["remedy"]


def test_a_folder_is_under_the_roots_and_needs_no_list(service: ServiceDriver):
    assert service.person.post("/v1/jobs", json=example_spec(model={"folder": "any"})).status_code == 202


@pytest.mark.parametrize(("name", "status"), [("tiny/model", 201), ("other/model", 422)])
def test_so_does_an_engine(service: ServiceDriver, name: str, status: int):
    answer = service.person.post("/v1/engines", json={"name": "one", "model": {"name": name}})
    assert answer.status_code == status


@pytest.mark.parametrize("text", ["a b", "team/*@abc", "team/one@main", "a/b/c", "@" + "a" * 40])
def test_a_wrong_entry_is_named(text: str):
    with pytest.raises(ValueError, match="neither NAME nor NAME@COMMIT"):
        read_allowed_models(f"tiny/*, {text}")
