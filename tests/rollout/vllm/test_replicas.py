"""Two real vLLM engines behind the pool that a trainer has: one start of each for the file."""

import importlib.util
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace

import pytest
import torch

from powermean.artefacts import ArtefactStore
from powermean.contracts.rollout import GenerateRequest, Sampling
from powermean.processes import marked
from powermean.tokens import KeyPair
from rollout.client import RolloutClient
from rollout.engine import Fence
from rollout.vllm import server as vllm_server
from rollout.vllm.command import VllmOptions
from rollout.vllm.engine import VllmEngine, load_engine
from rollout.vllm.server import Deadlines
from rollout.weights import WeightSource
from tests.support.served_vllm import JOB, PROMPTS, channel_writer, largest, served, tied_policy
from tests.support.tiny_model import char_tokenizer
from trainer.weights.channel import ChannelWriter
from trainer.weights.engine_pool import EnginePool
from trainer.weights.files import Publisher, WeightWriter
from trainer.weights.probe import probe

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

TOLERANCE = 1e-3  # of a log-prob, in float32


@dataclass
class Replicas:
    """Both engines, and a trainer's ways to them."""

    engines: list[VllmEngine]
    clients: list[RolloutClient]
    pool: EnginePool
    files: WeightWriter
    gloo: ChannelWriter

    def publish(self, writer: Publisher, seed: int, version: int) -> None:
        request = writer.write(tied_policy(seed).model, version)
        self.pool.publish(lambda service: writer.publish(service, request, 100.0), version)
        writer.discard(version)

    def difference(self, seed: int) -> float:
        return probe(self.pool, tied_policy(seed), PROMPTS, Sampling(max_new_tokens=8), pad_token_id=0)

    def versions(self) -> list[int]:
        return [client.health().version for client in self.clients]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, keys: KeyPair) -> Iterator[Replicas]:
    room = tmp_path_factory.mktemp("vllm-replicas")
    tied_policy(0).model.save_pretrained(room / "tiny")
    char_tokenizer().save_pretrained(room / "tiny")
    store = ArtefactStore((room / "artefacts").as_uri())

    def load(_number: int) -> VllmEngine:
        return load_engine(
            VllmOptions(room / "tiny", "float32", max_num_seqs=2, transfer="gloo"),
            fence=Fence(JOB, 1, 0),
            weights=WeightSource(store, room),
            deadlines=Deadlines(start=500, generate=200, sync_step=60),
        )

    threads = ThreadPoolExecutor(2)  # they live as long as what they start
    with ExitStack() as stack:
        engines = list(threads.map(load, range(2)))
        clients = [stack.enter_context(served(engine, room / "tiny", keys)) for engine in engines]
        files = WeightWriter(JOB, 1, "shm", torch.float32, store, room, shared_memory=room)
        gloo = channel_writer("gloo")
        stack.callback(gloo.close)
        yield Replicas(engines, clients, EnginePool(clients), files, gloo)
    threads.shutdown()


@pytest.mark.parametrize(("way", "version"), [("files", 1), ("gloo", 2)])
def test_a_publish_reaches_both_and_both_are_probed(both: Replicas, way: str, version: int) -> None:
    both.publish(getattr(both, way), version, version)
    assert both.versions() == [version, version]
    assert both.difference(version) < TOLERANCE
    assert both.difference(version + 1) > 0.1  # or the rest would show nothing


def test_greedy_completions_are_those_of_one_engine(both: Replicas) -> None:
    prompts = tuple((first, second) for first in (4, 7, 9) for second in (5, 8))
    request = GenerateRequest(prompts=prompts, n=2, sampling=Sampling(max_new_tokens=8, temperature=0))
    alone = both.clients[0].generate(request, 100.0)
    together = both.pool.generate(request, 100.0)
    for mine, theirs in zip(together.completions, alone.completions, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert one.token_ids == other.token_ids
            assert one.logprobs == pytest.approx(other.logprobs, abs=TOLERANCE)


def test_what_one_that_is_killed_in_mid_generation_had_begun_goes_to_the_other(
    both: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    for engine in both.engines:
        monkeypatch.setattr(engine, "_model", replace(engine._model, end_tokens=frozenset()))
    request = GenerateRequest(prompts=PROMPTS * 2, n=8, sampling=Sampling(max_new_tokens=50))
    victim = both.engines[1]
    before = sampled_tokens(victim)
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(both.pool.generate, request, 100.0)
        while sampled_tokens(victim) == before:
            assert not asked.done()
            time.sleep(0.01)
        os.kill(largest(marked(vllm_server._MARK, victim._server._mark)), signal.SIGKILL)
        answer = asked.result()
    assert [[len(one.token_ids) for one in group] for group in answer.completions] == [[50] * 8] * 4
    assert (both.pool.serving, both.pool.moved) == (1, 2)
    both.publish(both.gloo, 3, 3)  # the other one is starting again
    assert (both.pool.serving, both.clients[0].health().version) == (1, 3)
    assert both.difference(3) < TOLERANCE


def sampled_tokens(engine: VllmEngine) -> float:
    lines = engine._server.text("metrics", "/metrics").splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:generation_tokens_total"))
