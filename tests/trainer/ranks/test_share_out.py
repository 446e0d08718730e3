"""Trajectories are shared out once each, in order, and evenly."""

from hypothesis import given
from hypothesis import strategies as st

from trainer.ranks.share_out import share_out

costs = st.lists(st.integers(1, 1000) | st.floats(0.5, 1000), max_size=40)


@given(costs=costs, ranks=st.integers(1, 9))
def test_law_all_trajectories_once_in_order(costs: list[float], ranks: int) -> None:
    runs = share_out(costs, ranks)
    assert len(runs) == ranks
    assert [place for run in runs for place in run] == list(range(len(costs)))


@given(costs=costs, ranks=st.integers(1, 9))
def test_law_no_rank_has_more_than_the_mean_and_the_largest(costs: list[float], ranks: int) -> None:
    mean = sum(costs) / ranks
    for run in share_out(costs, ranks):
        assert sum(costs[place] for place in run) <= mean + max(costs, default=0) + 1e-6


@given(count=st.integers(1, 8), each=st.integers(1, 5), cost=st.integers(1, 100))
def test_law_equal_trajectories_give_equal_shares(count: int, each: int, cost: int) -> None:
    assert {len(run) for run in share_out([cost] * (count * each), count)} == {each}
