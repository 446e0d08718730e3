"""How ranks hold a model, from numbers alone."""

import pytest

from powermean.contracts.job import JobSpec
from tests.support.tiny_spec import tiny_spec
from trainer.ranks.sharding import Layout, held_bytes, layout
from trainer.ranks.turns import turns
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


@pytest.mark.parametrize(
    ("trained", "changes", "expected"),
    [
        (256, {}, 16 * 256),
        (256, {"algorithm": {"name": "pmpo", "beta": 0.1}}, 20 * 256),
        (256, {"training": {"steps": 1, "weights": "bfloat16"}}, 18 * 256),
        (256, {"optimizer": {"state": "8bit"}}, 8 * 256 + 2 * (256 + 4)),
        (16, {}, 4 * 256 + 12 * 16),
        (16, {"training": {"steps": 1, "weights": "bfloat16"}}, 2 * 256 + 16 * 16),
    ],
)
def test_a_model_takes_what_its_numbers_are_kept_as(
    trained: int, changes: dict[str, object], expected: int
) -> None:
    """16 bytes where all is float32 and all is trained."""
    spec = JobSpec.model_validate(
        tiny_spec("tiny", **{"model": {"folder": "tiny", "dtype": "bfloat16"}} | changes)
    )
    assert held_bytes(spec, 256, trained) == expected


@pytest.mark.parametrize(
    ("local", "needed", "free", "expected"),
    [
        (8, 10, 100, 1),
        (8, 10, 99, 2),
        (8, 10, 40, 3),
        (8, 10, 12, 8),
        (8, 10, 1, 8),
        (8, 10, None, 1),
        (1, 9, 1, 1),
    ],
)
def test_ranks_load_at_once_where_the_host_has_room(
    local: int, needed: int, free: int | None, expected: int
) -> None:
    assert turns(local, needed, free) == expected
