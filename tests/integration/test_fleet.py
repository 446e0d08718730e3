"""LoRA jobs on one declared engine, through the whole service, on real vLLM and a CPU: three starts of it."""

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from powermean.contracts.api import Job
from powermean.contracts.engines import EngineService, EngineSpec
from powermean.processes import descendants, end_all
from tests.support.embedded_service import JOB_S, Service, metric_rows, until
from tests.support.served_vllm import largest
from tests.support.tiny_model import build_tiny_model, tiny_spec

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.integration,
    pytest.mark.long,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
ENGINE_S = 600.0  # for vLLM to start, on a machine that does other things, too
STEPS = 16  # the one ahead is far from its end when the other has come to the first death


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service with two CPU slots, and a model whose heads have a size that vLLM takes."""
    root = tmp_path_factory.mktemp("models")
    build_tiny_model(root / "tiny", num_attention_heads=2, num_key_value_heads=1)
    service = Service(tmp_path_factory.mktemp("fleet") / "home", root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POWERMEAN_CPU_SLOTS", "2")
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        service.start()
    yield service
    assert service.interrupt() == 130
    left = service.all_pids()
    end_all(service.all_pids, grace_s=0)
    assert left == set()


@pytest.fixture(scope="module")
def engine(fleet: Service) -> EngineService:
    spec = {"name": "tiny", "model": {"folder": "tiny"}, "max_adapters": 2, "max_lora_rank": 8}
    return ready(fleet, fleet.client.create_engine(EngineSpec.model_validate(spec)).id)


def ready(fleet: Service, engine_id: str) -> EngineService:
    def there() -> EngineService | None:
        found = fleet.client.get_engine(engine_id)
        assert found.state != "failed", found.error
        return found if found.state == "ready" else None

    return until(there, ENGINE_S, f"{engine_id} is ready")


def submit(fleet: Service, seed: int) -> str:
    spec = tiny_spec(
        "tiny",
        name=f"shared-{seed}",
        model={"folder": "tiny", "lora": {"rank": 8, "alpha": 16}},
        rollout={"group_size": 8, "max_new_tokens": 4, "stop": ["\n"], "sharing": "shared"},
        training={"steps": STEPS, "prompts_per_step": 16, "minibatches": 2, "epochs": 2},
        optimizer={"learning_rate": 3e-3, "warmup_updates": 3},
        evaluation={"every": 0, "problems": 25},
        seed=seed,
    )
    return fleet.client.create_job(spec).id


def learned_on(fleet: Service, engine: EngineService, job: Job) -> None:
    """In one attempt, on the engine and no other, and the better for it."""
    (attempt,) = job.attempts
    assert [part.engine_id for part in attempt.allocations] == [None, engine.id]
    rows = metric_rows(fleet.client, job.id)
    rewards = [rows[step, -1, "reward"] or 0.0 for step in range(1, job.total_steps + 1)]
    assert sum(rewards[-2:]) / 2 > sum(rewards[:2]) / 2 + 0.05, rewards


def engine_process(fleet: Service) -> int:
    """The rollout service of the declared engine; no job has one of its own."""
    (pid,) = fleet.running("rollout")
    return pid


def test_two_jobs_at_once_on_one_engine_both_learn_also_when_vllm_dies_and_when_its_service_does(
    fleet: Service, engine: EngineService
) -> None:
    """The probe proves each publish; after each death both adapters come back without anybody's help."""
    jobs = [submit(fleet, seed) for seed in (1, 2)]
    until(lambda: fleet.client.get_engine(engine.id).jobs == tuple(sorted(jobs)), JOB_S, "both have a slot")
    for job_id in jobs:
        fleet.at_step(job_id, 1)
    seen = [fleet.client.get_job(job_id).step for job_id in jobs]
    os.kill(largest(descendants(engine_process(fleet))), signal.SIGKILL)  # the process with the model
    for job_id, step in zip(jobs, seen, strict=True):
        fleet.at_step(job_id, step + 3, ENGINE_S)
    os.kill(engine_process(fleet), signal.SIGKILL)
    until(lambda: fleet.client.get_engine(engine.id).state == "starting", 30, "its death is seen")
    after = ready(fleet, engine.id)
    assert after.url == engine.url
    assert after.report is not None
    assert after.report.restarts == 1
    for job_id in jobs:
        learned_on(fleet, engine, fleet.finished(job_id))
        assert "waiting for the rollout engine" in fleet.client.logs(job_id).text
    until(lambda: fleet.client.get_engine(engine.id).jobs == (), 30, "the slots are free")


def test_a_removed_engine_leaves_nothing(fleet: Service, engine: EngineService) -> None:
    fleet.client.remove_engine(engine.id)
    until(lambda: fleet.client.engines().items == (), 60, "it is gone")
    assert fleet.running("rollout") == set()
    logs = Path(fleet.home / "node" / "engines" / engine.id / "engine.log")
    assert logs.exists()
