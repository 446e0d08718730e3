"""docs/scale.md shows what benchmarks/scale.py computes now."""

from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks import scale
from benchmarks.scale_figure import draw
from benchmarks.scale_simulation import SIZES, simulate

pytestmark = pytest.mark.slow


def test_the_page_is_up_to_date(tmp_path: Path) -> None:
    """`python benchmarks/scale.py` writes it, and the figure."""
    assert scale.page() == scale.PAGE.read_text()
    draw([simulate(name, gpus) for name in SIZES for gpus in SIZES[name]], tmp_path / "scale.svg")
    assert (tmp_path / "scale.svg").read_text() == scale.FIGURE.read_text()


def test_more_gpus_never_take_longer_and_never_do_better_than_their_number() -> None:
    for name, sizes in SIZES.items():
        steps = [simulate(name, gpus) for gpus in sizes]
        for one, other in pairwise(steps):
            assert one.total > other.total > one.total / 2


def test_the_measured_ranks_took_one_step() -> None:
    """Norms agree, replicas send 2 (n - 1) copies of the weights, shards 4 (n - 1), and hold their part."""
    for cells in (line.split("|")[1:-1] for line in scale.measured_table().splitlines()[2:]):
        ranks, how, _, copies, held, _, norm = (cell.strip() for cell in cells)
        others = int(ranks) - 1
        assert float(copies) == pytest.approx((4 if how == "shard" else 2) * others, rel=0.01)
        assert float(norm) == pytest.approx(0.552755, rel=1e-5)
        assert float(held) == pytest.approx(63.0 / (int(ranks) if how == "shard" else 1), rel=0.01)
