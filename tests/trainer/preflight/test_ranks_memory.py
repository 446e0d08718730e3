"""What two real ranks hold of a sharded model is what the estimate says."""

import importlib.util
from collections.abc import Iterator

import pytest

from tests.support.extras import WITHOUT_TORCHAO
from tests.support.rank_crew import Crew, crew
from tests.trainer.preflight.memory_cases import CASES, IN_8_BITS, run_case
from trainer.ranks.meeting import Deadlines

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks() -> Iterator[Crew]:
    made = crew(2, Deadlines(call_s=60.0))
    yield made
    made.close()


@pytest.mark.parametrize("name", CASES)
def test_on_two_ranks(name: str, ranks: Crew) -> None:
    if name == IN_8_BITS and importlib.util.find_spec("torchao") is None:
        pytest.skip(WITHOUT_TORCHAO)
    assert ranks.have(run_case, name) == ["", ""]
