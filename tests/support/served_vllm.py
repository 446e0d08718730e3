"""A vLLM engine behind the real HTTP interface, on threads of the test, and a trainer's end on it."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import uvicorn
from transformers import LlamaForCausalLM

from powermean.contracts.rollout import ChannelMethod, Sampling
from powermean.processes import marked
from powermean.tokens import KeyPair, Verb, sign_attempt_token
from rollout.app import create_app
from rollout.client import EngineRefusedError, RolloutClient
from rollout.settings import RolloutSettings
from rollout.vllm import server as vllm_server
from rollout.vllm.engine import VllmEngine
from tests.support.attempts import JOB
from tests.support.tiny_model import tiny_config
from trainer.policy.loading import make_policy
from trainer.policy.policy import Policy
from trainer.weights.channel import ChannelWriter, connector
from trainer.weights.engine_pool import EnginePool
from trainer.weights.files import Publisher
from trainer.weights.probe import probe
from trainer.weights.steady_engine import SteadyEngine

PROMPTS = ((9, 4, 10, 7), (12, 5, 8))
LOOPBACK = "127.0.0.1"


def tied_policy(
    seed: int, *, dtype: torch.dtype = torch.float32, device: str = "cpu", **changed: float
) -> Policy:
    """A tiny model whose output layer is its embedding, with heads of a size that vLLM takes."""
    torch.manual_seed(seed)
    config = tiny_config(
        **(
            {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.3}
            | {"tie_word_embeddings": True}
            | changed
        )
    )
    return make_policy(LlamaForCausalLM(config).to(device), dtype=dtype, temperature=1.0)


class TrainerEnd:
    """What a trainer does with a rollout service, without patience for its restarts."""

    def __init__(self, engine: VllmEngine, client: RolloutClient, writer: Publisher) -> None:
        self.engine = engine
        self.client = client
        self.writer = writer
        self.told: list[str] = []

    def steady(self, policy: Policy) -> SteadyEngine:
        return SteadyEngine(EnginePool([self.client]), self.writer, policy.model, self.told.append)

    def publish(self, policy: Policy, version: int, writer: Publisher | None = None) -> None:
        used = writer or self.writer
        try:
            used.publish(self.client, used.write(policy.model, version), 100.0)
        finally:
            used.discard(version)

    def difference(self, policy: Policy) -> float:
        """Largest difference of a log-prob, in nats."""
        return probe(EnginePool([self.client]), policy, PROMPTS, Sampling(max_new_tokens=8), pad_token_id=0)

    def worker(self) -> int:
        """The process that holds the model."""
        return largest(marked(vllm_server._MARK, self.engine._server._mark))


def largest(pids: Iterable[int]) -> int:
    """The process with the most memory: of vLLM's, the one that holds the model."""

    def resident(pid: int) -> int:
        try:
            return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            return 0

    return max(pids, key=resident)


def channel_writer(method: ChannelMethod, dtype: torch.dtype = torch.float32) -> ChannelWriter:
    return ChannelWriter(JOB, 1, method, dtype, connector(method, lambda _target: LOOPBACK))


@contextmanager
def served(engine: VllmEngine, folder: Path, keys: KeyPair) -> Iterator[RolloutClient]:
    """The engine's client; the engine is closed in the end and leaves no process."""
    settings = RolloutSettings(model=folder, job_id=JOB, public_key=folder / "key.pub")
    app = create_app(engine, settings, keys.public_pem)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    token = sign_attempt_token(keys.private_pem, JOB, 1, tuple(Verb), 3600)
    url = f"http://{LOOPBACK}:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        with RolloutClient(url, lambda: token) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(30)
        engine.close()
    assert not thread.is_alive()
    assert not marked(vllm_server._MARK, engine._server._mark)


def refused(action: Callable[[], object]) -> str:
    """The code of the service's refusal."""
    with pytest.raises(EngineRefusedError) as caught:
        action()
    return caught.value.code
