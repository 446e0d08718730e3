"""The laws of publishing on CUDA, in bfloat16: real vLLM, a tiny tied model, each way of the weights.

`pytest -m gpu`. One GPU: shm and ipc; a second one: nccl. A start of vLLM for each.
"""

import importlib.util
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from powermean.artefacts import ArtefactStore
from powermean.contracts.rollout import PublishMethod
from powermean.tokens import KeyPair, ensure_key_pair
from rollout.client import EngineRefusedError
from rollout.engine import Fence
from rollout.vllm.command import VllmOptions
from rollout.vllm.engine import load_engine
from rollout.vllm.server import Deadlines
from rollout.weights import WeightSource
from tests.support.served_vllm import JOB, TrainerEnd, channel_writer, served, tied_policy
from tests.support.tiny_model import char_tokenizer
from trainer.failures import TrainingError
from trainer.policy.policy import Policy
from trainer.weights.files import Publisher, WeightWriter
from trainer.weights.probe import BFLOAT16_TOLERANCE

GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.vllm,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(GPUS == 0, reason="PyTorch sees no CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

SOON_S = 200.0  # a publish's deadline, and some more
needs_two = pytest.mark.skipif(GPUS < 2, reason=f"nccl goes between two GPUs, there are {GPUS}")


@pytest.fixture(scope="module")
def own_keys(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return ensure_key_pair(tmp_path_factory.mktemp("secrets"))


@pytest.fixture(scope="module", params=["shm", "ipc", pytest.param("nccl", marks=needs_two)])
def trainer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, own_keys: KeyPair
) -> Iterator[TrainerEnd]:
    """vLLM on the first GPU; the trainer beside it, for nccl on the second."""
    method: PublishMethod = request.param
    room = tmp_path_factory.mktemp(f"cuda-{method}")
    tied_policy(0).model.save_pretrained(room / "model")
    char_tokenizer().save_pretrained(room / "model")
    (room / "shm").mkdir()
    store = ArtefactStore((room / "artefacts").as_uri())
    transfer = method if method in ("ipc", "nccl") else None
    torch.cuda.set_device(_device(method))
    engine = load_engine(
        VllmOptions(room / "model", "bfloat16", max_num_seqs=16, gpu_memory_share=0.3, transfer=transfer),
        fence=Fence(JOB, 1, 0),
        weights=WeightSource(store, room / "shm"),
        deadlines=Deadlines(start=900, generate=200, sync_step=60),
    )
    with served(engine, room / "model", own_keys) as client:
        made = TrainerEnd(engine, client, _writer(method, room, store))
        yield made
        made.writer.close()


def _writer(method: PublishMethod, room: Path, store: ArtefactStore) -> Publisher:
    if method == "nccl" or method == "ipc":
        return channel_writer(method, torch.bfloat16)
    return WeightWriter(JOB, 1, "shm", torch.bfloat16, store, room, shared_memory=room / "shm")


def _device(method: str) -> str:
    return "cuda:1" if method == "nccl" else "cuda:0"


def _policy(seed: int) -> Policy:
    return tied_policy(seed, dtype=torch.bfloat16, device=f"cuda:{torch.cuda.current_device()}")


def test_after_each_publish_log_probs_are_the_new_models(trainer: TrainerEnd) -> None:
    """On one channel; the output layer follows the embedding that it is tied to."""
    for version in (1, 2):
        policy = _policy(version)
        assert trainer.difference(policy) > 2 * BFLOAT16_TOLERANCE
        trainer.publish(policy, version)
        assert trainer.client.health().version == version
        assert trainer.difference(policy) < BFLOAT16_TOLERANCE


def test_vllm_killed_before_it_receives_ends_both_sides_and_is_made_good(trainer: TrainerEnd) -> None:
    """NCCL's own calls would wait for ever for a peer that is gone."""
    version = trainer.client.health().version + 1
    policy = _policy(version)
    request = trainer.writer.write(policy.model, version)
    os.kill(trainer.worker(), signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises((EngineRefusedError, TrainingError)) as caught:
        trainer.writer.publish(trainer.client, request, 100.0)
    seconds = time.monotonic() - started
    print(f"{request.method}: {caught.value.error.code} after {seconds:.1f} s")
    assert seconds < SOON_S
    trainer.steady(policy).publish(trainer.writer.write(policy.model, version), 100.0)
    trainer.writer.discard(version)
    assert trainer.difference(policy) < BFLOAT16_TOLERANCE
