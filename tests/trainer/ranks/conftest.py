"""Ranks that several modules use."""

from collections.abc import Iterator

import pytest

from tests.support.rank_crew import Crew, crew


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Crew]:
    made = crew(2)
    yield made
    made.close()


@pytest.fixture(scope="session")
def four_ranks() -> Iterator[Crew]:
    made = crew(4)
    yield made
    made.close()
