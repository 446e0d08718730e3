"""docs/figures.py still draws what docs/pmpo.md shows."""

from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import pytest

from docs.figures import FIGURES, FOLDER, STYLE

PAGE = (Path(__file__).parents[2] / "docs" / "pmpo.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_drawn_and_small(name: str) -> None:
    with mpl.rc_context(STYLE):
        file = BytesIO()
        FIGURES[name]().savefig(file)
    assert file.getvalue().startswith(b"\x89PNG")
    assert len(file.getvalue()) < 120_000


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_committed_and_described(name: str) -> None:
    assert (FOLDER / f"{name}.png").is_file()
    before, link, _ = PAGE.partition(f"](images/{name}.png)")
    assert link, "docs/pmpo.md does not show it"
    assert len(before.rpartition("![")[2]) > 100, "docs/pmpo.md shows it without saying what is to be seen"
