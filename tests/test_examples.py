"""Every example can be submitted as it is."""

from pathlib import Path

import pytest

from powermean.cli.specs import load_spec

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: str(file.relative_to(ROOT)))
def test_an_example_is_a_valid_spec(file: Path) -> None:
    assert load_spec(file).training.minibatches >= 1


def test_the_main_job_takes_several_updates_per_rollout_batch() -> None:
    training = load_spec(ROOT / "examples/arithmetic-smollm2.yaml").training
    assert (training.minibatches, training.epochs) == (2, 2)


def test_the_form_for_a_new_job_starts_with_the_main_job() -> None:
    main_job = (ROOT / "examples/arithmetic-smollm2.yaml").read_text()
    assert (ROOT / "dashboard/starter.yaml").read_text() == main_job
