"""An update is the same however its trajectories are computed and in whatever order they come, in float64.

Nothing that is shared may be counted once too few or too often: a batch with duplicates and shared beginnings
is held, computed as trees, to one trajectory a pass; and to itself in another order.
"""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from powermean.contracts.algorithms import Pmpo
from powermean.contracts.models import LoraSpec
from tests.support.law_settings import at_most
from tests.support.update_records import ALGORITHMS, SIZE, Graded, assert_same, graded, recorded

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    """What a batch holds for the updates is of the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", ALGORITHMS)
@at_most(6)
@given(case=graded(), tokens=st.sampled_from([1, 8, 1000]))
def test_law_trees_give_an_update_what_one_trajectory_a_pass_gives(
    name: str, case: Graded, tokens: int
) -> None:
    plain = recorded(ALGORITHMS[name], case, 1, by_tree=False)
    assert_same(recorded(ALGORITHMS[name], case, tokens, by_tree=True), plain)


@pytest.mark.parametrize("name", ALGORITHMS)
@at_most(6)
@given(
    case=graded(),
    tokens=st.sampled_from([8, 1000]),
    groups=st.permutations(range(3)),
    within=st.permutations(range(SIZE)),
)
def test_law_the_order_of_groups_and_trajectories_changes_nothing(
    name: str, case: Graded, tokens: int, groups: list[int], within: list[int]
) -> None:
    expected = recorded(ALGORITHMS[name], case, tokens, by_tree=True)
    found = recorded(ALGORITHMS[name], case.permuted(groups, within), tokens, by_tree=True)
    rows = torch.tensor([group * SIZE + place for group in groups for place in within])
    by_row = {key for key, values in expected.items() if values.dim() and len(values) == len(rows)}
    assert {"entropy", "old log-probs", "1 p", "1 weight, by token"} <= by_row
    assert_same(found, {key: v[rows] if key in by_row else v for key, v in expected.items()})


@at_most(6)
@given(case=graded(), tokens=st.sampled_from([1, 1000]))
def test_law_an_adapters_updates_are_the_same_too(case: Graded, tokens: int) -> None:
    lora, spec = LoraSpec(rank=2, alpha=4), Pmpo()
    plain = recorded(spec, case, 1, by_tree=False, lora=lora)
    assert_same(recorded(spec, case, tokens, by_tree=True, lora=lora), plain)
