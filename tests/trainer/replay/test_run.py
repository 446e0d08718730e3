"""A replay of the recorded algorithm gives the recorded numbers; one of another gives that one's."""

import gzip
import io
import json
from dataclasses import replace as changed
from pathlib import Path

import pytest
import torch

from powermean.artefacts import ArtefactStore
from powermean.contracts.algorithms import (
    AlgorithmSpec,
    Cispo,
    Dapo,
    DrGrpo,
    Gmpo,
    Grpo,
    Pmpo,
    PowerMean,
)
from powermean.contracts.artefacts import ArtefactRef
from powermean.contracts.replays import OBJECTIVES, ReplayOutcome, ReplayResult, ReplayTask
from powermean.token_segments import read_trajectories, write_segment
from tests.support.recorded_step import GROUPS, LONGEST, SIZE, RecordedStep, recorded_step
from trainer.objectives import BatchFacts, build_algorithm
from trainer.replay import run as module
from trainer.replay.run import replay

pytestmark = pytest.mark.slow

TIGHT = Pmpo(clip_low=0.05, clip_high=0.05)  # so that p is far from 1
ALL = [
    TIGHT,
    *(model(p=0.3) if model is PowerMean else model() for model in OBJECTIVES.values()),
    Dapo(overlong_buffer=8),
    Pmpo(importance_sampling_correction="token", clip_low=0.1, clip_high=0.1),
    Grpo(importance_sampling_correction="sequence_mean"),
    Pmpo(beta=0.1),
]


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> RecordedStep:
    """A step trained by PMPO."""
    return recorded_step(TIGHT)


def replayed(step: RecordedStep, recorded: AlgorithmSpec, algorithm: AlgorithmSpec) -> ReplayResult:
    return replay(step.facts, step.rows, step.tokens, recorded, algorithm, step.distances)[0]


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "spec", ALL, ids=lambda spec: "-".join([spec.name, *sorted(map(str, spec.model_fields_set))])
)
def test_the_recorded_algorithm_reproduces_the_recorded_numbers(
    spec: AlgorithmSpec, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = recorded_step(spec, seed)
    summary = replayed(step, spec, spec).summary
    assert summary.reproduces
    assert all(difference <= 1e-6 for difference in summary.largest_difference.values())
    assert {"loss", "weight", "clipped", "clip_fraction"} <= set(summary.largest_difference)
    assert summary.covered == summary.trajectories == 24  # group 1 has no spread
    assert [update.covered for update in summary.updates] == [8, 16, 16, 8, 24]


@pytest.mark.parametrize("spec", [TIGHT, Pmpo(), Grpo(), Cispo()], ids=lambda spec: spec.name)
def test_a_step_whose_pi_old_is_the_samplers_is_reproduced(
    spec: AlgorithmSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = recorded_step(spec, old_policy="sampler")
    assert all(one.old_log_probs == one.sampler_log_probs for one in step.tokens)
    assert replayed(step, spec, spec).summary.reproduces


def test_a_changed_record_is_found(step: RecordedStep) -> None:
    first, *others = step.tokens
    ratios = first.updates[-1].log_ratio
    spoilt = first.updates[-1].model_copy(update={"log_ratio": (ratios[0] + 0.2, *ratios[1:])})
    broken = first.model_copy(update={"updates": (*first.updates[:-1], spoilt)})
    summary = replayed(changed(step, tokens=(broken, *others)), TIGHT, TIGHT).summary
    assert summary.reproduces is False


def test_a_changed_weight_or_clip_is_found(step: RecordedStep) -> None:
    first, *others = step.tokens
    last = first.updates[-1]
    for name, value in (("weight", last.weight[0] + 2e-6), ("clipped", not last.clipped[0])):
        spoilt = last.model_copy(update={name: (value, *getattr(last, name)[1:])})
        broken = first.model_copy(update={"updates": (*first.updates[:-1], spoilt)})
        summary = replayed(changed(step, tokens=(broken, *others)), TIGHT, TIGHT).summary
        assert summary.reproduces is False
        assert summary.largest_difference[name] > 1e-6


def test_another_algorithm_is_the_kernel_on_the_same_log_ratios(step: RecordedStep) -> None:
    """GMPO, called by hand on each trajectory alone."""
    spec = Gmpo(clip_low=0.03, clip_high=0.2)
    result, tokens = replay(step.facts, step.rows, step.tokens, TIGHT, spec, step.distances)
    assert result.summary.reproduces is None
    kernel = build_algorithm(spec)
    by_index = {one.index: one for one in result.trajectories}
    for recorded, new in zip(step.tokens, tokens, strict=True):
        for number, (seen, weights) in enumerate(zip(recorded.updates, new.updates, strict=True)):
            facts = step.facts.updates[seen.update]
            ratio = torch.tensor([seen.log_ratio])
            output = kernel.loss(
                ratio,
                torch.ones_like(ratio, dtype=torch.bool),
                torch.tensor([step.rows[recorded.index].advantage], dtype=torch.float64),
                BatchFacts(facts.trajectories, facts.tokens, LONGEST),
            )
            found = by_index[recorded.index].updates[number]
            assert found.update == seen.update
            assert found.replayed.p == 0.0
            assert found.replayed.loss == pytest.approx(float(output.loss), abs=1e-6)
            assert weights.weight == pytest.approx(output.token_weights[0].tolist(), abs=1e-6)
            assert list(weights.clipped) == output.clipped[0].tolist()
    # p = 0 everywhere: at GMPO's distance, while the recorded PMPO was nearer to GRPO
    last = result.summary.updates[-1]
    assert last.replayed.distance_to_grpo == pytest.approx(1.0)
    assert last.recorded.distance_to_grpo is not None
    assert 0 < last.recorded.distance_to_grpo < 1


def test_grpo_is_at_no_distance_from_itself(step: RecordedStep) -> None:
    summary = replayed(step, TIGHT, Grpo()).summary
    assert summary.updates[-1].replayed.p == 1.0
    assert summary.updates[-1].replayed.distance_to_grpo == 0.0


def test_another_rule_gives_other_advantages(step: RecordedStep) -> None:
    """Dr. GRPO: reward minus the group's mean."""
    result = replayed(step, TIGHT, DrGrpo())
    rewards = [row.reward for row in step.rows]
    for one in result.trajectories:
        start = one.index // SIZE * SIZE
        expected = rewards[one.index] - sum(rewards[start : start + SIZE]) / SIZE
        assert one.advantage_replayed == pytest.approx(expected)
        assert one.advantage == step.rows[one.index].advantage


def test_dropped_groups_leave_the_denominators(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the step had been trained on DAPO's groups from the start, and back again."""
    plain = Dapo(epsilon_high=0.2)
    step = recorded_step(Grpo())
    kept = [row for row in step.rows if row.group != 1]
    tokens = sum(row.length for row in kept)
    result = replayed(step, Grpo(), plain)
    last = result.summary.updates[-1]
    expected = sum(
        update.recorded.loss * len(step.rows) * step.rows[one.index].length / tokens
        for one in result.trajectories
        for update in one.updates
        if update.update == last.update and update.recorded.loss is not None
    )
    assert last.replayed.loss == pytest.approx(expected, abs=1e-6)
    assert last.trajectories == last.covered == len(kept)


def test_what_was_not_recorded_is_not_covered(step: RecordedStep) -> None:
    part = changed(step, tokens=step.tokens[:SIZE])
    summary = replayed(part, TIGHT, TIGHT).summary
    assert (summary.covered, summary.trajectories) == (SIZE, (GROUPS - 1) * SIZE)
    assert summary.reproduces
    none = replayed(changed(step, tokens=()), TIGHT, Grpo()).summary
    assert none.covered == 0
    assert none.updates[-1].replayed.p is None


def task(step: RecordedStep, store: ArtefactStore) -> ReplayTask:
    segment = write_segment(step.facts, step.tokens)
    return ReplayTask(
        replay_id="r-1",
        job_id="job-a",
        recorded=TIGHT,
        algorithm=Grpo(),
        rows=step.rows,
        tokens=store.put_bytes("jobs/job-a/tokens/1", "7.jsonl.gz", segment),
        distances=step.distances,
    )


def test_the_program_stores_what_it_found(
    step: RecordedStep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ArtefactStore(f"file://{tmp_path}/store")
    monkeypatch.setenv("POWERMEAN_ARTEFACTS_URL", store.url)
    monkeypatch.setenv("POWERMEAN_DATA_DIR", str(tmp_path / "node"))
    monkeypatch.setattr("sys.argv", ["replay"])
    monkeypatch.setattr("sys.stdin", io.StringIO(task(step, store).model_dump_json()))
    assert module.main() == 0
    printed = capsys.readouterr()
    outcome = ReplayOutcome.model_validate_json(printed.out.strip().rpartition("\n")[2])
    assert "replaying step 7 as grpo" in printed.err
    assert outcome.result is not None
    assert outcome.tokens is not None
    result = ReplayResult.model_validate(json.loads(gzip.decompress(store.get_bytes(outcome.result))))
    assert result.summary == outcome.summary
    assert len(list(read_trajectories(store.get_bytes(outcome.tokens)))) == len(step.tokens)
    again = module.run(task(step, store), store, lambda line: None)
    assert again == outcome  # the same bytes under the same names


def test_records_that_are_gone_or_broken_end_the_replay_with_a_reason(
    step: RecordedStep, tmp_path: Path
) -> None:
    store = ArtefactStore(f"file://{tmp_path}/store")
    given = task(step, store)
    missing = ArtefactRef(key=given.tokens.key.replace("7.jsonl", "8.jsonl"), sha256="0" * 64, size=1)
    outcome = module.run(given.model_copy(update={"tokens": missing}), store, lambda line: None)
    assert outcome.error is not None
    assert outcome.error.code == "artefact_missing"
    broken = store.put_bytes("jobs/job-a/tokens/1", "9.jsonl.gz", b"no gzip")
    outcome = module.run(given.model_copy(update={"tokens": broken}), store, lambda line: None)
    assert outcome.error is not None
    assert outcome.error.code == "tokens_corrupt"
