"""What two real ranks hold of a sharded model is what the estimate says."""

import pytest

from tests.support.gloo_ranks import run_cases
from tests.trainer.preflight.memory_cases import CASES

MODULE = "tests.trainer.preflight.memory_cases"


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[str]]:
    return run_cases(MODULE, 2)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_ranks(case: str, outcomes: dict[str, list[str]]) -> None:
    assert outcomes[case] == ["", ""]
