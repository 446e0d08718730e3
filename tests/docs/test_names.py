"""docs/notation.md names fields that exist, ours and TRL's; docs/pmpo.md has every algorithm."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from powermean.contracts.job import JobSpec
from powermean.contracts.replays import OBJECTIVES

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "notation.md").read_text()


def column(place: int) -> list[str]:
    """The names in a column of the table."""
    rows = re.findall(r"^\|.*\|$", PAGE.partition("| ours | TRL | verl |")[2], re.MULTILINE)[1:]
    assert len(rows) > 20
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row.strip("|").split("|")[place])]


def fields_of_the_spec() -> set[str]:
    parts: dict[str, Any] = {
        name: field.annotation
        for name, field in JobSpec.model_fields.items()
        if hasattr(field.annotation, "model_fields")
    }
    found = {f"{part}.{name}" for part, model in parts.items() for name in model.model_fields}
    found |= {f"algorithm.{name}" for model in OBJECTIVES.values() for name in model.model_fields}
    return found | set(JobSpec.model_fields)


def test_our_names_are_fields_of_the_spec() -> None:
    assert set(column(0)) <= fields_of_the_spec()


@pytest.mark.slow
def test_trls_names_are_fields_of_its_config() -> None:
    trl = pytest.importorskip("trl", reason="TRL is not installed (the `dev` extra): nothing to compare with")
    fields = {field.name for field in dataclasses.fields(trl.GRPOConfig)}
    assert {"num_generations", "num_iterations", "loss_type", "epsilon", "beta"} <= set(column(1)) <= fields


def test_every_algorithm_has_a_row_in_the_family() -> None:
    family = (DOCS / "pmpo.md").read_text().partition("## The family")[2].partition("\n## ")[0]
    heading, *rows = re.findall(r"^\| `(\w+)` \|", family, re.MULTILINE)
    assert heading == "name"
    assert set(rows) == set(OBJECTIVES)
