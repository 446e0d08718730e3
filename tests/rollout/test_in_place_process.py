"""Weights in place between two processes: one memory, one word before it changes and one after."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from powermean.artefacts import ArtefactStore
from powermean.contracts.rollout import GenerateRequest, HoldRequest, Sampling
from rollout.client import EngineRefusedError, RolloutClient
from tests.support.rollout_service import Service, StartService
from tests.support.tiny_engines import save_tiny_model
from trainer.policy.loading import make_policy
from trainer.policy.policy import Policy
from trainer.rollouts.batching import collate
from trainer.weights.files import WeightWriter
from trainer.weights.in_place import InPlaceWriter
from trainer.weights.probe import largest_difference

pytestmark = pytest.mark.integration

JOB = f"job-{os.getpid()}"  # it names files in /dev/shm
REQUEST = GenerateRequest(prompts=((1, 10, 2), (4, 10)), n=3, sampling=Sampling(max_new_tokens=6, seed=0))
LONG = GenerateRequest(prompts=((3,), (4, 5)), n=32, sampling=Sampling(max_new_tokens=40, seed=0))
TIMEOUT_S = 60.0


class Trainer:
    """This process, with a model of 50 MB."""

    def __init__(self, folder: Path, service: Service) -> None:
        self.service = service
        self.model = LlamaForCausalLM.from_pretrained(folder)
        self.policy: Policy = make_policy(self.model, dtype=torch.float32, temperature=1.0)
        self.size = sum(weight.nbytes for weight in self.model.parameters())

    def change(self) -> None:
        with torch.no_grad():
            for weight in self.model.parameters():
                weight.mul_(0.9)

    def difference(self, client: RolloutClient) -> float:
        completions = client.generate(REQUEST, TIMEOUT_S).completions
        return largest_difference(self.policy, collate(REQUEST.prompts, completions, 0))

    def shared(self) -> int:
        """Bytes of shared memory of both processes; what they share counts once."""
        return self._both("Pss_Shmem")

    def memory(self) -> int:
        """As `shared`, with what each has alone. Libraries don't count: their share depends on others."""
        return self.shared() + self._both("Pss_Anon")

    def _both(self, kind: str) -> int:
        return sum(_rollup(pid, kind) for pid in (os.getpid(), self.service.process.pid))


def _rollup(pid: int, kind: str) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) << 10


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory, start_service: StartService) -> Trainer:
    folder = save_tiny_model(tmp_path_factory.mktemp("wide") / "model", intermediate_size=32_768)
    return Trainer(folder, start_service(folder, job_id=JOB))


@pytest.fixture
def writer() -> Iterator[InPlaceWriter]:
    with closing(InPlaceWriter(JOB, 2)) as made:
        yield made


def hold(version: int) -> HoldRequest:
    return HoldRequest(job_id=JOB, attempt=2, version=version)


@pytest.mark.slow
def test_there_is_one_copy_of_the_weights(trainer: Trainer, writer: InPlaceWriter, tmp_path: Path) -> None:
    """Counted over both processes, against copies; and each has all of it in its own sight."""
    copies = WeightWriter(JOB, 2, "shm", torch.float32, ArtefactStore("memory://"), tmp_path)
    with trainer.service.client() as client:
        trainer.change()
        client.publish(copies.write(trainer.model, 1), TIMEOUT_S)
        copies.discard(1)
        assert trainer.difference(client) < 1e-4
        with_copies = trainer.memory()
        client.publish(writer.write(trainer.model, 2), TIMEOUT_S)
        assert trainer.difference(client) < 1e-4
        trainer.change()
        assert trainer.difference(client) < 1e-4
    assert trainer.memory() < with_copies - 0.8 * trainer.size
    assert trainer.shared() == pytest.approx(trainer.size, rel=0.1)
    writer.close()
    with trainer.service.client() as client:  # the memory is there as long as somebody uses it
        assert trainer.difference(client) < 1e-4


@pytest.mark.slow
def test_from_a_hold_until_the_next_publish_nothing_is_completed(
    trainer: Trainer, writer: InPlaceWriter
) -> None:
    """Nor if that never comes, as where the trainer died."""
    with trainer.service.client() as client:
        version = client.health().version + 1
        client.publish(writer.write(trainer.model, version), TIMEOUT_S)
        assert client.hold(hold(version + 1), TIMEOUT_S).version == version
        for _ in range(2):
            with pytest.raises(EngineRefusedError, match="is changing") as refused:
                client.generate(REQUEST, TIMEOUT_S)
            assert (refused.value.status, refused.value.code) == (503, "weights_incomplete")
        trainer.change()
        client.publish(writer.write(trainer.model, version + 1), TIMEOUT_S)
        assert trainer.difference(client) < 1e-4


@pytest.mark.slow
def test_a_hold_waits_for_what_is_being_completed(trainer: Trainer, writer: InPlaceWriter) -> None:
    ended: list[float] = []

    def complete() -> None:
        with trainer.service.client() as client:
            client.generate(LONG, TIMEOUT_S)
            ended.append(time.monotonic())

    with trainer.service.client() as client:
        version = client.health().version + 1
        client.publish(writer.write(trainer.model, version), TIMEOUT_S)
        thread = threading.Thread(target=complete)
        thread.start()
        while not trainer.service.counts()["powermean_rollout_requests"]:
            assert not ended
        client.hold(hold(version + 1), TIMEOUT_S)
        held = time.monotonic()
        thread.join(TIMEOUT_S)
        assert ended[0] < held + 1.0  # it was completed before; its answer may still be on its way
        client.publish(writer.write(trainer.model, version + 1), TIMEOUT_S)


@pytest.mark.slow
def test_who_holds_has_to_be_the_trainer_of_now(trainer: Trainer) -> None:
    with trainer.service.client() as client:
        version = client.health().version
        for request, code in (
            (hold(version), "stale_version"),
            (hold(version + 1).model_copy(update={"attempt": 1}), "forbidden"),
        ):
            with pytest.raises(EngineRefusedError) as refused:
                client.hold(request, TIMEOUT_S)
            assert refused.value.code == code
    with trainer.service.client(attempt=1) as client, pytest.raises(EngineRefusedError) as refused:
        client.hold(hold(version + 1).model_copy(update={"attempt": 1}), TIMEOUT_S)
    assert refused.value.code == "fenced"
    with trainer.service.client() as client:
        client.generate(REQUEST, TIMEOUT_S)
