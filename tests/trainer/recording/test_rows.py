"""Numbers of a step become rows: undefined ones are left out, broken ones travel as null."""

import gzip
import json
import math
from dataclasses import replace

import pytest
import torch

from powermean.contracts.rollout import VersionSpan
from powermean.contracts.token_records import StepFacts, UpdateFacts
from trainer.data import Problem
from trainer.learner.update_report import RECORDED, UpdateReport
from trainer.objectives import Mismatch, mismatch
from trainer.recording.report import StepReport
from trainer.recording.rows import (
    last_pass_metrics,
    log_line,
    metric,
    staleness_metrics,
    step_metrics,
    text_segment,
    time_metrics,
    trajectory_rows,
)
from trainer.rewards.grading import Grade
from trainer.rollouts.batching import Rollouts
from trainer.rollouts.dynamic_sampling import SamplingFacts

NAN = float("nan")


def values(**known: list[float]) -> dict[str, torch.Tensor]:
    """[4] tensors, NaN where not given."""
    blank = torch.full((4,), NAN, dtype=torch.float64)
    return {
        name: torch.tensor(known[name], dtype=torch.float64) if name in known else blank for name in RECORDED
    }


def compared(known: list[bool]) -> Mismatch:
    """Engine and trainer over 4 trajectories of which some are known: token ratios of 4 and 0.4, cap 2."""
    lengths = torch.tensor([2, 0, 4, 2])
    mask = (torch.arange(4) < lengths[:, None]) & torch.tensor(known)[:, None]
    trainer = torch.tensor([math.log(4.0), math.log(0.4), 0.0, 0.0]).repeat(4, 1)
    return mismatch(trainer, torch.zeros(4, 4), mask, "token", 2.0)


@pytest.fixture
def report() -> StepReport:
    """Two groups of two; the second has no spread. The second completion is empty."""
    seen = values(
        p=[0.5, NAN, NAN, NAN],
        ess=[0.8, 1.0, NAN, NAN],
        clip_fraction=[0.5, 0.0, NAN, NAN],
        clip_fraction_low=[0.0, NAN, NAN, NAN],
        clip_fraction_high=[0.5, NAN, NAN, NAN],
        ratio_min=[0.5, 1.0, NAN, NAN],
        ratio_max=[2.0, 1.0, NAN, NAN],
        ratio_clipped_min=[0.5, 1.0, NAN, NAN],
        ratio_clipped_max=[1.5, 1.0, NAN, NAN],
        overflow_tokens=[0.0, 1.0, NAN, NAN],
    )
    update = UpdateReport(
        0, torch.arange(4), seen, 0.25, 3.0, 1e-3, None, None, None, trajectories=3, tokens_trained=8
    )
    lengths = torch.tensor([2, 0, 4, 2])
    mask = torch.arange(4) < lengths[:, None]
    return StepReport(
        step=5,
        rollouts=Rollouts(
            prompts=((1,), (2,)),
            tokens=torch.ones(4, 4, dtype=torch.int64),
            mask=mask,
            sampler_log_probs=torch.zeros(4, 4),
            truncated=torch.tensor([False, False, True, False]),
            weight_version=torch.full((4,), 4),
        ),
        sampling=SamplingFacts(
            rounds=1, groups_dropped=0, rewards=torch.tensor([[1.0, 0.0], [1.0, 1.0]]).double(), tokens=8
        ),
        problems=[Problem("a", "1+1=", "2"), Problem("b", "2+2=", "4")],
        texts=["2", "", "4 é", "4"],
        grades=[Grade(1.0), Grade(0.0, "it raised"), Grade(1.0), Grade(1.0)],
        advantages=torch.tensor([0.7, -0.7, 0.0, 0.0]),
        usable=torch.tensor([True, True, True, True]),
        entropy=torch.tensor([0.5, NAN, NAN, NAN]),
        mismatch=compared([True, False, False, False]),
        updates=[update, replace(update, update=1, grad_norm=None)],
        tokens_so_far=100,
        publish_difference=1e-6,
        penalties=torch.tensor([0.0, 0.0, -0.5, 0.0]),
        old_log_probs=torch.full((4, 4), NAN),
        facts=StepFacts(
            step=5,
            progress=0.5,
            mean_reward=0.75,
            reward_std=0.5,
            max_new_tokens=4,
            updates=tuple(
                UpdateFacts(update=n, epoch=n, minibatch=0, trajectories=3, tokens=8) for n in (0, 1)
            ),
        ),
    )


def test_step_numbers(report: StepReport) -> None:
    found = {row.name: row.value for row in step_metrics(report) if row.update == -1}
    assert found["reward"] == 0.75
    assert found["reward_std"] == pytest.approx(0.5**0.5 / 2)
    assert found["frac_reward_zero_std"] == 0.5
    assert found["completions/mean_length"] == 2.0
    assert found["completions/clipped_ratio"] == 0.25
    assert found["trajectories/empty"] == 1
    assert found["grader/failures"] == 1
    assert found["updates/skipped"] == 1
    assert found["entropy"] == pytest.approx(0.5)


def test_update_numbers_are_of_defined_values_and_of_updates_that_were_made(report: StepReport) -> None:
    rows = [row for row in step_metrics(report) if row.update >= 0]
    assert {row.update for row in rows} == {0}
    found = {row.name: row.value for row in rows}
    assert found["p/mean"] == 0.5
    assert found["p/share_below_0.95"] == 1.0
    assert found["p/undefined"] == 3
    assert found["clip_fraction/mean"] == 0.25
    assert found["clip_ratio/high_mean"] == 0.5
    assert (found["ratio/min"], found["ratio/max"]) == (0.5, 2.0)
    assert "distance_to_grpo" not in found
    assert "ess/target" not in found


def test_ess_and_its_target_are_means_over_the_same_trajectories(report: StepReport) -> None:
    """No target is solved for where all ratios are equal, but leaving it out puts N* below N(1)."""
    ess = {
        name: torch.tensor([*known, NAN, NAN], dtype=torch.float64)
        for name, known in {
            "ess": [0.9, 1.0],
            "ess_at_1": [0.7, 1.0],
            "ess_target": [0.9, NAN],
        }.items()
    }
    update = replace(report.updates[0], values=report.updates[0].values | ess)
    found = {
        row.name: row.value
        for row in step_metrics(replace(report, updates=[update, report.updates[1]]))
        if row.update >= 0
    }
    assert found["ess/at_1"] == pytest.approx(0.85)
    assert found["ess/target"] == pytest.approx(0.95) == pytest.approx(found["ess/mean"])


def test_the_log_has_a_steps_main_numbers(report: StepReport) -> None:
    rows = [*step_metrics(report), metric(5, "eval/reward", 0.5)]
    assert log_line(rows) == "reward 0.75, loss 0.25, grad norm 3, p 0.5, ESS 0.9, clip 0.25, entropy 0.5"


def test_p_of_the_last_pass_is_pooled_over_its_updates_and_earlier_passes_do_not_count(
    report: StepReport,
) -> None:
    """Two minibatches, two epochs: p = 1 in the first pass, then 1 of 2 and 2 of 2 trajectories have a p."""
    rows = ([0, 1], [2, 3]) * 2
    seen = ([1, 1, NAN, NAN], [NAN, NAN, 1, 1], [0.4, NAN, NAN, NAN], [NAN, NAN, 0.8, 1])
    updates = [
        replace(report.updates[0], update=n, rows=torch.tensor(rows[n]), values=values(p=seen[n]))
        for n in range(4)
    ]
    places = tuple(
        UpdateFacts(update=n, epoch=n // 2, minibatch=n % 2, trajectories=2, tokens=4) for n in range(4)
    )
    facts = report.facts.model_copy(update={"updates": places})
    found = last_pass_metrics(replace(report, updates=updates, facts=facts))
    assert found == {
        "p/last_pass/mean": pytest.approx((0.4 + 0.8 + 1) / 3),
        "p/last_pass/q10": pytest.approx(0.4 + 0.2 * 0.4),
        "p/last_pass/min": 0.4,
        "p/last_pass/defined": 3,
        "p/last_pass/below_1": 2,
        "p/last_pass/undefined": 1,
    }


def test_a_last_pass_in_which_every_update_was_skipped_counts_who_had_no_p(report: StepReport) -> None:
    skipped = replace(report.updates[0], grad_norm=None, values=values())
    found = last_pass_metrics(replace(report, updates=[replace(skipped, update=n) for n in (0, 1)]))
    assert found == {"p/last_pass/defined": 0, "p/last_pass/below_1": 0, "p/last_pass/undefined": 4}
    assert last_pass_metrics(replace(report, updates=[])) == {}


def test_trajectories_say_why_p_is_undefined(report: StepReport) -> None:
    rows = trajectory_rows(replace(report, usable=torch.tensor([True, True, True, False])))
    assert [row.updates[0].p for row in rows] == [0.5, None, None, None]
    assert [row.updates[0].p_reason for row in rows] == [None, "no tokens", "advantage 0", "not finite"]
    assert [row.group for row in rows] == [0, 0, 1, 1]
    assert rows[1].grader_error == "it raised"
    assert rows[0].entropy == 0.5
    assert rows[2].truncated


def test_trajectories_say_what_their_reward_is_made_of_and_which_weights_made_them(
    report: StepReport,
) -> None:
    spans = (VersionSpan(version=3, start=0, end=1), VersionSpan(version=4, start=1, end=2))
    versions = (spans, (), spans[:1], spans[1:])
    rows = trajectory_rows(replace(report, rollouts=replace(report.rollouts, versions=versions)))
    assert [row.reward_parts for row in rows] == [
        {"grade": 1.0},
        {"grade": 0.0},
        {"grade": 1.0, "overlong_penalty": -0.5},
        {"grade": 1.0},
    ]
    assert tuple(row.weight_versions for row in rows) == versions
    assert [row.weight_versions for row in trajectory_rows(report)] == [()] * 4
    assert [(seen.epoch, seen.minibatch) for seen in rows[0].updates] == [(0, 0), (1, 0)]


def test_equal_ratios_and_objectives_without_p_are_told_apart(report: StepReport) -> None:
    full = replace(report.rollouts, mask=torch.ones(4, 4, dtype=torch.bool))
    adv = torch.tensor([0.7, -0.7, 0.1, 0.0])
    seen = values(ratio_clipped_min=[1, 1, 0.5, NAN], ratio_clipped_max=[1, 1, 2.0, NAN])
    update = replace(report.updates[0], values=seen)
    rows = trajectory_rows(replace(report, rollouts=full, advantages=adv, updates=[update]))
    assert [row.updates[0].p_reason for row in rows] == [
        "equal ratios",
        "equal ratios",
        "objective without p",
        "advantage 0",
    ]


def test_a_step_in_which_nothing_was_scored_leaves_those_numbers_out(report: StepReport) -> None:
    nothing = replace(report, mismatch=compared([False] * 4), entropy=torch.full((4,), NAN), updates=[])
    names = {row.name for row in step_metrics(nothing)}
    assert not names & {"entropy", "p/mean"}
    assert {name for name in names if name.startswith("sampling/")} == {
        "sampling/rounds",
        "sampling/groups_dropped",
    }


def test_engine_and_trainer_are_compared_raw_and_truncated(report: StepReport) -> None:
    found = {row.name: row.value for row in step_metrics(report) if row.update == -1}
    token = "sampling/importance_sampling_ratio"
    assert [found[f"{token}/raw_{which}"] for which in ("min", "mean", "max")] == pytest.approx([0.4, 2.2, 4])
    assert [found[f"{token}/{which}"] for which in ("min", "mean", "max")] == pytest.approx([0.4, 1.2, 2])
    assert found[f"{token}/share_truncated"] == 0.5
    sequence = "sampling/sequence_importance_ratio"
    assert found[f"{sequence}/raw_mean"] == pytest.approx(1.6)  # 4 times 0.4
    assert found[f"{sequence}/share_truncated"] == 0
    assert found["sampling/sequence_mean_importance_ratio/mean"] == pytest.approx(1.6**0.5)
    assert found["sampling/sampling_logp_difference/max"] == pytest.approx(math.log(4))
    assert found["sampling/sampling_logp_difference/mean"] == pytest.approx(math.log(10) / 2)
    low = 0.4 - 1 - math.log(0.4)
    assert found["sampling/kl"] == pytest.approx((3 - math.log(4) + low) / 2)
    assert found["sampling/kl_truncated"] == pytest.approx((1 - math.log(2) + low) / 2)
    rows = trajectory_rows(report)
    assert rows[0].importance_sampling_ratio == pytest.approx(2.2)
    assert rows[0].sequence_importance_sampling_ratio == pytest.approx(1.6)
    assert rows[0].applied_importance_sampling_ratio == pytest.approx(1.2)
    assert rows[0].sampling_kl == pytest.approx(found["sampling/kl"])
    assert rows[0].sampling_kl_truncated == pytest.approx(found["sampling/kl_truncated"])
    assert {
        (
            row.importance_sampling_ratio,
            row.sequence_importance_sampling_ratio,
            row.applied_importance_sampling_ratio,
        )
        for row in rows[1:]
    } == {(None, None, None)}


def test_staleness_counts_from_the_oldest_weights_and_leaves_empty_completions_out(
    report: StepReport,
) -> None:
    """Step 5 trains version 4. The second completion has no token, so no weights made one."""
    mixed = (VersionSpan(version=2, start=0, end=1), VersionSpan(version=4, start=1, end=2))
    whole = (VersionSpan(version=4, start=0, end=4),)
    rollouts = replace(
        report.rollouts,
        weight_version=torch.tensor([2, 0, 4, 3]),
        versions=(mixed, (), whole, whole),
    )
    assert staleness_metrics(5, rollouts) == {
        "staleness/mean": 1.0,
        "staleness/max": 2.0,
        "staleness/share_mixed": pytest.approx(1 / 3),
    }
    empty = replace(rollouts, mask=torch.zeros(4, 4, dtype=torch.bool))
    assert staleness_metrics(5, empty) == {}


@pytest.mark.parametrize("value", [NAN, float("inf"), None])
def test_numbers_that_are_not_finite_travel_as_null(value: float | None) -> None:
    assert metric(1, "loss", value, update=2).value is None


def test_names_outside_the_contract_are_a_mistake() -> None:
    with pytest.raises(AssertionError):
        metric(1, "los", 1.0)


def test_times(report: StepReport) -> None:
    found = {row.name: row.value for row in time_metrics(5, {"generate": 1.0, "step": 4.0}, tokens=8)}
    assert found == {"time/generate": 1.0, "time/step": 4.0, "tokens_per_second": 2.0}


def test_texts_are_the_same_bytes_each_time_and_whole(report: StepReport) -> None:
    data = text_segment(report, ())
    assert data == text_segment(report, ())
    lines = [json.loads(line) for line in gzip.decompress(data).splitlines()]
    assert lines[2] == {"index": 2, "prompt": "2+2=", "completion": "4 é", "answer": "4"}
    cut = gzip.decompress(text_segment(report, (" ",))).splitlines()[2]
    assert json.loads(cut) == lines[2] | {"graded": 1}
    assert len(lines) == 4
