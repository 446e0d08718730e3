"""LoRA jobs on one real vLLM: `python -m rollout` without a job of its own. test_fleet.py lets it die."""

import importlib.util
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from powermean.artefacts import ArtefactStore
from powermean.contracts.attempts import EngineStart
from powermean.contracts.models import LoraSpec
from powermean.contracts.rollout import Sampling
from powermean.processes import descendants
from powermean.tokens import KeyPair, ensure_key_pair, sign_attempt_token
from rollout.client import EngineRefusedError, RolloutClient
from tests.support.tiny_model import build_tiny_model
from trainer.learner.lora import attach
from trainer.policy.loading import make_policy
from trainer.policy.policy import Policy
from trainer.weights.engine_pool import EnginePool
from trainer.weights.files import WeightWriter
from trainer.weights.probe import probe

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.integration,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

START_S = 500.0
TOLERANCE = 1e-3
SLOTS = 2
PROMPTS = ((9, 4, 10, 7), (12, 4, 13, 7))
SAMPLING = Sampling(max_new_tokens=8)


class Service:
    """The rollout service, shared by the jobs that `jobs.json` lists."""

    def __init__(self, folder: Path, model: Path, keys: KeyPair) -> None:
        self.folder = folder
        self.model = model
        self.keys = keys
        self.store = ArtefactStore((folder / "store").as_uri())
        self.list_jobs()
        (folder / "key.pub").write_text(keys.public_pem)
        ready = folder / "engine.json"
        with (folder / "log.txt").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "rollout", "--engine", "vllm", "--model", str(model)),
                    *("--public-key", str(folder / "key.pub"), "--artefacts-url", self.store.url),
                    *("--max-adapters", str(SLOTS), "--max-lora-rank", "8", "--ready-file", str(ready)),
                    *("--jobs-file", str(folder / "jobs.json")),
                ],
                stdout=log,
                stderr=log,
            )
        _until(lambda: ready.exists() or self.process.poll() is not None, START_S)
        start = EngineStart.model_validate_json(ready.read_bytes())
        assert start.url is not None, start.error
        self.url = start.url

    def list_jobs(self, *jobs: str) -> None:
        (self.folder / "jobs.json").write_text(json.dumps(jobs))

    def token(self, job: str, attempt: int = 1) -> str:
        return sign_attempt_token(self.keys.private_pem, job, attempt, lifetime_s=3600)

    def client(self, job: str, attempt: int = 1) -> RolloutClient:
        return RolloutClient(self.url, lambda: self.token(job, attempt))

    def stop(self) -> None:
        family = descendants(self.process.pid)
        self.process.terminate()
        self.process.wait(60)
        _until(lambda: not any(_runs(pid) for pid in family), 30)


@dataclass(frozen=True)
class Trainer:
    """A job's policy and its way to the service: what a training run does, without learning anything."""

    service: Service
    job: str
    policy: Policy
    attempt: int = 1

    @classmethod
    def of(cls, service: Service, job: str, seed: int, rank: int = 4) -> "Trainer":
        plain = make_policy(
            AutoModelForCausalLM.from_pretrained(service.model), dtype=torch.float32, temperature=1.0
        )
        model = attach(plain.model, LoraSpec(rank=rank, alpha=8), "tiny")  # type: ignore[arg-type]
        trainer = cls(service, job, replace(plain, model=model))
        trainer.move(seed)
        return trainer

    @torch.no_grad()
    def move(self, seed: int) -> None:
        """Other weights, by which every log-prob changes."""
        chance = torch.Generator().manual_seed(seed)
        for name, weight in self.policy.model.named_parameters():
            if ".lora_" in name:
                weight.copy_(0.15 * torch.randn(weight.shape, generator=chance))

    def publish(self, version: int, *, token_of: str | None = None) -> None:
        folder = self.service.folder
        writer = WeightWriter(
            self.job, self.attempt, "shm", torch.float32, self.service.store, folder, adapter_alone=True
        )
        with self.service.client(token_of or self.job, self.attempt) as client:
            try:
                client.publish(writer.write(self.policy.model, version), 120)
            finally:
                writer.discard(version)

    def assert_served(self) -> None:
        """The engine's log-probs are those of this policy."""
        with self.service.client(self.job, self.attempt) as client:
            assert probe(EnginePool([client]), self.policy, PROMPTS, SAMPLING, 0) < TOLERANCE

    def drop(self) -> None:
        with self.service.client(self.job, self.attempt) as client:
            client.drop_adapter()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The model has heads that vLLM takes on a CPU; its output layer is tied to its embedding."""
    folder = tmp_path_factory.mktemp("shared")
    model = build_tiny_model(folder / "models" / "tiny", num_attention_heads=2, num_key_value_heads=1)
    started = Service(folder, model, ensure_key_pair(folder / "secrets"))
    yield started
    started.stop()


def _refused(call: Callable[[], object]) -> str:
    with pytest.raises(EngineRefusedError) as caught:
        call()
    return caught.value.code


def test_two_jobs_publish_and_sample_at_once_and_each_is_served_its_own_adapter(service: Service) -> None:
    jobs = [Trainer.of(service, "job-1", seed=1), Trainer.of(service, "job-2", seed=2)]
    failures: list[BaseException] = []

    def work(trainer: Trainer, seed: int) -> None:
        try:
            for version in range(4):
                trainer.move(seed + version)
                trainer.publish(version)
                trainer.assert_served()
        except BaseException as error:  # noqa: BLE001  (raised below, in the test's own thread)
            failures.append(error)

    threads = [threading.Thread(target=work, args=(job, 10 * i)) for i, job in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert failures == []
    for job in jobs:
        job.assert_served()
        with service.client(job.job) as client:
            state = client.health()
            assert (state.version, state.attempt) == (3, 1)
            assert state.adapters is not None
            assert (state.adapters.slots, state.adapters.taken) == (SLOTS, SLOTS)


def test_jobs_are_kept_apart_and_limits_are_named(service: Service) -> None:
    """Goes on from the test before: both slots are taken."""
    one, two = Trainer.of(service, "job-1", seed=3), Trainer.of(service, "job-2", seed=13)
    one.assert_served()
    assert _refused(lambda: one.publish(9, token_of="job-2")) == "forbidden"
    assert _refused(lambda: one.publish(3)) == "stale_version"
    service.list_jobs("job-1", "job-2", "job-3")
    third = Trainer.of(service, "job-3", seed=30)
    assert _refused(lambda: third.publish(0)) == "adapter_slots"
    assert _refused(third.assert_served) == "adapter_missing"
    assert _refused(lambda: Trainer.of(service, "job-1", seed=1, rank=9).publish(9)) == "adapter_rank"
    service.list_jobs("job-1", "job-3")
    third.publish(0)
    third.assert_served()
    assert _refused(two.assert_served) == "adapter_missing"
    again = replace(one, attempt=2)
    again.move(31)
    again.publish(1)
    again.assert_served()
    assert _refused(lambda: one.publish(10)) == "fenced"
    assert _refused(one.assert_served) == "fenced"
    again.drop()
    third.drop()


def _until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
