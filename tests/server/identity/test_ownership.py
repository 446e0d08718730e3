"""Whose the thing in a path is, for many at once."""

import asyncio

import pytest

from server.identity.ownership import Named, NamedThings
from tests.support.service_driver import ServiceDriver


def test_whoever_names_things_at_once_is_told_of_their_own(service: ServiceDriver):
    jobs = [service.submit() for _ in range(3)]
    owner = service.job(jobs[0]).created_by
    things: NamedThings = service.app.state.named_things
    wanted = [{"job_id": one} for one in (*jobs, jobs[0], "job-none")]
    wanted += [{"project": "default"}, {"project": jobs[1]}, {"dataset_id": jobs[2]}]

    async def find_all() -> list[Named | None]:
        return await asyncio.gather(*map(things.find, wanted))

    assert asyncio.run(find_all()) == [
        *(Named("job", one, "default", owner) for one in (*jobs, jobs[0])),
        Named("job", "job-none"),
        Named("project", "default", "default"),
        Named("project", jobs[1]),
        Named("dataset", jobs[2]),
    ]


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize("parameters", [{}, {"path": "a"}, {"job_id": "a\0b"}, {"job_id": "\udc80"}])
def test_no_name_that_the_database_may_refuse_comes_between_others(service: ServiceDriver, parameters):
    assert asyncio.run(service.app.state.named_things.find(parameters)) is None
