"""Real vLLM with a key/value cache that is too small for what is asked at once."""

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from threading import Event

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from powermean.artefacts import ArtefactStore
from powermean.contracts.rollout import GenerateRequest, Sampling
from powermean.engine_selection import CPU_CACHE_BLOCK
from rollout.engine import EngineError, Fence
from rollout.vllm import server as vllm_server
from rollout.vllm.command import VllmOptions
from rollout.vllm.engine import VllmEngine, load_engine
from rollout.vllm.server import Deadlines
from rollout.weights import WeightSource
from tests.support.served_vllm import JOB, tied_policy
from tests.support.tiny_model import char_tokenizer
from trainer.policy.policy import Policy

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

BLOCKS = 5  # vLLM keeps one for itself
NEW = 24
PREEMPTIONS, HITS = "vllm:num_preemptions_total", "vllm:prefix_cache_hits_total"


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tied_policy(0, max_position_embeddings=8 * CPU_CACHE_BLOCK)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, policy: Policy) -> Iterator[VllmEngine]:
    room = tmp_path_factory.mktemp("vllm-cache")
    policy.model.save_pretrained(room / "model")
    char_tokenizer().save_pretrained(room / "model")
    command = vllm_server.server_command
    with pytest.MonkeyPatch.context() as patched:  # as if memory held no more
        small = ["--num-gpu-blocks-override", str(BLOCKS)]
        patched.setattr(vllm_server, "server_command", lambda *given: [*command(*given), *small])
        started = load_engine(
            VllmOptions(room / "model", "float32", max_num_seqs=16),
            fence=Fence(JOB, 1, 0),
            weights=WeightSource(ArtefactStore((room / "artefacts").as_uri()), room),
            deadlines=Deadlines(start=500, generate=200, sync_step=120),
        )
        yield started
        started.close()


def _count(engine: VllmEngine, name: str) -> float:
    """A counter among the service's metrics."""
    families = text_string_to_metric_families(engine.metrics())
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


def test_completions_that_do_not_fit_together_are_set_back_and_finished(
    engine: VllmEngine, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each starts with almost a block and outgrows it; their log-probs are the model's all the same."""
    monkeypatch.setattr(engine, "_model", replace(engine._model, end_tokens=frozenset()))
    torch.manual_seed(1)
    prompts = tuple(tuple(row) for row in torch.randint(3, 19, (12, CPU_CACHE_BLOCK - 8)).tolist())
    assert _count(engine, PREEMPTIONS) == 0
    request = GenerateRequest(prompts=prompts, n=1, sampling=Sampling(max_new_tokens=NEW))
    response = engine.generate(request, Event())
    assert _count(engine, PREEMPTIONS) > 0
    for prompt, (completion,) in zip(prompts, response.completions, strict=True):
        assert len(completion.token_ids) == NEW
        ids = torch.tensor([[*prompt, *completion.token_ids]])
        with torch.no_grad():
            logits = policy.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        own = logits.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0]
        assert (own - torch.tensor(completion.logprobs)).abs().max() < 1e-3


def test_one_completion_that_could_never_fit_is_refused_by_name(engine: VllmEngine) -> None:
    longest = engine.state().max_model_len
    assert longest is not None
    assert longest <= BLOCKS * CPU_CACHE_BLOCK
    request = GenerateRequest(prompts=((9, 4, 10, 7),), n=1, sampling=Sampling(max_new_tokens=longest))
    with pytest.raises(EngineError) as caught:
        engine.generate(request, Event())
    assert caught.value.code == "too_long"
    assert "key/value cache" in str(caught.value)


def test_completions_share_whole_blocks_of_their_prompts_prefix(engine: VllmEngine) -> None:
    """A prompt of two blocks and a half: of 8 completions all but those that run first find two blocks."""
    torch.manual_seed(2)
    prompt = tuple(torch.randint(3, 19, (CPU_CACHE_BLOCK * 5 // 2,)).tolist())
    before = _count(engine, HITS)
    engine.generate(GenerateRequest(prompts=(prompt,), n=8, sampling=Sampling(max_new_tokens=4)), Event())
    assert _count(engine, HITS) - before == 7 * 2 * CPU_CACHE_BLOCK
