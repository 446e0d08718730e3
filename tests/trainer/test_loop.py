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
from powermean.contracts.rollout import GenerateRequest, GenerateResponse
from tests.trainer.attempts import Played, Stage
from tests.trainer.engine_double import EngineDouble

TRAINING = {"prompts_per_step": 16, "minibatches": 2, "epochs": 2}
TIMES = ("seconds", "time/", "tokens_per_second")


@pytest.fixture
def stage(tmp_path: Path, model_root: Path) -> Stage:
    return Stage(tmp_path, model_root)


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
    assert set(METRICS) - reported == {"kl"}
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
    assert max(whole.series("sampling/logp_difference_max")) < 1e-4
    versions = {step: {row.weight_version for row in rows} for step, rows in whole.trajectories.items()}
    assert versions == {step: {step - 1} for step in range(1, 7)}
    assert not list(Path("/dev/shm").glob("powermean-job-a.*"))


def test_trajectories_are_recorded_with_what_each_update_saw(whole: Played) -> None:
    assert sorted(whole.trajectories) == [1, 2, 3, 4, 5, 6]
    for rows in whole.trajectories.values():
        assert [row.index for row in rows] == list(range(128))
        assert all(row.group == row.index // 8 for row in rows)
        for row in rows:
            assert [seen.update // 2 for seen in row.updates] == [0, 1]  # one per epoch
            assert all((seen.p is None) == (seen.p_reason is not None) for seen in row.updates)
            assert row.advantage == 0 or (row.entropy is not None and row.sampling_kl is not None)


def test_the_final_model_loads_and_is_the_one_the_engine_serves(
    tmp_path: Path, model_root: Path, stage: Stage
) -> None:
    engine = EngineDouble(model_root / "tiny", Path("/dev/shm"))
    result = stage.play(engine=engine, training=TRAINING | {"steps": 1}).finish.result
    assert result is not None
    for name, ref in result.model.files.items():
        store_of(tmp_path).local_copy(ref, tmp_path / "out" / name)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("1+2=", return_tensors="pt").input_ids
    assert torch.equal(model(input_ids=ids).logits, engine.model(input_ids=ids).logits)


def test_texts_are_kept_as_a_compressed_segment(whole: Played) -> None:
    found = sorted(whole.folder.parents[2].glob("store/jobs/job-a/texts/1/*-00000002.jsonl.gz"))
    lines = [json.loads(line) for line in gzip.decompress(found[0].read_bytes()).splitlines()]
    assert [line["index"] for line in lines] == list(range(128))
    assert all(line["prompt"].endswith("=") and line["answer"].isdigit() for line in lines)
    graded = [float(line["completion"].split("\n")[0].strip() == line["answer"]) for line in lines]
    assert graded == [row.reward for row in whole.trajectories[2]]


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    tmp_path: Path, model_root: Path, whole: Played
) -> None:
    again = Stage(tmp_path, model_root).play(training=TRAINING | {"steps": 2})
    first = {key: value for key, value in numbers(whole).items() if 1 <= key[0] <= 2}
    assert {key: value for key, value in numbers(again, 1).items() if key in first} == first
    other = Stage(tmp_path / "other", model_root).play(training=TRAINING | {"steps": 1}, seed=1)
    assert other.trajectories[1] != whole.trajectories[1]


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


def test_cancel_stops_before_the_next_update(stage: Stage) -> None:
    played = stage.play(order="cancel", training=TRAINING | {"steps": 6})
    assert played.finish.outcome == "cancelled"
    assert not played.trajectories


class Broken(EngineDouble):
    """An engine that dies after its first answers, or serves other weights than it was sent."""

    def __init__(self, folder: Path, answers: int, keep_weights: bool = False) -> None:
        super().__init__(folder, Path("/dev/shm"))
        self._answers = answers
        self._keep_weights = keep_weights

    def generate(self, request: GenerateRequest, timeout_s: float) -> GenerateResponse:
        self._answers -= 1
        if self._answers < 0:
            raise MemoryError("no more")
        if self._keep_weights:
            with torch.no_grad():
                self.model.model.embed_tokens.weight.mul_(1.01)
        return super().generate(request, timeout_s)


def test_running_out_of_memory_is_a_typed_failure(stage: Stage, tiny_folder: Path) -> None:
    finish = stage.play(engine=Broken(tiny_folder, answers=1)).finish
    assert finish.outcome == "failed"
    assert finish.error is not None
    assert finish.error.code == "out_of_memory"
    assert "micro_batch_groups" in (finish.error.remedy or "")
    assert not finish.retryable


def test_other_weights_than_those_sent_fail_the_run_loudly(stage: Stage, tiny_folder: Path) -> None:
    finish = stage.play(engine=Broken(tiny_folder, answers=99, keep_weights=True)).finish
    assert finish.error is not None
    assert finish.error.code == "publish_mismatch"
    assert finish.retryable
