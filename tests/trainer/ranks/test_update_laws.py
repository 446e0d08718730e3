"""Several ranks give an update what one gives, in float64: numbers, gradients and weights."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import rank_jobs
from tests.support.law_settings import at_most
from tests.support.rank_crew import Crew
from tests.support.update_records import ALGORITHMS, Graded, assert_same, graded, recorded

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session", params=["two_ranks", "four_ranks"])
def ranks(request: pytest.FixtureRequest) -> Crew:
    found: Crew = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("name", ALGORITHMS)
@at_most(3)
@given(case=graded(), tokens=st.sampled_from([1, 8, 1000]))
def test_law_ranks_give_an_update_what_one_gives(ranks: Crew, name: str, case: Graded, tokens: int) -> None:
    with rank_jobs.float64():
        expected = recorded(ALGORITHMS[name], case, tokens, by_tree=True)
    first, *others = ranks.have(rank_jobs.updates, ALGORITHMS[name], case, tokens)
    assert_same(first, expected)
    for other in others:
        assert (other["weights"] == first["weights"]).all()
