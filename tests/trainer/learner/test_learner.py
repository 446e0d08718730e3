"""One optimiser step: exact however split, free for groups without spread, honest about broken numbers."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM

from powermean.contracts.algorithms import Cispo, Dapo, Grpo, Pmpo
from powermean.contracts.models import LoraSpec
from powermean.contracts.training import OptimizerSpec
from tests.support.learners import (
    GROUPS,
    SIZE,
    counted,
    fail_in,
    learner,
    poison,
    rollouts,
    sampled_by,
    training_batch,
    weights,
)
from tests.support.tiny_model import tiny_config
from trainer.failures import TrainingError, failed
from trainer.learner.optimizer import learning_rate, make_optimizer
from trainer.learner.training_batch import without
from trainer.objectives import mismatch
from trainer.policy.loading import make_policy
from trainer.ranks.exchange import Ranks


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [Pmpo(), Grpo(), Dapo(), Cispo(), Pmpo(beta=0.1)], ids=lambda a: a.name)
def test_micro_batches_add_up_to_the_minibatch(algorithm: object) -> None:
    """Same weights after two epochs, same loss, same numbers of each trajectory."""
    found = []
    for tokens in (1, 12, 1000):
        one = learner(algorithm, micro_batch_tokens=tokens)
        batch = training_batch(one.algorithm)
        one.score_reference(batch, range(GROUPS))
        reports = [one.update(batch, [0, 1, 2, 3], number) for number in range(2)]
        found.append((weights(one), reports))
    for after, reports in found[1:]:
        assert torch.allclose(after, found[0][0], atol=2e-5)
        for report, expected in zip(reports, found[0][1], strict=True):
            assert report.loss == pytest.approx(expected.loss, rel=1e-4, abs=1e-6)
            assert report.grad_norm == pytest.approx(expected.grad_norm, rel=1e-3)
            assert report.kl == (expected.kl and pytest.approx(expected.kl, rel=1e-2, abs=1e-7))
            for name, values in report.values.items():
                assert torch.allclose(values, expected.values[name], atol=1e-4, equal_nan=True), name


@pytest.mark.parametrize("tokens", [1, 12, 1000])
def test_it_tells_which_micro_batch_of_how_many(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    one = learner(micro_batch_tokens=tokens)
    one.tell = lambda number, of: told.append((number, of))
    passes = counted(one, monkeypatch)
    one.update(training_batch(one.algorithm), [0, 1, 2, 3], 0)
    assert told == [(number, len(passes)) for number in range(1, len(passes) + 1)]
    assert told


def test_groups_without_spread_cost_no_pass_but_count(monkeypatch: pytest.MonkeyPatch) -> None:
    one = learner()
    batch = training_batch(one.algorithm)
    seen = counted(one, monkeypatch)
    report = one.update(batch, [0, 1], 0)
    assert [sorted(given.rows.tolist()) for given in seen] == [[0, 1, 2, 3]]
    assert report.rows.tolist() == list(range(8))
    # With all ratios 1 the loss is -(1/B) sum A over all 8 trajectories of the minibatch.
    assert report.loss == pytest.approx(-float(batch.advantages[:8].sum()) / 8, abs=1e-6)


def test_a_minibatch_without_spread_takes_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    one = learner()
    before, seen = weights(one), counted(one, monkeypatch)
    report = one.update(training_batch(one.algorithm), [1], 0)
    assert report.grad_norm is None
    assert one.updates == 0
    assert not seen
    assert torch.equal(weights(one), before)


@pytest.mark.slow
def test_a_kl_term_trains_groups_without_spread_too() -> None:
    one = learner(Pmpo(beta=0.1))
    batch = training_batch(one.algorithm)
    assert one.active(batch, range(GROUPS)) == [0, 1, 2, 3]
    one.score_reference(batch, range(GROUPS))
    assert one.update(batch, [0, 1, 2, 3], 0).kl == pytest.approx(0.0, abs=1e-7)
    assert one.update(batch, [0, 1, 2, 3], 1).kl > 1e-6


def test_dapo_drops_groups_without_spread_from_the_denominator() -> None:
    one = learner(Dapo())
    batch = training_batch(one.algorithm)
    assert not batch.rollouts.mask[4:8].any()
    tokens = batch.rollouts.mask.sum(-1).double()
    report = one.update(batch, [0, 1], 0)
    expected = -float((batch.advantages[:4] * tokens[:4]).sum() / tokens[:8].sum())
    assert report.loss == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_the_first_forward_pass_gives_pi_old(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = learner(), learner()
    batch, scored = training_batch(one.algorithm), training_batch(one.algorithm)
    other.score(scored, [0, 2])
    seen = counted(one, monkeypatch)
    report = one.update(batch, [0, 2], 0)
    assert len(seen) == 1
    known = batch.rollouts.mask & ~batch.old_log_probs.isnan()
    assert known.sum() == batch.rollouts.mask[[*range(4), *range(8, 12)]].sum()
    assert torch.allclose(batch.old_log_probs[known], scored.old_log_probs[known], atol=1e-5)
    assert torch.allclose(batch.entropy, scored.entropy, atol=1e-5, equal_nan=True)
    assert report.values["ratio_max"][report.rows].nan_to_num(1.0).eq(1.0).all()


def test_later_updates_see_ratios_away_from_one() -> None:
    one = learner()
    batch = training_batch(one.algorithm)
    one.score(batch, [2, 3])
    one.update(batch, [0, 1], 0)
    second = one.update(batch, [2, 3], 1)
    assert float(second.values["ratio_max"][8:].max()) > 1.001


@pytest.mark.slow
@pytest.mark.parametrize("spec", [Pmpo(), Grpo(), Cispo(), Pmpo(beta=0.1)], ids=lambda s: f"{s.name}{s.beta}")
def test_on_policy_the_samplers_log_probs_give_the_same_updates(spec: object) -> None:
    """Two minibatches, two epochs; in float32 engine and trainer agree."""
    found = []
    for old_policy in ("trainer", "sampler"):
        one = learner(spec)
        batch = training_batch(one.algorithm, sampled_by(one.policy), old_policy)
        one.score(batch, [2, 3])
        one.score_reference(batch, range(GROUPS))
        reports = [one.update(batch, groups, n) for n, groups in enumerate([[0, 1], [2, 3]] * 2)]
        found.append((weights(one), reports))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-4)
    for trainers, samplers in zip(found[0][1], found[1][1], strict=True):
        assert samplers.loss == pytest.approx(trainers.loss, abs=1e-4)
        for name in ("ess", "clip_fraction", "ratio_min", "ratio_max"):
            seen = samplers.values[name]
            assert torch.allclose(seen, trainers.values[name], atol=1e-4, equal_nan=True), name


@pytest.mark.slow
def test_with_the_samplers_log_probs_staleness_is_in_the_first_updates_ratios() -> None:
    """The rollouts are of weights some updates ago: p sees it, while the trainer's own pi_old hides it."""
    spec = Pmpo(clip_low=0.02, clip_high=0.02)
    found = {}
    for old_policy in ("trainer", "sampler"):
        one = learner(spec)
        given = sampled_by(one.policy)
        moved = training_batch(one.algorithm, given)
        for number in range(3):
            one.update(moved, range(GROUPS), number)
        found[old_policy] = one.update(training_batch(one.algorithm, given, old_policy), range(GROUPS), 0)
    ratios, p = found["sampler"].values["ratio_max"], found["sampler"].values["p"]
    assert float(ratios.nan_to_num(1.0).max()) > 1.02
    clipped = found["sampler"].values["clip_fraction"] > 0
    assert clipped.any()
    assert (p[clipped & ~p.isnan()] < 1).all()
    assert (p[clipped & ~p.isnan()] < 1).any()
    assert found["trainer"].values["ratio_max"].nan_to_num(1.0).eq(1.0).all()
    assert found["trainer"].values["p"].isnan().all()  # all ratios are equal


def test_nothing_is_scored_for_the_samplers_log_probs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass an update. Entropy and the trainer's log-probs come with the passes before the first step."""
    one = learner()
    batch = training_batch(one.algorithm, old_policy="sampler")
    start = training_batch(one.algorithm)
    one.score(start, range(GROUPS))
    seen = counted(one, monkeypatch)
    one.score(batch, range(GROUPS))
    assert not seen
    for number, groups in enumerate([[1], [0, 2], [3], [0, 2]]):
        one.update(batch, groups, number)
    assert len(seen) == 3  # group 1 has no spread
    first = torch.zeros(GROUPS * SIZE, dtype=torch.bool)
    first[[*range(4), *range(8, 12)]] = True
    assert torch.equal(batch.entropy.isnan(), ~first)
    assert torch.allclose(batch.entropy[first], start.entropy[first], atol=1e-5)
    known = batch.rollouts.mask & first[:, None]
    assert torch.equal(batch.rollouts.mask & ~batch.start_log_probs.isnan(), known)
    assert torch.allclose(batch.start_log_probs[known], start.start_log_probs[known], atol=1e-5)
    mask = batch.rollouts.mask
    assert torch.equal(batch.old_log_probs[mask], rollouts().sampler_log_probs[mask])


@pytest.mark.parametrize("kind", ["off", "token", "sequence", "sequence_mean"])
def test_the_engines_log_probs_never_reach_what_drives_p(kind: str) -> None:
    """However far off they are: p, ESS, clips and ratios stay the same."""
    seen = []
    for shift in (0.0, 0.7):
        one = learner(Pmpo(clip_low=0.02, clip_high=0.02, importance_sampling_correction=kind))
        given = rollouts()
        batch = training_batch(
            one.algorithm, replace(given, sampler_log_probs=given.sampler_log_probs - shift * given.mask)
        )
        one.score(batch, range(GROUPS))
        with torch.no_grad():  # as if an update had moved the policy, the same one both times
            for weight in one.policy.model.parameters():
                weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        seen.append((batch, one.update(batch, range(GROUPS), 0)))
    (_, plain), (_, shifted) = seen
    assert (plain.values["p"] < 1).any()
    for name in ("p", "ess", "ess_at_1", "ess_target", "clip_fraction", "ratio_min", "ratio_max"):
        assert torch.equal(plain.values[name].nan_to_num(-1), shifted.values[name].nan_to_num(-1)), name
    if kind != "off":
        assert plain.grad_norm != pytest.approx(shifted.grad_norm, rel=1e-3)
    compared = [
        mismatch(b.start_log_probs, b.rollouts.sampler_log_probs, b.rollouts.mask, kind, 2.0) for b, _ in seen
    ]
    ratio = compared[1].token_ratio / compared[0].token_ratio
    known = ~plain.values["p"].isnan()
    assert torch.allclose(ratio[known], torch.full_like(ratio[known], 0.7).exp(), rtol=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("scored_first", [True, False])
def test_non_finite_trajectories_leave_the_batch_and_its_denominators(
    value: float, scored_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = learner()
    expected_batch = training_batch(clean.algorithm, without(rollouts(), torch.tensor([0, 9])))
    expected = clean.update(expected_batch, [0, 1, 2, 3], 0)
    one = learner()
    batch = training_batch(one.algorithm)
    poison({0, 9}, value, monkeypatch)
    if scored_first:
        one.score(batch, [0, 1, 2, 3])
    report = one.update(batch, [0, 1, 2, 3], 0)
    assert (~batch.usable).nonzero()[:, 0].tolist() == [0, 9]
    assert report.loss == pytest.approx(expected.loss, rel=1e-5)
    assert torch.allclose(weights(one), weights(clean), atol=1e-5)


@pytest.mark.parametrize("algorithm", [Pmpo(), Grpo(), Pmpo(beta=0.1)], ids=["pmpo", "grpo", "pmpo with kl"])
def test_tokens_are_recorded_of_what_an_update_trained_on(
    algorithm: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of a trajectory that was dropped, nor of one without advantage, nor beyond the recorded rows."""
    one = learner(algorithm, micro_batch_tokens=12)
    batch = replace(training_batch(one.algorithm), recorded=12)
    batch.advantages[2] = 0.0
    poison({0, 9}, float("nan"), monkeypatch)
    one.score_reference(batch, range(GROUPS))
    tokens = one.update(batch, [0, 1, 2, 3], 0).tokens
    assert sorted(row for part in tokens for row in part.rows.tolist()) == [1, 3, 8, 10, 11]
    for part in tokens:
        assert torch.allclose(part.weight.sum(-1), torch.ones(len(part.rows)), atol=1e-6)
        assert part.weight.shape == part.log_ratio.shape == part.clipped.shape
        assert part.weight.shape[1] >= int(rollouts().lengths[part.rows].max())
        assert not part.log_ratio.requires_grad
        assert not part.weight.requires_grad


def test_a_batch_with_nothing_left_names_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    one = learner()
    batch = training_batch(one.algorithm, without(rollouts(), torch.arange(4, 16)))
    poison({0, 1, 2, 3}, float("nan"), monkeypatch)
    with pytest.raises(TrainingError, match="step 7") as caught:
        one.update(batch, [0], 0)
    assert caught.value.error.code == "non_finite_loss"


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_step() -> None:
    one = learner()
    weight = next(iter(one.policy.model.parameters()))
    weight.register_hook(lambda gradient: gradient * float("nan"))
    before = weights(one)
    with pytest.raises(TrainingError, match="step 7: the gradient of update 3"):
        one.update(training_batch(one.algorithm), [0, 2], 3)
    assert torch.equal(weights(one), before)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [{}, {"bfloat16_weights": True}], ids=["float32", "bfloat16 weights"])
def test_out_of_memory_halves_micro_batches_once_and_leaves_nothing_behind(
    kind: dict[str, bool], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The update is, bit for bit, what the smaller size gives from the start."""
    updates, seen = [], []
    for tokens in (10, 20):
        one = replace(learner(micro_batch_tokens=tokens, **kind), may_lower=True)
        batch = replace(training_batch(one.algorithm), recorded=GROUPS * SIZE)
        if tokens == 20:
            fail_in({1}, monkeypatch)  # the pass before it has given gradients and pi_old
        updates.append([one.update(batch, range(GROUPS), number) for number in range(2)])
        seen.append((one, batch))
    (plain, expected), (lowered, batch) = seen
    assert (lowered.micro_batch_tokens, lowered.may_lower) == (10, False)
    assert [record.message for record in caplog.records] == [
        "out of memory (CUDA out of memory.): micro-batches of 10 tokens from now on"
    ]
    assert torch.equal(weights(lowered), weights(plain))
    assert torch.equal(batch.old_log_probs.nan_to_num(1), expected.old_log_probs.nan_to_num(1))
    assert torch.equal(batch.entropy.nan_to_num(1), expected.entropy.nan_to_num(1))
    for whole, after in zip(*updates, strict=True):
        assert (after.loss, after.grad_norm, after.distance_to_grpo) == (
            whole.loss,
            whole.grad_norm,
            whole.distance_to_grpo,
        )
        for name, values in whole.values.items():
            assert torch.equal(after.values[name].nan_to_num(-7), values.nan_to_num(-7)), name


@pytest.mark.parametrize("may_lower", [True, False], ids=["auto", "a number in the spec"])
def test_what_does_not_fit_is_out_of_memory(
    may_lower: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A size from the spec is kept to; auto is lowered once."""
    one = replace(learner(micro_batch_tokens=40), may_lower=may_lower)
    before = weights(one)
    fail_in(range(9), monkeypatch)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        one.update(training_batch(one.algorithm), range(GROUPS), 0)
    error = failed(caught.value).error
    assert error is not None
    assert (error.code, error.path) == ("out_of_memory", "training.micro_batch_tokens")
    assert one.micro_batch_tokens == (20 if may_lower else 40)
    assert len(caplog.records) == may_lower
    assert torch.equal(weights(one), before)


def test_an_error_that_is_not_memory_lowers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    one = replace(learner(), may_lower=True)
    fail_in({0}, monkeypatch, RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        one.update(training_batch(one.algorithm), range(GROUPS), 0)
    assert (one.micro_batch_tokens, one.may_lower) == (1024, True)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_drops_in_the_backward_pass_what_the_forward_pass_dropped(dropout: float) -> None:
    found = []
    for checkpointing in (False, True):
        one = learner(lora=LoraSpec(rank=2, alpha=4, dropout=dropout), checkpointing=checkpointing)
        batch = training_batch(one.algorithm)
        one.score(batch, range(GROUPS))
        torch.manual_seed(5)
        reports = [one.update(batch, range(GROUPS), number) for number in range(3)]
        found.append((weights(one), reports[-1].loss))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=1e-6)
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-4)


def test_the_learning_rate_rises_linearly_and_stays() -> None:
    spec = OptimizerSpec(learning_rate=4.0e-3, warmup_updates=3)
    assert [learning_rate(spec, n, n, 10) for n in range(5)] == pytest.approx([1e-3, 2e-3, 3e-3, 4e-3, 4e-3])
    assert learning_rate(OptimizerSpec(learning_rate=1e-3, warmup_updates=0), 0, 0, 10) == 1e-3


def test_weight_decay_spares_norms() -> None:
    policy = make_policy(LlamaForCausalLM(tiny_config()), dtype=torch.float32, temperature=1.0)
    groups = make_optimizer(policy.model, OptimizerSpec(weight_decay=0.1)).param_groups
    assert {(weight.dim() >= 2, group["weight_decay"]) for group in groups for weight in group["params"]} == {
        (True, 0.1),
        (False, 0.0),
    }


def test_alone_nothing_is_copied_for_other_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a copy would have the host wait for the GPU."""
    monkeypatch.delattr(Ranks, "merged")
    one = learner(Pmpo(beta=0.1))
    batch = training_batch(one.algorithm)
    one.score_start(batch, [range(GROUPS)])
    one.update(batch, range(GROUPS), 0)
    assert batch.scored.all()
