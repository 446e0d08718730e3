"""Log-probs of the policy are those of a plain forward pass, in value and gradient, however computed."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM as Causal
from transformers import (
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    PretrainedConfig,
    Qwen2Config,
)

from trainer.failures import TrainingError
from trainer.learner.policy import Policy, make_policy, resolve_device, resolve_dtype, without_dropout
from trainer.rollouts.batching import GroupBatch

SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
LLAMA = LlamaConfig(**SMALL, tie_word_embeddings=True)
QWEN = Qwen2Config(**SMALL, tie_word_embeddings=False)
SLIDING = Gemma2Config(**SMALL, head_dim=8, sliding_window=4, query_pre_attn_scalar=8)
GPT2 = GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3)
MAMBA = MambaConfig(vocab_size=40, hidden_size=32, num_hidden_layers=2, state_size=4)


def policy_of(config: PretrainedConfig, temperature: float = 1.0) -> Policy:
    torch.manual_seed(0)
    return make_policy(Causal.from_config(config), dtype=torch.float32, temperature=temperature)


def batch() -> GroupBatch:
    """Three prompts of 2, 5 and 4 tokens, two completions each, of 1 to 6 tokens."""
    chance = torch.Generator().manual_seed(1)
    lengths = torch.tensor([6, 1, 3, 4, 2, 6])
    prompt_lengths = torch.tensor([2, 5, 4])
    return GroupBatch(
        prompts=torch.randint(0, 40, (3, 5), generator=chance),
        prompt_mask=(torch.arange(5) >= 5 - prompt_lengths[:, None]).long(),
        tokens=torch.randint(0, 40, (6, 6), generator=chance),
        mask=torch.arange(6) < lengths[:, None],
        rows=torch.arange(6),
    )


def plain(policy: Policy, given: GroupBatch) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies [B, T], one unpadded sequence at a time; 0 on padding."""
    rows, entropies = [], []
    for row, (tokens, mask) in enumerate(zip(given.tokens, given.mask, strict=True)):
        group = row // given.group_size
        prompt = given.prompts[group][given.prompt_mask[group].bool()]
        length = int(mask.sum())
        logits = policy.model(input_ids=torch.cat([prompt, tokens[:length]])[None]).logits[0]
        log_softmax = (logits[len(prompt) - 1 : -1] / policy.temperature).log_softmax(-1)
        found = log_softmax.gather(-1, tokens[:length, None])[:, 0]
        rows.append(torch.cat([found, torch.zeros(len(tokens) - length)]))
        entropy = -(log_softmax.exp() * log_softmax).sum(-1).detach()
        entropies.append(torch.cat([entropy, torch.zeros(len(tokens) - length)]))
    return torch.stack(rows), torch.stack(entropies)


def gradients(policy: Policy, loss: Tensor) -> Tensor:
    policy.model.zero_grad()
    loss.backward()
    return torch.cat([w.grad.flatten() for w in policy.model.parameters() if w.grad is not None])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("config", [LLAMA, QWEN, GPT2], ids=lambda c: c.model_type)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "whole"])
def test_log_probs_and_gradients_equal_a_plain_forward_pass(
    config: PretrainedConfig, shared: bool, temperature: float
) -> None:
    policy = replace(policy_of(config, temperature), shared_prompts=shared)
    given = batch()
    weights = torch.randn(given.tokens.shape, generator=torch.Generator().manual_seed(2)) * given.mask
    scores = policy.score(given, entropy=True)
    expected, entropy = plain(policy, given)
    assert torch.allclose(scores.log_probs * given.mask, expected, atol=1e-5)
    assert scores.entropy is not None
    assert torch.allclose(scores.entropy * given.mask, entropy, atol=1e-5)
    ours = gradients(policy, (scores.log_probs * weights).sum())
    theirs = gradients(policy, (expected * weights).sum())
    assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())


@pytest.mark.parametrize(
    ("config", "shared"),
    [(LLAMA, True), (QWEN, True), (GPT2, True), (SLIDING, False), (MAMBA, False)],
    ids=lambda value: getattr(value, "model_type", str(value)),
)
def test_prompts_are_shared_where_the_cache_can_be_repeated(config: PretrainedConfig, shared: bool) -> None:
    policy = policy_of(config)
    assert policy.shared_prompts is shared


def test_a_sliding_window_is_scored_whole() -> None:
    policy = policy_of(SLIDING)
    given = batch()
    expected, _ = plain(policy, given)
    assert torch.allclose(policy.score(given).log_probs * given.mask, expected, atol=1e-5)


def test_completions_of_one_token_need_no_second_pass() -> None:
    policy, given = policy_of(LLAMA), batch()
    short = replace(given, tokens=given.tokens[:, :1], mask=given.mask[:, :1])
    assert torch.allclose(policy.score(short).log_probs, plain(policy, short)[0], atol=1e-5)


def test_gradient_checkpointing_changes_no_number_and_no_gradient() -> None:
    given = batch()
    config = LlamaConfig(**SMALL, attention_dropout=0.5)
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        policy = make_policy(
            Causal.from_config(config),
            dtype=torch.float32,
            temperature=1.0,
            gradient_checkpointing=checkpointing,
        )
        assert policy.shared_prompts is not checkpointing
        log_probs = policy.score(given).log_probs
        found.append((log_probs.detach(), gradients(policy, (log_probs * given.mask).sum())))
    assert torch.allclose(found[0][0] * given.mask, found[1][0] * given.mask, atol=1e-5)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-4)


def test_dropout_is_off() -> None:
    model = Causal.from_config(GPT2Config(vocab_size=40, n_embd=32, n_layer=1, n_head=4, resid_pdrop=0.5))
    without_dropout(model).train()
    ids = torch.arange(6)[None]
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


def test_bfloat16_keeps_float32_weights_and_stays_near() -> None:
    exact, given = policy_of(LLAMA), batch()
    rough = replace(exact, dtype=torch.bfloat16)
    found = rough.score(given).log_probs
    assert found.dtype == torch.float32
    assert {weight.dtype for weight in rough.model.parameters()} == {torch.float32}
    difference = (found - exact.score(given).log_probs) * given.mask
    assert float(difference.detach().abs().max()) < 0.25


def test_a_gpu_that_is_not_there_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError) as caught:
        resolve_device("auto", gpus=1)
    assert caught.value.error.code == "cuda_unavailable"
    assert caught.value.error.path == "resources.gpus"
    assert resolve_device("auto", gpus=0) == torch.device("cpu")


def test_auto_dtype_follows_the_device() -> None:
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32
    assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert resolve_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
