"""Every example can be submitted as it is."""

from pathlib import Path
from typing import get_args

import pytest

from powermean.cli.specs import load_spec
from powermean.contracts.algorithms import AlgorithmSpec

ROOT = Path(__file__).parent.parent
ALGORITHMS = get_args(get_args(AlgorithmSpec)[0])
EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: str(file.relative_to(ROOT)))
def test_an_example_is_a_valid_spec(file: Path) -> None:
    assert load_spec(file).training.minibatches >= 1


def test_every_algorithm_has_a_recipe_that_shows_its_own_fields() -> None:
    """Those that it shares (KL, sampler weights) stay at their defaults in all published recipes."""
    specs = {file.stem: load_spec(file) for file in sorted((ROOT / "examples/recipes").glob("*.yaml"))}
    kinds = {f"math-{kind.model_fields['name'].default}": kind for kind in ALGORITHMS}
    assert set(specs) == set(kinds)
    for name, spec in specs.items():
        assert type(spec.algorithm) is kinds[name]
        assert spec.name == name
        assert spec.algorithm.beta == 0
        # one update per rollout batch would show nothing of the clips and means that tell them apart
        assert spec.training.minibatches * spec.training.epochs >= 4


def test_the_main_job_takes_several_updates_per_rollout_batch() -> None:
    training = load_spec(ROOT / "examples/arithmetic-smollm2.yaml").training
    assert (training.minibatches, training.epochs) == (2, 2)


def test_the_form_for_a_new_job_starts_with_the_main_job() -> None:
    main_job = (ROOT / "examples/arithmetic-smollm2.yaml").read_text()
    assert (ROOT / "dashboard/starter.yaml").read_text() == main_job
