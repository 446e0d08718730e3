"""What a rank is told of its place."""

import pytest

from powermean.contracts.attempts import Claim
from powermean.contracts.job import JobSpec
from tests.support.tiny_spec import tiny_spec
from worker.attempt.heartbeat import between_beats
from worker.attempt.ranks import places
from worker.attempt.rendezvous import Meeting, RendezvousError, listen


def claim(node_rank: int, **resources: object) -> Claim:
    return Claim(
        attempt_id="job-1.1",
        job_id="job-1",
        number=1,
        node_rank=node_rank,
        spec=JobSpec.model_validate(tiny_spec("tiny", resources=resources)),
        allocations=(),
        token="",
        lease_s=60,
        beat_s=10,
    )


def test_ranks_are_numbered_through_all_nodes() -> None:
    found = [place.rank for node in range(3) for place in places(claim(node, nodes=3, gpus=4))]
    assert found == list(range(12))


def test_the_variables_are_torchrun_s() -> None:
    place = places(claim(1, nodes=2, gpus=4))[2]
    assert place.environment(Meeting("10.0.0.1", 4711)) == {
        "RANK": "6",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "2",
        "LOCAL_WORLD_SIZE": "4",
        "GROUP_RANK": "1",
        "GROUP_WORLD_SIZE": "2",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "4711",
    }


@pytest.mark.parametrize(("nodes", "seconds"), [(1, 10), (2, 2), (16, 2), (24, 3), (64, 8)])
def test_large_jobs_beat_less_often(nodes: int, seconds: float) -> None:
    told = claim(0, nodes=nodes)
    assert between_beats(told) == seconds
    assert between_beats(told.model_copy(update={"beat_s": 1})) == 1


def test_nobody_listens_on_all_interfaces() -> None:
    with pytest.raises(RendezvousError, match="POWERMEAN_NODE_ADDRESS is 0, which is not the address of one"):
        listen("0", 0)
