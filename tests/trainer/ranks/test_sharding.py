"""A sharded model is the plain one, spread: FSDP2 on four real ranks, joined by gloo."""

import pytest

from tests.support.gloo_ranks import run_cases
from tests.trainer.ranks.sharding_cases import CASES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[str]]:
    return run_cases("tests.trainer.ranks.sharding_cases", 4)


@pytest.mark.parametrize("name", CASES)
def test_on_four_ranks(name: str, outcomes: dict[str, list[str]]) -> None:
    assert outcomes[name] == [""] * 4
