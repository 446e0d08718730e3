"""benchmarks/learning.py: a run does what the arm says, the task grades rightly, the statistics are sound."""

import json
from math import isclose
from pathlib import Path

import pytest
import torch
from learning import pending, seeds
from learning_arms import ARMS, CONDITIONS, Condition
from learning_report import RAW_RESULTS, bootstrap, differences, read_records, tables
from learning_run import Plan, train
from learning_task import Task, problems, rewards, solutions, untrained

from trainer.objectives import build_algorithm
from trainer.objectives.surrogates import ConstantClip, PowerMeanSurrogate

MICRO = Plan(
    task=Task(length=6, alphabet=8, hidden=16, layers=1), steps=2, prompts=4, group_size=4, held_out=4
)
BY_NAME = {arm.name: arm for arm in ARMS}


def run(arm: str, condition: Condition = CONDITIONS[0]) -> dict[str, object]:
    torch.manual_seed(0)
    return train(untrained(MICRO.task), MICRO, BY_NAME[arm], condition, seed=0)


def test_the_reward_is_the_share_before_the_first_mistake() -> None:
    prompts = problems(MICRO.task, 3, torch.Generator().manual_seed(0))
    answers = solutions(prompts)
    answers[1, 4] = 0
    answers[2, 0] = 0
    assert rewards(answers, prompts).tolist() == [1.0, 4 / 6, 0.0]


@pytest.mark.slow
def test_arms_share_the_first_rollouts_and_the_token_budget_and_differ_in_p() -> None:
    arithmetic, geometric = run("grpo"), run("gmpo")
    assert arithmetic["curve"][0] == geometric["curve"][0]
    assert arithmetic["tokens"] == geometric["tokens"] == 2 * 16 * 6
    assert (arithmetic["p"], geometric["p"]) == (1.0, 0.0)
    assert arithmetic["distance_to_grpo"] == 0.0
    assert isclose(geometric["distance_to_grpo"], 1.0)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run() -> None:
    assert run("pmpo-f1-0.1") == run("pmpo-f1-0.1")


@pytest.mark.slow
def test_stale_rollouts_are_those_of_older_weights() -> None:
    fresh, stale = run("grpo"), run("grpo", Condition("late", 2, 2, lag=2))
    assert fresh["curve"][0] == stale["curve"][0]  # both sampled by the start
    assert fresh["ess_at_1"] != stale["ess_at_1"]


def test_arms_compared_at_one_clip_range_have_it() -> None:
    bounds = set()
    for arm in ARMS:
        surrogate = build_algorithm(arm.spec).surrogate
        assert isinstance(surrogate, PowerMeanSurrogate)
        assert isinstance(surrogate.clip, ConstantClip)
        if "shared" in arm.shown:
            bounds.add((round(surrogate.clip.bounds.low, 12), round(surrogate.clip.bounds.high, 12)))
    assert len(bounds) == 1


def test_recipes_are_the_catalogues_defaults() -> None:
    recipes = [arm.spec for arm in ARMS if "recipe" in arm.shown]
    assert {spec.name for spec in recipes} == {"grpo", "gmpo", "pmpo", "holder"}
    assert all(spec == type(spec)() for spec in recipes)


def test_the_bootstrap_interval_holds_the_mean_and_shrinks_with_the_spread() -> None:
    wide, narrow = bootstrap([0.0, 1.0] * 5), bootstrap([0.45, 0.55] * 5)
    assert wide.low < wide.mean == 0.5 < wide.high
    assert isclose((wide.high - wide.low) / (narrow.high - narrow.low), 10, rel_tol=1e-6)
    same = bootstrap([0.25] * 10)
    assert same.low == same.mean == same.high == 0.25


def test_a_broken_off_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "runs.jsonl"
    record = run("grpo") | {"held_out_before": {}}
    out.write_text(json.dumps(record) + "\n")
    left = pending(read_records(out), seeds("0-1"))
    assert len(left) == 2 * len(ARMS) * len(CONDITIONS) - 1
    assert [seed for seed, _, _ in left] == sorted(seed for seed, _, _ in left)
    assert (left[0][1].name, left[0][2].name) == ("2x2", "gmpo")


@pytest.mark.slow
@pytest.mark.skipif(not RAW_RESULTS.exists(), reason="the sweep's records are not there")
def test_the_documents_tables_are_those_of_the_committed_records() -> None:
    records = read_records(RAW_RESULTS)
    assert tables(records) in (RAW_RESULTS.parent / "results.md").read_text()
    assert set(differences(records, "grpo", "2x2", lambda record: record.area)) == {0.0}
