"""Weights into real vLLM by gloo, as the trainer sends them. One start for the file, and one a death."""

import importlib.util
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import uvicorn
from transformers import LlamaForCausalLM

from powermean.artefacts import ArtefactStore
from powermean.contracts.rollout import Sampling
from powermean.processes import marked
from powermean.tokens import KeyPair, Verb, sign_attempt_token
from rollout import gloo
from rollout.app import create_app
from rollout.client import EngineRefused, RolloutClient
from rollout.engine import Fence
from rollout.engines import vllm_server
from rollout.engines.vllm import VllmEngine, load_engine
from rollout.engines.vllm_channel import offered
from rollout.engines.vllm_server import Deadlines, VllmOptions
from rollout.settings import RolloutSettings
from rollout.weights import WeightSource
from tests.tiny_model import char_tokenizer, tiny_config
from trainer.channel import ChannelWriter, connector
from trainer.policy import Policy, make_policy
from trainer.probe import probe
from trainer.steady_engine import SteadyEngine

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

JOB = "job-1"
PROMPTS = ((9, 4, 10, 7), (12, 5, 8))
TOLERANCE = 1e-3  # of a log-prob, in float32


def _policy(seed: int, **changed: int) -> Policy:
    torch.manual_seed(seed)
    config = tiny_config(
        **({"num_attention_heads": 2, "num_key_value_heads": 1} | changed),
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    return make_policy(LlamaForCausalLM(config), dtype=torch.float32, temperature=1.0)


class Stage:
    """A trainer's end on a rollout service that runs on this process's threads."""

    def __init__(self, engine: VllmEngine, client: RolloutClient) -> None:
        self.engine = engine
        self.client = client
        self.told: list[str] = []
        self.writer = self.new_writer()

    def new_writer(self, dtype: torch.dtype = torch.float32) -> ChannelWriter:
        return ChannelWriter(JOB, 1, "gloo", dtype, connector("gloo", "127.0.0.1"))

    def steady(self, policy: Policy) -> SteadyEngine:
        return SteadyEngine(self.client, self.writer, policy.model, self.told.append)

    def publish(self, policy: Policy, version: int, writer: ChannelWriter | None = None) -> None:
        """Once, without patience for restarts."""
        used = writer or self.writer
        try:
            used.publish(self.client, used.write(policy.model, version), 100.0)
        finally:
            used.discard(version)

    def difference(self, policy: Policy) -> float:
        return probe(self.client, policy, PROMPTS, Sampling(max_new_tokens=8), pad_token_id=0)

    def worker(self) -> int:
        """The process that holds the model: the one with the most memory."""
        pids = marked(vllm_server._MARK, self.engine._server._mark)
        return max(pids, key=lambda pid: int(Path(f"/proc/{pid}/statm").read_text().split()[1]))


@contextmanager
def _served(engine: VllmEngine, folder: Path, keys: KeyPair) -> Iterator[str]:
    settings = RolloutSettings(model=folder, job_id=JOB, public_key=folder / "key.pub")
    app = create_app(engine, settings, keys.public_pem)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, keys: KeyPair) -> Iterator[Stage]:
    room = tmp_path_factory.mktemp("vllm-gloo")
    _policy(0).model.save_pretrained(room / "model")
    char_tokenizer().save_pretrained(room / "model")
    transfer = offered("auto", on_gpu=False)
    assert transfer == "gloo", "the package must be installed with its entry point vllm.general_plugins"
    engine = load_engine(
        VllmOptions(room / "model", "float32", max_num_seqs=16, transfer=transfer),
        fence=Fence(JOB, 1, 0),
        weights=WeightSource(ArtefactStore((room / "artefacts").as_uri()), room),
        deadlines=Deadlines(start=500, generate=200, sync_step=60),
    )
    token = sign_attempt_token(keys.private_pem, JOB, 1, tuple(Verb), 3600)
    with _served(engine, room / "model", keys) as url, RolloutClient(url, lambda: token) as client:
        made = Stage(engine, client)
        yield made
        made.writer.close()
    engine.close()
    assert not marked(vllm_server._MARK, engine._server._mark)


def _refused(action: Callable[[], object]) -> str:
    with pytest.raises(EngineRefused) as caught:
        action()
    return caught.value.code


def _at_tensor(monkeypatch: pytest.MonkeyPatch, place: int, act: Callable[[], None]) -> list[float]:
    """Call `act` in mid-transfer, when our sender comes to that tensor. Returns when it did."""
    whole, seen, at = gloo.Sender.send, [0], list[float]()

    def sending(sender: gloo.Sender, tensors: Iterator[torch.Tensor]) -> None:
        def watched() -> Iterator[torch.Tensor]:
            for tensor in tensors:
                if seen[0] == place:
                    at.append(time.monotonic())
                    act()
                seen[0] += 1
                yield tensor

        whole(sender, watched())

    monkeypatch.setattr(gloo.Sender, "send", sending)
    return at


def test_after_each_publish_log_probs_are_the_new_models(stage: Stage) -> None:
    """Over one channel; the output layer follows the embedding that it is tied to."""
    assert stage.client.health().methods == ("store", "shm", "gloo")
    for version in (1, 2):
        policy = _policy(version)
        assert stage.difference(policy) > 0.1
        stage.publish(policy, version)
        assert stage.client.health().version == version
        assert stage.difference(policy) < TOLERANCE


def test_what_does_not_fit_is_refused_at_once_and_changes_nothing(stage: Stage) -> None:
    served = stage.client.health().version
    started = time.monotonic()
    assert _refused(lambda: stage.publish(_policy(1, intermediate_size=96), served + 1)) == "weights_mismatch"
    assert _refused(lambda: stage.publish(_policy(1), served)) == "stale_version"
    in_bfloat16 = stage.new_writer(torch.bfloat16)
    assert _refused(lambda: stage.publish(_policy(1), served + 1, in_bfloat16)) == "weights_mismatch"
    assert time.monotonic() - started < 20.0
    assert stage.difference(_policy(served)) < TOLERANCE
    stage.publish(_policy(served + 1), served + 1)
    assert stage.difference(_policy(served + 1)) < TOLERANCE


def test_vllm_killed_in_mid_transfer_ends_both_sides_and_is_made_good(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = stage.client.health().version + 1
    policy, worker = _policy(version), stage.worker()
    with monkeypatch.context() as patch:
        killed = _at_tensor(patch, 5, lambda: os.kill(worker, signal.SIGKILL))
        assert _refused(lambda: stage.publish(policy, version)) in {"engine_died", "engine_error"}
        seconds = time.monotonic() - killed[0]
    print(f"killed in mid-transfer: both sides had ended after {seconds:.1f} s")
    assert seconds < 30.0
    assert stage.client.health().version == version - 1
    steady = stage.steady(policy)
    steady.publish(stage.writer.write(policy.model, version), 100.0)  # waits for the restart
    assert stage.engine._server.starts == 2
    assert stage.difference(policy) < TOLERANCE


def test_vllm_that_hangs_in_mid_transfer_is_ended_at_the_deadline_and_made_good(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a death between two publishes is noticed by the next one, which opens the channel anew."""
    version = stage.client.health().version + 1
    policy, worker = _policy(version), stage.worker()
    with monkeypatch.context() as patch:
        server = stage.engine._server
        patch.setattr(server, "deadlines", replace(server.deadlines, sync_step=5.0))
        stopped = _at_tensor(patch, 5, lambda: os.kill(worker, signal.SIGSTOP))
        assert _refused(lambda: stage.publish(policy, version)) == "engine_timeout"
        seconds = time.monotonic() - stopped[0]
    print(f"hung in mid-transfer: both sides had ended after {seconds:.1f} s")
    assert seconds < 30.0
    steady = stage.steady(policy)
    steady.publish(stage.writer.write(policy.model, version), 100.0)
    assert stage.difference(policy) < TOLERANCE
    os.kill(stage.worker(), signal.SIGKILL)
    steady.publish(stage.writer.write(_policy(version + 1).model, version + 1), 100.0)
    assert stage.engine._server.starts == 4
    assert stage.difference(_policy(version + 1)) < TOLERANCE
