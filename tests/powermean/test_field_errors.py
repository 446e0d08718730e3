"""What is wrong with an input is said once, under the input's own path, with the name that was meant."""

from typing import Any

import pytest
from pydantic import ValidationError

from powermean.contracts.engines import EngineSpec
from powermean.contracts.job import JobSpec
from powermean.contracts.models import ModelSpec
from powermean.contracts.names import IN_WORDS, PRIORITY_NAME
from powermean.contracts.replays import OBJECTIVES
from powermean.field_errors import did_you_mean, field_errors

GOOD: dict[str, Any] = {
    "name": "x",
    "model": {"name": "a/b"},
    "data": {"kind": "arithmetic"},
    "training": {"steps": 2},
}
ALGORITHMS = ", ".join(OBJECTIVES)
TASK = {"operator": "+", "low": 0, "hihg": 3}


def told(contract: type, data: Any) -> list[str]:
    with pytest.raises(ValidationError) as wrong:
        contract.model_validate(data)  # type: ignore[attr-defined]
    found = field_errors(wrong.value.errors(), data, contract)
    return [f"{one.path}: {one.message}" + (f" ({one.remedy})" if one.remedy else "") for one in found]


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (
            {"algorithm": {"name": "pmop", "clip": 1}},
            [f"algorithm.name: unknown algorithm 'pmop': did you mean pmpo? (One of {ALGORITHMS}.)"],
        ),
        (
            {"data": {"kind": "arithmetics"}},
            [
                "data.kind: unknown data kind 'arithmetics': did you mean arithmetic? "
                "(One of arithmetic, jsonl.)"
            ],
        ),
        ({"data": {}}, ["data.kind: is missing (One of arithmetic, jsonl.)"]),
        (
            {"reward": {"kind": "x"}},
            ["reward.kind: unknown reward kind 'x' (One of exact_match, math_verify.)"],
        ),
        (
            {"algorithm": {"name": "pmpo", "clip_lo": 1}},
            ["algorithm.clip_lo: there is no such field: did you mean clip_low?"],
        ),
        ({"algoritm": {}}, ["algoritm: there is no such field: did you mean algorithm?"]),
        (
            {"model": {"name": "a/b", "lora": {"r": 8}}},
            [
                "model.lora.r: there is no such field (Fields here: rank, alpha, target_modules, dropout.)",
            ],
        ),
        (
            {"data": {"kind": "arithmetic", "tasks": [TASK]}},
            [
                "data.tasks.0.high: is missing",
                "data.tasks.0.hihg: there is no such field: did you mean high?",
            ],
        ),
        (
            {"rollout": {"sharing": "sharde"}},
            ["rollout.sharing: 'sharde' is not one of auto, own, shared: did you mean shared?"],
        ),
        ({"record": {"tokens": "al"}}, ["record.tokens: 'al' is not one of all, none: did you mean all?"]),
        (
            {"record": {"tokens": "8"}},
            ["record.tokens: '8' is not one of all, none; or: Input should be a valid integer"],
        ),
        (
            {"model": {"from": "job-1@last"}},
            [
                "model.from: String should match pattern '^job-[0-9a-z]+(@(best|0|[1-9][0-9]{0,6}))?$' "
                f"({ModelSpec.model_fields['from_'].description})"
            ],
        ),
        (
            {"training": {"steps": 0}},
            [
                "training.steps: Input should be greater than or equal to 1 (given: 0) "
                "(Rollout batches to train on.)"
            ],
        ),
        (
            {"rollout": {"group_size": 1}},
            [
                "rollout.group_size: Input should be greater than or equal to 2 (given: 1) "
                "(Completions per prompt (G); a group of 1 has no advantage.)"
            ],
        ),
        (
            {"algorithm": {"name": "grpo", "beta": -1.0}},
            [
                "algorithm.beta: Input should be greater than or equal to 0 (given: -1.0) "
                "(Weight of the KL to the initial model (k3, token mean).)"
            ],
        ),
        (
            {"priority": "Very High"},
            [f"priority: 'Very High' {IN_WORDS[PRIORITY_NAME]}"],
        ),
        ({"algorithm": "pmpo"}, ["algorithm: must be a mapping of fields to values"]),
        ({"optimizer": {"betas": [0.9]}}, ["optimizer.betas.1: is missing"]),
    ],
)
def test_a_mistake_is_said_once_in_the_inputs_words(change: dict[str, Any], wanted: list[str]) -> None:
    assert told(JobSpec, GOOD | change) == wanted


def test_json_that_was_not_sent_as_json_is_told_how_to_be_sent() -> None:
    for data in ('{"name": "x"}', b"name=x"):
        (said,) = told(JobSpec, data)
        assert said.startswith(
            ": must be a mapping of fields to values (Send a JSON object with Content-Type"
        )
    assert told(JobSpec, [1]) == [": must be a mapping of fields to values"]


def test_it_reads_other_contracts_too() -> None:
    spec = {"name": "e", "model": {"name": "a", "foldr": "b"}}
    assert told(EngineSpec, spec) == ["model.foldr: there is no such field: did you mean folder?"]


def test_what_is_long_is_neither_compared_nor_repeated_whole() -> None:
    assert did_you_mean("pmop" * 100_000, ["pmpo"]) == ""
    (found,) = told(JobSpec, GOOD | {"algorithm": {"name": "x" * 10_000}})
    assert len(found) < 250
