"""A sharded model is the plain one, spread: FSDP2 on four real ranks, joined by gloo."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.rank_crew import Crew, crew
from tests.trainer.ranks.sharding_cases import CASES, run_case
from trainer.ranks.meeting import Deadlines

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks() -> Iterator[Crew]:
    made = crew(4, Deadlines(call_s=60.0))
    yield made
    made.close()


@pytest.mark.parametrize("name", CASES)
def test_on_four_ranks(name: str, ranks: Crew, tmp_path: Path) -> None:
    assert ranks.have(run_case, name, tmp_path) == [""] * 4
