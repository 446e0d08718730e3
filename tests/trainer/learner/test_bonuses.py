"""The entropy bonus and the adaptive beta in updates, and through a restart."""

from pathlib import Path

import pytest
import torch

from powermean.contracts.algorithms import Grpo
from tests.support.attempts import Stage
from tests.support.learners import GROUPS, learner, training_batch, weights
from trainer.learner.learner import Learner
from trainer.policy.token_tree import sort_rows, token_tree

ADAPTIVE = {"name": "grpo", "beta": 0.5, "kl_target": 1e-3, "kl_horizon": 200}


def entropy(of: Learner) -> float:
    """Mean token entropy of the batch's completions, in nats, from the model's own logits."""
    batch = training_batch(of.algorithm)
    given = batch.rollouts.trajectories(range(len(batch.advantages)))
    tree = token_tree(given, sort_rows(given))
    found = of.policy.score(tree, entropy=True).entropy
    assert found is not None
    return float(found.detach().sum() / batch.rollouts.mask.sum())


def gradient(of: Learner) -> torch.Tensor:
    """Of one whole minibatch, before it is clipped."""
    batch = training_batch(of.algorithm)
    of.score(batch, range(GROUPS))
    of._accumulated(batch, range(GROUPS), of._share(batch, range(GROUPS)))
    return torch.cat([one.grad.flatten() for one in of.policy.model.parameters() if one.grad is not None])


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch_tokens", [1024, 12])
def test_law_the_bonus_adds_the_gradient_of_the_mean_token_entropy(micro_batch_tokens: int):
    coefficient = 0.3
    with_bonus = gradient(learner(Grpo(entropy_coefficient=coefficient), micro_batch_tokens))
    plain = learner(Grpo())
    without = gradient(plain)
    plain.optimizer.zero_grad(set_to_none=True)
    batch = training_batch(plain.algorithm)
    total = torch.zeros(())
    for row in range(len(batch.advantages)):  # the model's own logits, a row at a time
        prompt = list(batch.rollouts.prompts[row // batch.rollouts.group_size])
        made = batch.rollouts.tokens[row][batch.rollouts.mask[row]].tolist()
        logits = plain.policy.model(input_ids=torch.tensor([prompt + made])).logits
        log_likely = logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        total = total - (log_likely.exp() * log_likely).sum()
    (-coefficient * total / batch.rollouts.mask.sum()).backward()
    expected = torch.cat([one.grad.flatten() for one in plain.policy.model.parameters()])
    torch.testing.assert_close(with_bonus - without, expected, rtol=1e-3, atol=1e-5)
    assert expected.abs().max() > 1e-2


@pytest.mark.slow
def test_updates_for_the_entropy_raise_it():
    one = learner(Grpo(entropy_coefficient=1.0))
    before = entropy(one)
    batch = training_batch(one.algorithm)
    one.score(batch, range(GROUPS))
    reports = [one.update(batch, range(GROUPS), number) for number in range(5)]
    assert entropy(one) > before + 0.01
    assert reports[0].loss < learner_loss()  # the bonus is in the loss


def learner_loss() -> float:
    plain = learner(Grpo())
    batch = training_batch(plain.algorithm)
    plain.score(batch, range(GROUPS))
    return plain.update(batch, range(GROUPS), 0).loss


def test_beta_moves_after_each_update_by_the_kl_that_it_saw():
    one = learner(Grpo(beta=0.5, kl_target=1e-3, kl_horizon=32))
    batch = training_batch(one.algorithm)
    one.score_start(batch, [list(range(GROUPS))])
    reports = [one.update(batch, range(GROUPS), number) for number in range(4)]
    control = one.algorithm.beta_control
    assert control is not None
    assert reports[0].beta == 0.5
    for report, after in zip(reports, [*[report.beta for report in reports[1:]], one.beta], strict=True):
        assert after == control.after(report.beta, report.kl, report.trajectories)
    fixed = learner(Grpo(beta=0.5))
    batch = training_batch(fixed.algorithm)
    fixed.score_start(batch, [list(range(GROUPS))])
    assert [fixed.update(batch, range(GROUPS), n).beta for n in range(3)] == [0.5] * 3
    assert not torch.equal(weights(one), weights(fixed))


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_its_beta_and_its_schedule(tmp_path: Path, model_root: Path):
    spec = {
        "algorithm": ADAPTIVE | {"entropy_coefficient": 0.01},
        "optimizer": {"learning_rate": 3e-3, "warmup_ratio": 0.2, "schedule": "cosine"},
        "training": {"steps": 3, "prompts_per_step": 8, "minibatches": 2, "epochs": 1},
    }
    whole = Stage(tmp_path / "whole", model_root).play(**spec)
    stage = Stage(tmp_path / "broken", model_root)
    first = stage.play(1, order="checkpoint_and_exit", **spec)
    second = stage.play(2, resume=first.checkpoints[0], **spec)
    for name in ("beta", "learning_rate", "loss", "kl"):
        assert first.series(name) + second.series(name) == whole.series(name), name
    assert len(set(whole.series("beta"))) == 6
    assert len(set(whole.series("learning_rate"))) == 6
