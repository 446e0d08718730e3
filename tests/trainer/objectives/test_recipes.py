"""The shipped recipes are jobs that the service would take."""

from pathlib import Path

import pytest
import yaml

from powermean.contracts.job import JobSpec
from trainer.objectives import build_algorithm

RECIPES = sorted((Path(__file__).parents[3] / "examples" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_valid_job(path: Path) -> None:
    spec = JobSpec.model_validate(yaml.safe_load(path.read_text()))
    assert spec.name == path.stem
    assert build_algorithm(spec.algorithm).name in spec.name
    # with one update per rollout batch all objectives are the same
    assert spec.training.minibatches * spec.training.epochs > 1


def test_there_are_recipes() -> None:
    assert RECIPES
