"""Whole runs on the tiny model: they learn, record everything, resume bit for bit and obey orders."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from powermean.artefacts import ArtefactStore
from powermean.contracts.metrics import METRICS
from tests.support.attempts import JOB, Played, Stage
from tests.support.fake_engine import FakeEngine, InPlaceEngine
from tests.support.tiny_model import tiny_spec
from trainer.learner.learner import Learner

TRAINING = {"prompts_per_step": 16, "minibatches": 2, "epochs": 2}
TIMES = ("seconds", "time/", "tokens_per_second")
# Metrics of jobs with a KL term, or with several engines.
WITHOUT = {"kl", "beta", "sampling/replicas", "sampling/moved_prompts"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model_root: Path) -> Played:
    """Six steps without a break."""
    return Stage(tmp_path_factory.mktemp("whole"), model_root).play(training=TRAINING | {"steps": 6})


def weights(played: Played, store: ArtefactStore, folder: Path) -> dict[str, torch.Tensor]:
    assert played.finish.result is not None
    ref = played.finish.result.model.files["model.safetensors"]
    return load_file(store.local_copy(ref, folder / "final.safetensors"))


def store_of(stage_folder: Path) -> ArtefactStore:
    return ArtefactStore(f"file://{stage_folder}/store")


def numbers(played: Played, first_step: int = 0) -> dict[tuple[int, int, str], float | None]:
    """All metrics but times."""
    return {
        key: value
        for key, value in played.metrics.items()
        if key[0] >= first_step and not any(part in key[2] for part in TIMES)
    }


@pytest.mark.slow
def test_on_policy_training_waits_for_every_batch(whole: Played) -> None:
    assert whole.series("sampling/queued") == [0] * 6
    for step in range(1, 7):
        of = {name: value for (at, _, name), value in whole.metrics.items() if at == step}
        assert of["time/wait"] >= of["time/generate"] + of["time/grade"]


@pytest.mark.slow
def test_it_learns_and_says_so(whole: Played) -> None:
    result = whole.finish.result
    assert whole.finish.outcome == "finished"
    assert result is not None
    assert result.steps == 6
    rewards = whole.series("reward")
    assert sum(rewards[-2:]) / 2 > sum(rewards[:2]) / 2 + 0.15
    evaluations = whole.series("eval/reward")
    assert [step for step, _, name in sorted(whole.metrics) if name == "eval/reward"] == [0, 2, 4, 6]
    assert (result.reward_before, result.reward_after) == (evaluations[0], evaluations[-1])
    assert result.tokens == whole.metrics[6, -1, "num_tokens"]


def test_every_metric_that_applies_is_reported_at_its_level(whole: Played) -> None:
    reported = {name for _, _, name in whole.metrics}
    assert set(METRICS) - reported == WITHOUT
    for (step, update, name), value in whole.metrics.items():
        assert (update == -1) == (METRICS[name].level == "step"), (step, update, name)
        assert value is not None, (step, update, name)
    assert [update for step, update, name in sorted(whole.metrics) if (step, name) == (1, "loss")] == [
        0,
        1,
        2,
        3,
    ]


def test_pmpo_shows_from_the_second_update_on(whole: Played) -> None:
    for step in range(1, 7):
        assert whole.metrics[step, 0, "ratio/max"] == 1.0
        # All ratios are equal, so no trajectory has an exponent yet.
        assert (step, 0, "p/mean") not in whole.metrics
    shares = [whole.metrics[step, update, "p/share_below_0.95"] for step in range(1, 7) for update in (2, 3)]
    assert sum(shares) / len(shares) > 0.1


def test_the_engine_serves_the_trainers_weights(whole: Played) -> None:
    assert max(whole.series("publish/logp_difference_max")) < 1e-4
    assert max(whole.series("sampling/sampling_logp_difference/max")) < 1e-4
    versions = {step: {row.weight_version for row in rows} for step, rows in whole.trajectories.items()}
    assert versions == {step: {step - 1} for step in range(1, 7)}
    assert not list(Path("/dev/shm").glob(f"powermean-{JOB}.*"))


@pytest.mark.slow
def test_pi_old_may_be_the_samplers(whole: Played, stage: Stage) -> None:
    """On-policy it is the same run; what is known of the trainer is what the first minibatch gave."""
    rollout = tiny_spec("tiny")["rollout"] | {"old_policy": "sampler"}
    found = stage.play(training=TRAINING | {"steps": 2}, rollout=rollout)
    assert found.finish.outcome == "finished"
    assert set(METRICS) - {name for _, _, name in found.metrics} == WITHOUT | {"time/checkpoint"}
    for name in ("p/share_below_0.95", "ess/mean", "ratio/max"):
        for update in (2, 3):
            key = (1, update, name)
            assert found.metrics[key] == pytest.approx(whole.metrics[key], abs=1e-4), key
    for rows in found.trajectories.values():
        entropy = {row.updates[0].update: row.entropy is not None for row in rows if row.advantage}
        assert entropy == {0: True, 1: False}
        assert all((row.entropy is None) == (row.sampling_kl is None) for row in rows)
    assert max(found.series("staleness/max")) == 0


def test_trajectories_are_recorded_with_what_each_update_saw(whole: Played) -> None:
    assert sorted(whole.trajectories) == [1, 2, 3, 4, 5, 6]
    for rows in whole.trajectories.values():
        assert [row.index for row in rows] == list(range(128))
        assert all(row.group == row.index // 8 for row in rows)
        for row in rows:
            assert [seen.update // 2 for seen in row.updates] == [0, 1]  # one per epoch
            assert all((seen.p is None) == (seen.p_reason is not None) for seen in row.updates)
            assert row.advantage == 0 or (row.entropy is not None and row.sampling_kl is not None)


@pytest.mark.slow
def test_the_final_model_loads_and_is_the_one_the_engine_serves(
    tmp_path: Path, model_root: Path, stage: Stage
) -> None:
    engine = FakeEngine(model_root / "tiny", Path("/dev/shm"))
    result = stage.play(engine=engine, training=TRAINING | {"steps": 1}).finish.result
    assert result is not None
    for name, ref in result.model.files.items():
        store_of(tmp_path).local_copy(ref, tmp_path / "out" / name)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("1+2=", return_tensors="pt").input_ids
    assert torch.equal(model(input_ids=ids).logits, engine.model(input_ids=ids).logits)


def test_texts_are_kept_as_a_compressed_segment(whole: Played) -> None:
    found = sorted(whole.folder.parents[2].glob(f"store/jobs/{JOB}/texts/1/*-00000002.jsonl.gz"))
    lines = [json.loads(line) for line in gzip.decompress(found[0].read_bytes()).splitlines()]
    assert [line["index"] for line in lines] == list(range(128))
    assert all(line["prompt"].endswith("=") and line["answer"].isdigit() for line in lines)
    graded = [float(line["completion"].split("\n")[0].strip() == line["answer"]) for line in lines]
    assert graded == [row.reward for row in whole.trajectories[2]]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    tmp_path: Path, model_root: Path, whole: Played
) -> None:
    again = Stage(tmp_path, model_root).play(training=TRAINING | {"steps": 2})
    first = {key: value for key, value in numbers(whole).items() if 1 <= key[0] <= 2}
    assert {key: value for key, value in numbers(again, 1).items() if key in first} == first
    other = Stage(tmp_path / "other", model_root).play(training=TRAINING | {"steps": 1}, seed=1)
    assert other.trajectories[1] != whole.trajectories[1]


@pytest.mark.slow
def test_a_run_that_resumes_is_bit_identical_with_one_that_was_never_broken(
    tmp_path: Path, stage: Stage, model_root: Path, whole: Played
) -> None:
    """Stopped on order after step 1 of 6, and again where its checkpoint of step 4 is."""
    spec = {"training": TRAINING | {"steps": 6}}
    first = stage.play(1, order="checkpoint_and_exit", **spec)
    assert first.finish.outcome == "checkpointed"
    assert [commit.step for commit in first.checkpoints] == [1]
    second = stage.play(2, resume=first.checkpoints[0], **spec)
    assert [commit.step for commit in second.checkpoints] == [2, 4]
    third = stage.play(3, resume=second.checkpoints[1], **spec)
    for later, start in ((second, 2), (third, 5)):
        assert later.finish.outcome == "finished"
        assert numbers(later, start) == numbers(whole, start)
        assert min(step for step, _, _ in later.metrics) == start
        assert {s: r for s, r in whole.trajectories.items() if s >= start} == later.trajectories
        for name, weight in weights(later, store_of(tmp_path), tmp_path).items():
            expected = weights(whole, store_of(whole.folder.parents[2]), tmp_path)[name]
            assert torch.equal(weight, expected), name
        assert later.finish.result.reward_before == whole.finish.result.reward_before


@pytest.mark.slow
def test_sent_away_before_its_first_step_it_leaves_nothing(stage: Stage) -> None:
    played = stage.play(1, order="checkpoint_and_exit", at_once=True)
    assert (played.finish.outcome, played.metrics, played.checkpoints) == ("checkpointed", {}, [])


@pytest.mark.slow
def test_cancel_stops_before_the_next_update(stage: Stage) -> None:
    played = stage.play(order="cancel", training=TRAINING | {"steps": 6})
    assert played.finish.outcome == "cancelled"
    assert not played.trajectories


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"folder": "tiny", "dtype": "bfloat16"}, "training": {"weights": "bfloat16"}},
        {"model": {"folder": "tiny", "lora": {"rank": 4, "alpha": 8, "dropout": 0.3}}},
        {
            "model": {"folder": "tiny", "lora": {"rank": 4, "alpha": 8, "dropout": 0.3}},
            "training": {"gradient_checkpointing": True},
        },
    ],
    ids=["bfloat16 weights", "dropout", "dropout, checkpointing"],
)
def test_runs_with_more_state_resume_bit_for_bit_too(
    changes: dict[str, dict[str, object]], tmp_path: Path, stage: Stage, model_root: Path
) -> None:
    """Masters that the engine never sees, and what is dropped next."""
    training = {"prompts_per_step": 4, "minibatches": 2, "epochs": 2, "steps": 3}
    spec = changes | {"training": training | changes.get("training", {})}
    whole = Stage(tmp_path / "whole", model_root).play(**spec)
    first = stage.play(1, order="checkpoint_and_exit", **spec)
    later = stage.play(2, resume=first.checkpoints[0], **spec)
    assert whole.finish.outcome == later.finish.outcome == "finished", later.finish.error
    assert numbers(later, 2) == numbers(whole, 2)
    assert later.trajectories == {step: whole.trajectories[step] for step in (2, 3)}
    expected = weights(whole, store_of(tmp_path / "whole"), tmp_path / "whole")
    found = weights(later, store_of(tmp_path), tmp_path)
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())
    assert len(whole.series("grad_norm")) >= 6  # updates were taken


def in_place(model_root: Path) -> InPlaceEngine:
    return InPlaceEngine(model_root / "tiny", Path("/dev/shm"))


@pytest.mark.slow
def test_a_run_whose_weights_are_in_place_is_the_same_run(
    tmp_path: Path, stage: Stage, model_root: Path, whole: Played
) -> None:
    """Every number and every weight; also where it goes on from a checkpoint, in place or not."""
    spec = {"training": TRAINING | {"steps": 6}}
    engine = in_place(model_root)
    played = stage.play(1, engine=engine, **spec)
    assert [request.version for request in engine.published] == [0, 1, 2, 3, 4, 5, 6]
    assert {request.method for request in engine.published} == {"in_place"}
    assert played.finish.outcome == "finished"
    assert numbers(played) == numbers(whole)
    assert played.trajectories == whole.trajectories
    for later in (
        stage.play(2, resume=played.checkpoints[0], engine=in_place(model_root), **spec),
        stage.play(3, resume=played.checkpoints[0], **spec),
    ):
        assert numbers(later, 3) == numbers(whole, 3)
        found = weights(later, store_of(tmp_path), tmp_path)
        expected = weights(whole, store_of(whole.folder.parents[2]), tmp_path)
        assert all(torch.equal(weight, expected[name]) for name, weight in found.items())
    assert not list(Path("/dev/shm").glob(f"powermean-{JOB}.*"))


@pytest.mark.slow
def test_the_engine_is_held_from_before_the_first_update_until_the_next_publish(
    stage: Stage, model_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, held = in_place(model_root), list[int | None]()
    update = Learner.update

    def watched(self: Learner, *arguments: object) -> object:
        held.append(engine.held)
        return update(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Learner, "update", watched)
    stage.play(engine=engine, training=TRAINING | {"steps": 2})
    assert held == [1] * 4 + [2] * 4
    assert engine.held is None


DAPO = {
    "algorithm": {"name": "dapo", "sampling_rounds": 4},
    "rollout": {"group_size": 2, "max_new_tokens": 4, "stop": ["\n"]},
    "training": {"steps": 3, "prompts_per_step": 8, "minibatches": 2, "epochs": 1},
}


@pytest.mark.slow
def test_dapo_samples_until_every_group_has_spread_and_counts_what_it_dropped(stage: Stage) -> None:
    """At 1/3 right answers and G = 2 fewer than half of the groups have spread. A resumed run is the same."""
    played = stage.play(**DAPO)
    rounds, dropped = played.series("sampling/rounds"), played.series("sampling/groups_dropped")
    assert max(rounds) > 1
    assert min(rounds) >= 1
    assert max(rounds) <= 4
    sampled = 0.0
    for step, rows in played.trajectories.items():
        kept = [group for group in range(8) if len({row.reward for row in rows if row.group == group}) == 2]
        assert len(rows) == 16
        assert len({row.problem for row in rows}) == 8
        assert dropped[step - 1] == 8 * rounds[step - 1] - len(kept)
        assert len(kept) == 8 or rounds[step - 1] == 4
        flat = 8 * rounds[step - 1] * played.metrics[step, -1, "frac_reward_zero_std"]
        assert flat == pytest.approx(round(flat))
        assert 0 < flat <= dropped[step - 1]
        sampled += sum(row.length for row in rows)
    assert played.metrics[3, -1, "num_tokens"] > sampled

    first = stage.play(2, order="checkpoint_and_exit", **DAPO)
    second = stage.play(3, resume=first.checkpoints[0], **DAPO)
    assert second.finish.outcome == "finished"
    assert numbers(second, 2) == numbers(played, 2)
    assert second.trajectories == {step: played.trajectories[step] for step in (2, 3)}
