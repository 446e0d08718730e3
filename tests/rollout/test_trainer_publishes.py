"""Both sides of a publish meet: the engine serves what the trainer writes, with the trainer's log-probs."""

from pathlib import Path
from threading import Event
from typing import Literal

import pytest
import torch
from transformers import AutoModelForCausalLM

from powermean.artefacts import ArtefactStore
from powermean.contracts.rollout import GenerateRequest, GenerateResponse, PublishRequest, Sampling
from rollout.transformers.engine import TransformersEngine
from tests.support.tiny_engines import JOB, MakeEngine, save_tiny_model
from trainer.policy.loading import make_policy
from trainer.weights.engine_pool import EnginePool
from trainer.weights.files import WeightWriter
from trainer.weights.probe import probe

PROMPTS = ((10, 4, 11, 7), (9, 5))


class InProcess:
    """The engine as the trainer sees it, without HTTP in between."""

    def __init__(self, engine: TransformersEngine) -> None:
        self._engine = engine

    def generate(self, request: GenerateRequest, timeout_s: float) -> GenerateResponse:
        return self._engine.generate(request, Event())

    def publish(self, request: PublishRequest, timeout_s: float) -> None:
        self._engine.publish(request)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["shm", "store"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_engine_serves_what_the_trainer_publishes(
    tmp_path: Path,
    make_engine: MakeEngine,
    store: ArtefactStore,
    shared_memory: Path,
    method: Literal["shm", "store"],
    tied: bool,
) -> None:
    engine = make_engine(save_tiny_model(tmp_path / "engine", tied=tied))
    model = AutoModelForCausalLM.from_pretrained(save_tiny_model(tmp_path / "trainer", tied=tied, seed=3))
    policy = make_policy(model, dtype=torch.float32, temperature=1.0)
    sampling = Sampling(max_new_tokens=6, seed=0)
    served = InProcess(engine)
    assert (
        probe(EnginePool([served]), policy, PROMPTS, sampling, pad_token_id=0) > 0.1
    )  # or the rest would show nothing

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    writer = WeightWriter(JOB, 1, method, torch.float32, store, scratch, shared_memory)
    for version in (1, 2):
        engine.publish(writer.write(model, version))
        writer.discard(version)
        assert probe(EnginePool([served]), policy, PROMPTS, sampling, pad_token_id=0) < 1e-4
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(0.8)
    assert probe(EnginePool([served]), policy, PROMPTS, sampling, pad_token_id=0) > 0.01
