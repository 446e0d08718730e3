"""Real vLLM on the CPU: weights change while a batch is sampled, and what comes of it is trained on."""

import importlib.util
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import pytest
import torch
import uvicorn

from powermean.artefacts import ArtefactStore
from powermean.contracts.algorithms import Pmpo
from powermean.contracts.rollout import GenerateRequest, GenerateResponse, PublishRequest, Sampling
from powermean.contracts.training import OptimizerSpec
from powermean.tokens import Verb, ensure_key_pair, sign_attempt_token
from rollout.app import create_app
from rollout.client import RolloutClient
from rollout.engine import Fence
from rollout.settings import RolloutSettings
from rollout.vllm.command import VllmOptions
from rollout.vllm.engine import VllmEngine, load_engine
from rollout.vllm.server import Deadlines
from rollout.weights import WeightSource
from tests.support.attempts import JOB, Played, Stage
from tests.support.tiny_model import build_tiny_model
from trainer.learner.learner import Learner
from trainer.learner.optimizer import make_optimizer
from trainer.learner.training_batch import TrainingBatch
from trainer.objectives import build_algorithm
from trainer.policy.loading import load_policy
from trainer.policy.policy import Policy
from trainer.rollouts.sampling import Engine, complete_prompts
from trainer.weights.engine_pool import EnginePool
from trainer.weights.files import WeightWriter
from trainer.weights.steady_engine import SteadyEngine

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

CONTEXT = 1024
LONGEST = 1000  # new tokens
TOLERANCE = 1e-3
STEPS = 10


class InProcess:
    """The engine as the trainer sees it, without HTTP in between."""

    def __init__(self, engine: VllmEngine) -> None:
        self._engine = engine
        self._closed = Event()

    def generate(self, request: GenerateRequest, timeout_s: float) -> GenerateResponse:
        return self._engine.generate(request, self._closed)

    def publish(self, request: PublishRequest, timeout_s: float) -> None:
        self._engine.publish(request)

    def close(self) -> None:
        self._closed.set()


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a tiny model that vLLM has a kernel for: on a CPU its heads must not be below 32."""
    room = tmp_path_factory.mktemp("vllm")
    shape = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": CONTEXT}
    build_tiny_model(room / "tiny", **shape)
    return room


@pytest.fixture(scope="module")
def engine(room: Path) -> Iterator[VllmEngine]:
    started = load_engine(
        VllmOptions(room / "tiny", "float32", max_num_seqs=32),
        fence=Fence(JOB, 1, 0),
        weights=WeightSource(None),
        deadlines=Deadlines(start=500, generate=200, sync_step=120),
    )
    yield started
    started.close()


@contextmanager
def served(engine: VllmEngine, folder: Path, attempt: int) -> Iterator[RolloutClient]:
    """A client of the rollout service around the engine."""
    keys = ensure_key_pair(folder)
    (folder / "key.pub").write_text(keys.public_pem)
    settings = RolloutSettings(
        engine="vllm", model=folder, job_id=JOB, attempt=attempt, public_key=folder / "key.pub"
    )
    config = uvicorn.Config(
        create_app(engine, settings, keys.public_pem), host="127.0.0.1", port=0, log_level="warning"
    )
    server = uvicorn.Server(config)
    thread = Thread(target=server.run)
    thread.start()
    try:
        _until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        token = sign_attempt_token(keys.private_pem, JOB, attempt, tuple(Verb), 900)
        with RolloutClient(f"http://127.0.0.1:{port}", lambda: token) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(30)


def play(room: Path, engine: Engine, attempt: int, steps: int, staleness: int) -> Played:
    stage = Stage(room, room)
    played = stage.play(
        attempt,
        engine=engine,  # type: ignore[arg-type]
        training={"steps": steps, "prompts_per_step": 16, "minibatches": 2, "epochs": 2},
        rollout={"group_size": 8, "max_new_tokens": 4, "stop": ["\n"], "max_staleness": staleness},
        evaluation={"every": 0, "problems": 25},
    )
    assert not [thread for thread in threading.enumerate() if thread.name == "sampler"]
    assert played.finish.outcome == "finished", played.finish.error
    assert max(played.series("publish/logp_difference_max")) < TOLERANCE
    for step, rows in played.trajectories.items():
        for row in rows:
            spans = row.weight_versions
            assert [span.start for span in spans] == [0, *(span.end for span in spans[:-1])]
            assert spans[-1].end == row.length
            assert row.weight_version == spans[0].version
            assert all(step - 1 - staleness <= span.version <= step - 1 for span in spans)
    return played


def test_a_run_that_samples_ahead_on_vllm_learns(room: Path, engine: VllmEngine) -> None:
    played = play(room, InProcess(engine), 1, STEPS, staleness=1)
    rewards = played.series("reward")
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1
    versions = [{row.weight_version for row in rows} for rows in played.trajectories.values()]
    assert any(min(found) == step - 2 for step, found in enumerate(versions, start=1))


def test_it_does_so_through_the_service(room: Path, engine: VllmEngine, tmp_path: Path) -> None:
    """The folder's weights come first: a run's engine starts with them, this one has those of another run."""
    policy = _policy(room)
    with _published(InProcess(engine), policy, tmp_path, attempt=2, version=0):
        pass
    with served(engine, tmp_path, attempt=2) as client:
        play(room, client, 2, steps=3, staleness=2)


def test_trajectories_of_two_versions_are_scored_anew_and_trained_on(
    room: Path, engine: VllmEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_model", replace(engine._model, end_tokens=frozenset()))
    policy = _policy(room)
    prompts = [(9, 4, 10, 7), (9, 4, 11, 7)]
    sampling = Sampling(max_new_tokens=LONGEST)
    with (
        _published(InProcess(engine), policy, tmp_path, attempt=3, version=6) as steady,
        ThreadPoolExecutor(1) as pool,
    ):
        sampled = _sampled_tokens(engine)
        asked = pool.submit(
            complete_prompts, steady.beside(), prompts, count=4, sampling=sampling, pad_token_id=0
        )
        _until(lambda: _sampled_tokens(engine) > sampled + 80)
        with torch.no_grad():
            for weight in policy.model.parameters():
                weight.mul_(0.98)
        _publish(steady, 7)
        rollouts = asked.result(200)
    assert rollouts.weight_version.tolist() == [6] * 8
    for spans in rollouts.versions:
        assert [span.version for span in spans] == [6, 7]
        assert (spans[0].start, spans[0].end, spans[1].end) == (0, spans[1].start, LONGEST)

    learner = _learner(policy)
    rewards = torch.tensor([0.0, 1.0] * 4, dtype=torch.float64)
    batch = TrainingBatch.start(
        8,
        rollouts,
        advantages=rewards - 0.5,
        kept=torch.ones(8, dtype=torch.bool),
        rewards=rewards,
        progress=0.5,
        max_new_tokens=LONGEST,
    )
    learner.score(batch, [0, 1])
    gap = (batch.old_log_probs - rollouts.sampler_log_probs).abs()
    for row, spans in enumerate(rollouts.versions):
        assert gap[row, spans[1].start :].max() < TOLERANCE  # made by the weights that score
        assert gap[row, : spans[1].start].max() > TOLERANCE  # made by older ones
    report = learner.update(batch, [0, 1], 0)
    assert report.grad_norm is not None
    assert report.values["ratio_max"].tolist() == [1.0] * 8


def _policy(room: Path) -> Policy:
    return load_policy(room / "tiny", device=torch.device("cpu"), dtype=torch.float32, temperature=1.0)


def _learner(policy: Policy) -> Learner:
    return Learner(
        policy=policy,
        reference=None,
        algorithm=build_algorithm(Pmpo()),
        spec=OptimizerSpec(),
        optimizer=make_optimizer(policy.model, OptimizerSpec()),
        micro_batch_tokens=32,
        pad_token_id=0,
    )


@contextmanager
def _published(
    engine: Engine, policy: Policy, folder: Path, attempt: int, version: int
) -> Iterator[SteadyEngine]:
    """The engine with the policy's weights."""
    store = ArtefactStore((folder / "store").as_uri())
    writer = WeightWriter(JOB, attempt, "shm", torch.float32, store, folder)
    steady = SteadyEngine(EnginePool([engine]), writer, policy.model, lambda _text: None)
    _publish(steady, version)
    yield steady


def _publish(steady: SteadyEngine, version: int) -> None:
    try:
        steady.publish(steady.weights.write(steady.model, version), 120.0)
    finally:
        steady.weights.discard(version)


def _sampled_tokens(engine: VllmEngine) -> float:
    lines = engine._server.text("count", "/metrics").splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:generation_tokens_total"))


def _until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
