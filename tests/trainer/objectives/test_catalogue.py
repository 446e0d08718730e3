"""Each objective of the family against its own paper's formula, written out with autograd in float64."""

from math import exp, log, tanh

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor

from powermean.contracts.algorithms import AlgorithmSpec
from tests.trainer.objectives.objective_batches import Batch, batches, run
from trainer.objectives import Algorithm, build_algorithm
from trainer.objectives.advantages import mean_centred, standardised


def build(name: str, **fields: object) -> Algorithm:
    return build_algorithm(TypeAdapter(AlgorithmSpec).validate_python({"name": name} | fields))


def ppo_tokens(leaf: Tensor, batch: Batch, low: float, high: float) -> Tensor:
    """-min(r A, clip(r) A) per token, 0 on padding."""
    ratio, a = leaf.exp(), batch.advantages[:, None]
    return -torch.minimum(ratio * a, ratio.clamp(1 - low, 1 + high) * a) * batch.mask


def check(algorithm: Algorithm, batch: Batch, loss: Tensor, leaf: Tensor, **more: object) -> None:
    (gradient,) = torch.autograd.grad(loss, leaf)
    out, found = run(algorithm, batch, **more)
    torch.testing.assert_close(out.loss, loss, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-10)


def leaf_of(batch: Batch) -> Tensor:
    return batch.x.clone().requires_grad_()


# Irrational edges: the strategies' round numbers and ties never sit on a kink.
LOW, HIGH = 0.2 + 1e-4 * 2**0.5, 0.28 + 1e-4 * 3**0.5


@given(batches())
def test_grpo_is_the_mean_of_token_means(batch: Batch) -> None:
    leaf = leaf_of(batch)
    tokens = batch.mask.sum(-1)
    loss = (ppo_tokens(leaf, batch, LOW, HIGH).sum(-1) / tokens.clamp(min=1)).sum() / (tokens > 0).sum()
    check(build("grpo", epsilon_low=LOW, epsilon_high=HIGH), batch, loss, leaf)


@given(batches())
def test_dapo_is_the_token_mean_of_the_batch(batch: Batch) -> None:
    leaf = leaf_of(batch)
    loss = ppo_tokens(leaf, batch, LOW, HIGH).sum() / batch.mask.sum()
    check(build("dapo", epsilon_low=LOW, epsilon_high=HIGH), batch, loss, leaf)


@given(batches())
def test_dr_grpo_is_the_token_sum_over_a_constant(batch: Batch) -> None:
    leaf = leaf_of(batch)
    slots = batch.mask.any(-1).sum() * batch.facts.max_tokens
    check(
        build("dr_grpo", epsilon_low=LOW, epsilon_high=HIGH),
        batch,
        ppo_tokens(leaf, batch, LOW, HIGH).sum() / slots,
        leaf,
    )


@given(batches())
def test_gspo_clips_the_length_normalised_sequence_ratio(batch: Batch) -> None:
    leaf = leaf_of(batch)
    some = batch.mask.any(-1)
    ratio = ((leaf * batch.mask).sum(-1)[some] / batch.mask.sum(-1)[some]).exp()
    a = batch.advantages[some]
    loss = -torch.minimum(ratio * a, ratio.clamp(1 - LOW, 1 + HIGH) * a).sum() / some.sum()
    check(build("gspo", epsilon_low=LOW, epsilon_high=HIGH), batch, loss, leaf)


@given(batches(), st.sampled_from([0.1, 0.25, 0.8, 1.0]))
def test_holder_anneals_p_and_clips_the_mean(batch: Batch, progress: float) -> None:
    leaf, p = leaf_of(batch), 2 - 4 * progress
    some = batch.mask.any(-1)
    powers = (p * leaf).exp() * batch.mask
    mean = (powers.sum(-1)[some] / batch.mask.sum(-1)[some]) ** (1 / p)
    a = batch.advantages[some]
    loss = -torch.minimum(mean * a, mean.clamp(1 - LOW, 1 + HIGH) * a).sum() / some.sum()
    check(build("holder", epsilon_low=LOW, epsilon_high=HIGH), batch, loss, leaf, progress=progress)


@given(batches(), st.sampled_from([0.2, 0.5, 0.9]))
def test_apmpo_follows_the_mean_reward(batch: Batch, reward: float) -> None:
    leaf, p = leaf_of(batch), exp(-0.8 * reward)
    reach = 0.2 + 0.2 * tanh(reward / (0.5 + 1e-4))
    low, high = log(1 - reach), log(1 + reach)
    held = torch.where((batch.advantages >= 0)[:, None], leaf.clamp(max=high), leaf.clamp(min=low))
    some = batch.mask.any(-1)
    mean = (((p * held).exp() * batch.mask).sum(-1)[some] / batch.mask.sum(-1)[some]) ** (1 / p)
    loss = -(batch.advantages[some] * mean).sum() / some.sum()
    check(build("apmpo"), batch, loss, leaf, mean_reward=reward)


@given(batches(), st.sampled_from([1.1, 1.3, 5.0]))
def test_cispo_weighs_log_probs_by_a_detached_capped_ratio(batch: Batch, cap: float) -> None:
    leaf = leaf_of(batch)
    weight = leaf.exp().clamp(max=cap).detach() * batch.advantages[:, None] * batch.mask
    check(build("cispo", ratio_cap=cap), batch, -(weight * leaf).sum() / batch.mask.sum(), leaf)


@pytest.mark.slow
def test_advantage_rules_filters_and_shaping() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.5, 0.5])
    group, lengths = torch.tensor([0, 0, 1, 1]), torch.tensor([10, 95, 100, 3])
    for name in ("pmpo", "grpo", "gmpo", "holder", "apmpo", "gspo", "dapo", "cispo"):
        assert torch.equal(build(name).advantages(rewards, group), standardised(rewards.double(), group))
    assert torch.equal(build("dr_grpo").advantages(rewards, group), mean_centred(rewards.double(), group))
    assert build("dapo").keep(rewards, group).tolist() == [True, True, False, False]
    assert build("grpo").keep(rewards, group).all()
    shaped = build("dapo", overlong_buffer=10).shape_rewards(rewards, lengths, 100)
    assert shaped.tolist() == [1.0, -0.5, -0.5, 0.5]
    assert torch.equal(build("pmpo").shape_rewards(rewards, lengths, 100), rewards.double())


def test_apmpo_says_what_it_lacks() -> None:
    batch = Batch(torch.zeros(1, 2).double(), torch.ones(1, 2, dtype=torch.bool), torch.ones(1).double())
    with pytest.raises(ValueError, match="mean and the standard deviation"):
        run(build("apmpo"), batch, mean_reward=None)


def test_importance_sampling_ratios_are_truncated_as_the_spec_says() -> None:
    old = torch.tensor([[log(0.9), log(0.5), 0.0]])
    sampler = torch.tensor([[log(0.3), log(0.5), 7.0]])
    mask = torch.tensor([[True, True, False]])
    assert build("pmpo").importance_sampling_ratio(old, sampler, mask) is None
    token = build("pmpo", importance_sampling_correction="token").importance_sampling_ratio(
        old, sampler, mask
    )
    torch.testing.assert_close(token, torch.tensor([[2.0, 1.0, 1.0]]).double())
    whole = build(
        "pmpo", importance_sampling_correction="sequence", importance_sampling_clip_max=10
    ).importance_sampling_ratio(old, sampler, mask)
    torch.testing.assert_close(whole, torch.tensor([3.0]).double())
    mean = build("pmpo", importance_sampling_correction="sequence_mean").importance_sampling_ratio(
        old, sampler, mask
    )
    torch.testing.assert_close(mean, torch.tensor([3.0**0.5]).double())
