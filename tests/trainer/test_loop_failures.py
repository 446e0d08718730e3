"""Runs that fail, which say why, and rows and completions that train nothing, which are counted."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from powermean.contracts.rollout import Completion, GenerateRequest, GenerateResponse
from tests.support.attempts import Stage
from tests.support.fake_engine import FakeEngine
from trainer.policy.policy import Policy, Scores
from trainer.policy.token_tree import TokenTree

TRAINING = {"prompts_per_step": 16, "minibatches": 2, "epochs": 2}


@pytest.mark.slow
def test_rows_found_unusable_are_left_out_counted_and_named(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a in range(8) for b in range(8)]
    rows[9] = {"question": "1+1+1+1+1=", "answer": "5"}  # more than this engine takes with 4 new tokens
    rows[20] = {"question": "2+4=", "answer": "6 or 7\nor 8"}
    played = stage.play(rows=rows, max_model_len=9, training=TRAINING | {"steps": 4})
    assert played.finish.outcome == "finished"
    assert played.series("data/left_out") == [2 / 64] * 4
    assert {row.problem for step in played.trajectories.values() for row in step}.isdisjoint(
        {"line 10", "line 21"}
    )
    assert "line 10: the prompt has more than 5 tokens" in caplog.text
    assert "line 21: no completion can match the answer" in caplog.text


class Broken(FakeEngine):
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


@pytest.mark.slow
def test_running_out_of_memory_is_a_typed_failure(stage: Stage, tiny_folder: Path) -> None:
    finish = stage.play(engine=Broken(tiny_folder, answers=1)).finish
    assert finish.outcome == "failed"
    assert finish.error is not None
    assert finish.error.code == "out_of_memory"
    assert "micro_batch_tokens" in (finish.error.remedy or "")
    assert not finish.retryable


@pytest.mark.slow
def test_other_weights_than_those_sent_fail_the_run_loudly(stage: Stage, tiny_folder: Path) -> None:
    finish = stage.play(engine=Broken(tiny_folder, answers=99, keep_weights=True)).finish
    assert finish.error is not None
    assert finish.error.code == "publish_mismatch"
    assert finish.retryable


class Changed(FakeEngine):
    """An engine that answers in its own way: greedily, or with an empty completion first in each group."""

    def __init__(self, folder: Path, *, greedy: bool = False, empty: bool = False) -> None:
        super().__init__(folder, Path("/dev/shm"))
        self._greedy, self._empty = greedy, empty

    def generate(self, request: GenerateRequest, timeout_s: float) -> GenerateResponse:
        if self._greedy:
            sampling = request.sampling.model_copy(update={"temperature": 0.0})
            request = request.model_copy(update={"sampling": sampling})
        response = super().generate(request, timeout_s)
        if not self._empty or request.n == 1:
            return response
        nothing = Completion(token_ids=(), logprobs=(), finish_reason="stop", weight_versions=())
        return response.model_copy(
            update={"completions": tuple((nothing, *group[1:]) for group in response.completions)}
        )


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["pmpo", "dapo"])
def test_a_run_without_one_optimiser_step_is_no_success(
    stage: Stage, tiny_folder: Path, algorithm: str
) -> None:
    training = {"steps": 2, "prompts_per_step": 4, "minibatches": 2, "epochs": 1}
    played = stage.play(
        engine=Changed(tiny_folder, greedy=True), algorithm={"name": algorithm}, training=training
    )
    finish = played.finish
    assert (finish.outcome, finish.retryable, finish.result) == ("failed", False, None)
    assert finish.error is not None
    assert (finish.error.code, finish.error.path) == ("no_updates", "data")
    assert "group_size" in (finish.error.remedy or "")
    assert played.series("updates/skipped") == [2, 2]
    assert played.series("frac_reward_zero_std") == [1, 1]
    assert played.series("sampling/rounds") == ([10, 10] if algorithm == "dapo" else [1, 1])


@pytest.mark.slow
def test_empty_completions_are_counted_and_train_nothing(stage: Stage, tiny_folder: Path) -> None:
    training = {"steps": 1, "prompts_per_step": 4, "minibatches": 2, "epochs": 1}
    played = stage.play(engine=Changed(tiny_folder, empty=True), training=training)
    assert played.finish.outcome == "finished"
    assert played.series("trajectories/empty") == [4]
    empty = [row for row in played.trajectories[1] if row.length == 0]
    assert [row.index for row in empty] == [0, 8, 16, 24]
    assert {seen.p_reason for row in empty for seen in row.updates} == {"no tokens"}


@pytest.mark.slow
def test_a_batch_without_a_finite_trajectory_fails_the_run_and_names_the_step(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups without spread are never scored: that they may be finite does not make it a quiet step."""
    score = Policy.score

    def broken(self: Policy, tree: TokenTree, *, entropy: bool = False) -> Scores:
        scores = score(self, tree, entropy=entropy)
        probed = len(tree.rows) <= 8  # when the model is loaded
        return scores if probed else replace(scores, log_probs=scores.log_probs * torch.nan)

    monkeypatch.setattr(Policy, "score", broken)
    played = stage.play(training=TRAINING | {"steps": 1})
    assert played.finish.error is not None
    assert played.finish.error.code == "non_finite_loss"
    assert played.finish.error.message.startswith("step 1: the log-probs of all trajectories")
    assert not played.trajectories
