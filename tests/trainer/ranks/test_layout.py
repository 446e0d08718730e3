"""How ranks hold a model, from numbers alone."""

import pytest

from trainer.ranks.sharding import Layout, held_bytes, layout
from trainer.ranks.world import World

GIB = 1 << 30
ONE, NODE, NODES, SINGLES = World(), World(0, 8, 0, 8), World(0, 32, 0, 8), World(0, 4, 0, 1)


@pytest.mark.parametrize(
    ("wanted", "world", "needed", "expected"),
    [
        ("auto", ONE, 900, "replicate"),
        ("auto", NODE, 40, "replicate"),
        ("auto", NODE, 60, "shard"),
        ("auto", NODES, 40, "replicate"),
        ("auto", NODES, 300, "hybrid"),
        ("auto", NODES, 900, "shard"),  # more than a node has
        ("auto", SINGLES, 60, "shard"),  # a rank on each node: there is nothing to shard within
        ("replicate", NODE, 900, "replicate"),
        ("shard", NODES, 1, "shard"),
        ("shard", ONE, 1, "replicate"),
        ("hybrid", NODES, 1, "hybrid"),
        ("hybrid", NODE, 1, "shard"),
        ("hybrid", SINGLES, 1, "shard"),
    ],
)
def test_what_fits_is_replicated_and_the_rest_is_sharded_over_as_little_as_holds_it(
    wanted: str, world: World, needed: int, expected: Layout
) -> None:
    assert layout(wanted, world, needed * GIB, 80 * GIB) == expected


def test_a_model_takes_16_bytes_a_number_that_is_trained() -> None:
    assert held_bytes(10, 10, reference=False) == 160
    assert held_bytes(10, 10, reference=True) == 200
    assert held_bytes(10, 1, reference=False) == 52
