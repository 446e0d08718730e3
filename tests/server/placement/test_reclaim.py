"""Who gives way for whom, and who does not."""

import random

import pytest

from benchmarks.placement_cluster import Cluster, Work
from server.placement.fit import Request
from server.placement.plan import plan
from server.placement.reclaim import Victims
from server.placement.state import ClusterState, Rules, RunningJob, Share, WaitingJob
from tests.support.clusters import job, node, planned, runs, stopped

ZONE = (("zone", "b"),)


def test_what_a_stop_leaves_over_is_no_room_for_jobs_that_the_node_can_not_hold():
    """`n1` has one GPU left over, and another borrower to take one from, but not the label."""
    nodes = [node("n1", 10, 0), node("n2", 4, 0, labels=frozenset(ZONE))]
    running = [
        runs("large", "b", "n1", tuple(range(8)), saved_at=100.0),
        runs("small", "b", "n1", (8, 9)),
        runs("zoned", "b", "n2", (0, 1)),
        runs("own", "a", "n2", (2, 3)),
    ]
    waiting = [
        job("first", 2, labels=ZONE, queued_at=1.0),
        job("second", 7, queued_at=2.0),
        job("third", 2, labels=ZONE, queued_at=3.0),
    ]
    shares = {"a": Share(gpu_quota=14)}
    _, made = planned(nodes, waiting, running=running, shares=shares)
    assert stopped(made) == ["zoned", "large"]
    assert made.why["third"].kept == ("n2",)


def test_a_gang_may_give_way_while_one_of_its_nodes_is_silent():
    """What it holds on the node that isn't there is no room for anybody, and no more than that."""
    gang = RunningJob("gang", "b", (("n1", ("n1-0", "n1-1")), ("silent", ("silent-0",))))
    _, made = planned([node("n1", 2, 0)], [job("owner")], running=[gang], shares={"a": Share(gpu_quota=1)})
    assert (stopped(made), made.why["owner"].kept) == (["gang"], ("n1",))


def owners_return(seed: int) -> ClusterState:
    """Half of the projects have borrowed what the others now claim."""
    chance = random.Random(seed)
    shares = {f"p{number}": Share(gpu_quota=8) for number in range(10)}
    cluster = Cluster(shares, Rules())
    for number in range(10):
        cluster.add_node(f"n{number}", 8)
    for number in range(200):
        if number == 50:
            cluster.carry_out(plan(cluster.state()))
            cluster.waiting.clear()
            cluster.now += 1000.0
        project = f"p{chance.randrange(5 if number < 50 else 10)}"
        priority, value = chance.choice([("low", -100), ("normal", 0), ("high", 100)])
        size = chance.choice([1, 1, 2, 4, 8])
        cluster.submit(Work(f"job-{number:03}", project, size, 1.0, priority=priority, value=value))
    return cluster.state()


@pytest.mark.parametrize("seed", [1, 5, 15])
def test_what_is_remembered_of_prices_changes_no_plan(seed: int, monkeypatch: pytest.MonkeyPatch):
    """The second plan looks at every node each time that somebody has to give way."""

    def look_everywhere(
        self: Victims, job: WaitingJob, request: Request, guaranteed: bool, own: tuple[str, int] | None
    ) -> tuple[tuple[str, ...], list[RunningJob]] | None:
        offers = {node_id: self._offer(job, request, node_id, guaranteed) for node_id in request.possible}
        prices = [self._price(node_id, offer) for node_id, offer in offers.items() if offer]
        return ((node_id := min(prices)[-1],), offers[node_id] or []) if prices else None

    state = owners_return(seed)
    made = plan(state)
    assert made.stops
    monkeypatch.setattr(Victims, "_first", look_everywhere)
    assert plan(state) == made
