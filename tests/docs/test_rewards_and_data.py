"""The examples of docs/rewards-and-data.md come out as the page says, and every kind has one."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import TypeAdapter

from powermean.contracts.data import ArithmeticSource, DataSpec, JsonlSource
from powermean.contracts.jsonl import render
from powermean.contracts.rewards import RewardSpec
from trainer.data import open_source
from trainer.rewards.grading import Grade
from trainer.rewards.isolation import open_grader

PAGE = (Path(__file__).parents[2] / "docs" / "rewards-and-data.md").read_text()
REWARDS = re.findall(r"```yaml\n(reward:[^`]*)```\n((?:\|.*\n)+)", PAGE)
SOURCES = [yaml.safe_load(text)["data"] for text in re.findall(r"```yaml\n(data:[^`]*)```", PAGE)]


def kinds(union: Any) -> set[str]:
    return {model.model_fields["kind"].default for model in get_args(get_args(union)[0])}


def cells(row: str) -> list[str]:
    return [cell.strip().strip("`").replace("⏎", "\n") for cell in row.strip("|").split("|")]


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "table"), REWARDS)
def test_a_reward_grades_as_shown(spec: str, table: str) -> None:
    heading, _, *rows = [cells(row) for row in table.splitlines()]
    assert heading == ["completion", "answer", "reward"]
    with open_grader(TypeAdapter(RewardSpec).validate_python(yaml.safe_load(spec)["reward"])) as grader:
        grades = grader.grade([(completion, answer) for completion, answer, _ in rows])
    assert grades == [Grade(float(reward)) for *_, reward in rows]


def test_every_kind_has_an_example() -> None:
    assert {yaml.safe_load(spec)["reward"]["kind"] for spec, _ in REWARDS} == kinds(RewardSpec)
    assert {source["kind"] for source in SOURCES} == kinds(DataSpec)


def test_a_template_becomes_the_prompt_shown() -> None:
    (source,) = [JsonlSource.model_validate(data) for data in SOURCES if data["kind"] == "jsonl"]
    (row,) = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]
    (prompt,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    assert render(source.prompt, row) == prompt
    assert row[source.answer_field] == "1/2"


def test_the_mix_of_tasks_is_as_said() -> None:
    (spec,) = [ArithmeticSource.model_validate(data) for data in SOURCES if data["kind"] == "arithmetic"]
    source = open_source(spec, None)
    problems = [problem for step in range(1, 101) for problem in source.batch(step, 10, seed=0)]
    products = sum("*" in problem.id for problem in problems)
    assert products / len(problems) == pytest.approx(2 / 3, abs=0.06)
    assert problems[0].prompt.startswith("What is ")
