"""Real vLLM on the merged export of a trained adapter, and on merged weights that are published to it."""

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from powermean.artefacts import ArtefactStore
from powermean.contracts.models import LoraSpec
from powermean.contracts.rollout import Sampling
from rollout.engine import Fence
from rollout.vllm.command import VllmOptions
from rollout.vllm.engine import VllmEngine, load_engine
from rollout.vllm.server import Deadlines
from rollout.weights import WeightSource
from tests.rollout.test_trainer_publishes import InProcess
from tests.support.tiny_model import char_tokenizer, tiny_config
from trainer.learner.final_model import save_model
from trainer.learner.lora import attach
from trainer.policy.loading import make_policy
from trainer.policy.policy import Policy
from trainer.weights.engine_pool import EnginePool
from trainer.weights.files import WeightWriter
from trainer.weights.probe import probe

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

PROMPTS = ((9, 4, 10, 7), (12, 5, 8))
SAMPLING = Sampling(max_new_tokens=8)
TOLERANCE = 1e-3


def _policy(seed: int) -> Policy:
    """A base model whose output layer is tied to its embedding, with an adapter that does much."""
    torch.manual_seed(0)
    config = tiny_config(num_attention_heads=2, num_key_value_heads=1, initializer_range=0.3)
    plain = make_policy(LlamaForCausalLM(config), dtype=torch.float32, temperature=1.0)
    model = attach(plain.model, LoraSpec(rank=4, alpha=8), "some/model")  # type: ignore[arg-type]
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_" in name:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=chance))
    return replace(plain, model=model)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vllm-export")


@pytest.fixture(scope="module")
def engine(room: Path) -> Iterator[VllmEngine]:
    char_tokenizer().save_pretrained(room / "base")
    save_model(_policy(1), room / "base", room / "model")
    started = load_engine(
        VllmOptions(room / "model", "float32", max_num_seqs=16),
        fence=Fence("job-1", 1, 0),
        weights=WeightSource(None, room),
        deadlines=Deadlines(start=500, generate=200, sync_step=120),
    )
    yield started
    started.close()


def test_the_merged_export_is_the_trained_policy(engine: VllmEngine) -> None:
    served = InProcess(engine)  # type: ignore[arg-type]
    assert probe(EnginePool([served]), _policy(1), PROMPTS, SAMPLING, 0) < TOLERANCE
    assert probe(EnginePool([served]), _policy(2), PROMPTS, SAMPLING, 0) > 0.1


def test_merged_weights_of_an_adapter_reach_a_tied_output_layer(engine: VllmEngine, room: Path) -> None:
    store = ArtefactStore((room / "artefacts").as_uri())
    writer = WeightWriter("job-1", 1, "shm", torch.float32, store, room, shared_memory=room)
    served, policy = InProcess(engine), _policy(2)  # type: ignore[arg-type]
    engine.publish(writer.write(policy.model, 1))
    assert probe(EnginePool([served]), policy, PROMPTS, SAMPLING, 0) < TOLERANCE
    policy.model.get_input_embeddings().weight.data *= 0.7  # as if it were trained: the head follows it
    engine.publish(writer.write(policy.model, 2))
    assert probe(EnginePool([served]), policy, PROMPTS, SAMPLING, 0) < TOLERANCE
