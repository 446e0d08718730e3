"""A checkpoint is all of the run's state, verified when it is read, without pickle."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from powermean.artefacts import ArtefactStore
from powermean.contracts.artefacts import Manifest
from powermean.contracts.models import LoraSpec
from powermean.contracts.training import OptimizerSpec
from tests.support.learners import GROUPS, learner, training_batch, weights
from tests.support.tiny_model import tiny_config
from trainer.failures import TrainingError
from trainer.learner import checkpoint
from trainer.learner.checkpoint import Progress
from trainer.learner.learner import Learner
from trainer.learner.optimizer import make_optimizer

PROGRESS = Progress(step=3, updates=11, tokens=2**40, reward_before=0.25, reward_after=None)


def made(seed: int = 0, **config: object) -> tuple[LlamaForCausalLM, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(tiny_config(**config))
    return model, make_optimizer(model, OptimizerSpec(learning_rate=1e-2))


def step(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer) -> None:
    model(input_ids=torch.tensor([[1, 2, 3]])).logits.square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, optimizer = made()
    step(model, optimizer)
    checkpoint.save(tmp_path, model, optimizer, PROGRESS)
    return tmp_path


def test_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = made()
    step(model, optimizer)
    checkpoint.save(tmp_path, model, optimizer, PROGRESS)
    other, fresh = made(seed=9)
    assert checkpoint.load(tmp_path, other, fresh) == PROGRESS
    for pair in ((model, optimizer), (other, fresh)):
        step(*pair)
    for (name, weight), found in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(weight, found), name
    for pair, name in (((model, optimizer), "whole"), ((other, fresh), "resumed")):
        (tmp_path / name).mkdir()
        checkpoint.save(tmp_path / name, *pair, PROGRESS)
    for file in sorted((tmp_path / "whole").iterdir()):
        assert file.read_bytes() == (tmp_path / "resumed" / file.name).read_bytes(), file.name


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        {"bfloat16_weights": True},
        {"lora": LoraSpec(rank=2, alpha=4, dropout=0.3)},
        {"lora": LoraSpec(rank=2, alpha=4), "bfloat16_weights": True},
    ],
    ids=["bfloat16 weights", "lora with dropout", "lora, bfloat16 weights"],
)
def test_a_learner_goes_on_bit_for_bit(kind: dict[str, Any], tmp_path: Path) -> None:
    """Weights below what bfloat16 holds, and which activations are dropped next."""
    whole, resumed = learner(**kind), learner(**kind)
    train(whole, 2)
    progress = Progress(step=2, updates=whole.updates)
    checkpoint.save(tmp_path, whole.policy.model, whole.optimizer, progress, whole.master_weights)
    train(whole, 2)
    torch.manual_seed(99)
    checkpoint.load(tmp_path, resumed.policy.model, resumed.optimizer, resumed.master_weights)
    resumed.updates = progress.updates
    assert not torch.equal(weights(resumed), weights(whole))
    train(resumed, 2)
    assert torch.equal(weights(resumed), weights(whole))
    for name, master in whole.master_weights.items():
        assert torch.equal(resumed.master_weights[name], master), name


def train(one: Learner, steps: int) -> None:
    for _ in range(steps):
        batch = training_batch(one.algorithm)
        one.score_start(batch, [range(GROUPS)])
        one.update(batch, range(GROUPS), 0)


def test_random_states_come_back(saved: Path) -> None:
    model, optimizer = made()
    checkpoint.load(saved, model, optimizer)
    drawn = (torch.rand(3), random.random(), np.random.rand(3))
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    checkpoint.load(saved, model, optimizer)
    again = (torch.rand(3), random.random(), np.random.rand(3))
    assert torch.equal(drawn[0], again[0])
    assert drawn[1] == again[1]
    assert np.array_equal(drawn[2], again[2])


def test_it_is_safetensors_and_json_alone(saved: Path) -> None:
    names = sorted(path.name for path in saved.iterdir())
    assert names == [
        "model.safetensors",
        "optimizer.safetensors",
        "random.safetensors",
        "state.json",
    ]
    json.loads((saved / "state.json").read_text())


def test_it_travels_through_the_store_and_is_verified(saved: Path, tmp_path: Path) -> None:
    store = ArtefactStore(f"file://{tmp_path}/store")
    manifest = checkpoint.store_folder(store, "jobs/a/checkpoints/1-3", saved)
    checkpoint.fetch_folder(store, manifest, tmp_path / "back")
    model, optimizer = made(seed=9)
    assert checkpoint.load(tmp_path / "back", model, optimizer) == PROGRESS

    path = store.local_path(manifest.files["model.safetensors"])
    assert path is not None
    path.chmod(0o600)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(TrainingError) as caught:
        checkpoint.fetch_folder(store, manifest, tmp_path / "again")
    assert caught.value.error.code == "checkpoint_unusable"
    assert not (tmp_path / "again" / "model.safetensors").exists()


def test_a_manifest_cannot_lead_outside_its_folder(tmp_path: Path) -> None:
    store = ArtefactStore(f"file://{tmp_path}/store")
    ref = store.put_bytes("jobs/a", "x", b"x")
    with pytest.raises(TrainingError):
        checkpoint.fetch_folder(store, Manifest.model_construct(files={"../escaped": ref}), tmp_path / "in")
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize(
    ("config", "why"),
    [({"num_hidden_layers": 1}, "weights differ"), ({"intermediate_size": 96}, "Size mismatch")],
)
def test_another_models_checkpoint_is_refused(saved: Path, config: dict[str, Any], why: str) -> None:
    model, optimizer = made(**config)
    with pytest.raises(TrainingError, match=why) as caught:
        checkpoint.load(saved, model, optimizer)
    assert caught.value.error.code == "checkpoint_unusable"


def test_a_part_that_is_missing_is_a_named_error(saved: Path) -> None:
    """Of four ranks' parts there is one: what it holds is not taken for all."""
    state = json.loads((saved / "state.json").read_text())
    (saved / "state.json").write_text(json.dumps(state | {"format": 2, "ranks": 4, "parts": 4}))
    (saved / "model.safetensors").rename(saved / "model.1-of-4.safetensors")
    with pytest.raises(TrainingError, match=r"model\.2-of-4") as caught:
        checkpoint.load(saved, *made())
    assert caught.value.error.code == "checkpoint_unusable"


@pytest.mark.parametrize(
    ("file", "text"),
    [("state.json", "{"), ("state.json", '{"format": 99}'), ("optimizer.safetensors", "x")],
)
def test_what_cannot_be_read_is_a_named_error(saved: Path, file: str, text: str) -> None:
    (saved / file).write_text(text)
    model, optimizer = made()
    with pytest.raises(TrainingError) as caught:
        checkpoint.load(saved, model, optimizer)
    assert caught.value.error.code == "checkpoint_unusable"
