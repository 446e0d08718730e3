"""The command lines of an attempt's programs: their GPUs, options, addresses and secrets."""

from pathlib import Path

import pytest

from powermean.contracts.attempts import Claim
from powermean.contracts.job import JobSpec
from powermean.contracts.models import LoraSpec
from rollout.settings import parse_settings
from tests.support.node_claims import claim, made, settings
from worker.attempt_dir import AttemptDir
from worker.launcher import LocalLauncher


def test_all_ranks_see_all_gpus_of_the_allocation_in_its_order(tmp_path: Path) -> None:
    command = LocalLauncher(settings(tmp_path)).trainer(
        made(tmp_path), claim(gpus=("B", "A")), Path("/model")
    )
    assert command.environment["CUDA_VISIBLE_DEVICES"] == "B,A"


def option(argv: tuple[str, ...], name: str) -> str:
    return argv[argv.index(name) + 1]


def test_on_a_cpu_the_engine_gets_float32_and_no_gpu(tmp_path: Path) -> None:
    command = LocalLauncher(settings(tmp_path)).engine(AttemptDir(tmp_path), claim(), Path("/model"))
    assert option(command.argv, "--device") == "cpu"
    assert option(command.argv, "--dtype") == "float32"
    assert command.environment["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("engine", "flags"),
    [("auto", ("--max-adapters", "1", "--max-lora-rank", "24")), ("transformers", ())],
)
def test_a_lora_jobs_own_vllm_takes_its_adapter(tmp_path: Path, engine: str, flags: tuple[str, ...]) -> None:
    plain = claim()
    model = plain.spec.model.model_copy(update={"lora": LoraSpec(rank=24)})
    rollout = plain.spec.rollout.model_copy(update={"engine": engine})
    spec = plain.spec.model_copy(update={"model": model, "rollout": rollout})
    launcher = LocalLauncher(settings(tmp_path))
    commands = [
        launcher.engine(AttemptDir(tmp_path), one, Path("/model"))
        for one in (plain, plain.model_copy(update={"spec": spec}))
    ]
    assert "--max-adapters" not in commands[0].argv
    assert commands[1].argv[-len(flags) :] == flags if flags else "--max-adapters" not in commands[1].argv


def test_vllm_is_started_with_the_gpu_channel_that_the_job_asks_for(tmp_path: Path) -> None:
    launcher, plain = LocalLauncher(settings(tmp_path)), claim(gpus=("GPU-1",))
    rollout = plain.spec.rollout.model_copy(update={"publish": "ipc"})
    asked = plain.model_copy(update={"spec": plain.spec.model_copy(update={"rollout": rollout})})
    assert option(launcher.engine(AttemptDir(tmp_path), asked, Path("/model")).argv, "--transfer") == "ipc"
    assert "--transfer" not in launcher.engine(AttemptDir(tmp_path), plain, Path("/model")).argv


def test_split_on_two_gpus_trainer_and_engine_see_one_each(tmp_path: Path) -> None:
    launcher, plain = LocalLauncher(settings(tmp_path)), claim(gpus=("GPU-1",))
    trainer, rollout = plain.allocations
    split = plain.spec.model_copy(
        update={"resources": plain.spec.resources.model_copy(update={"placement": "split"})}
    )
    apart = plain.model_copy(
        update={
            "spec": split,
            "allocations": (trainer, rollout.model_copy(update={"gpu_uuids": ("GPU-2",)})),
        }
    )
    engine = launcher.engine(AttemptDir(tmp_path), apart, Path("/model"))
    assert engine.environment["CUDA_VISIBLE_DEVICES"] == "GPU-2"
    assert option(engine.argv, "--gpu-memory-share") == "0.9"
    own = launcher.trainer(AttemptDir(tmp_path), apart, Path("/model"))
    assert own.environment["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    together = launcher.engine(AttemptDir(tmp_path), plain, Path("/model"))
    assert together.environment["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    assert (
        "--gpu-memory-share" not in together.argv
    )  # the rollout service's own share leaves room for the trainer


def several(claim: Claim, replicas: int, size: int, **resources: object) -> Claim:
    """A job of several engines."""
    rollout = claim.spec.rollout.model_copy(update={"replicas": replicas, "gpus_per_replica": size})
    placed = claim.spec.resources.model_copy(update=resources)
    return claim.model_copy(
        update={"spec": claim.spec.model_copy(update={"rollout": rollout, "resources": placed})}
    )


def test_each_engine_has_its_gpus_its_file_and_its_port(tmp_path: Path) -> None:
    launcher, gpus = LocalLauncher(settings(tmp_path)), tuple(f"GPU-{number}" for number in range(5))
    taken = several(claim(gpus=gpus), 2, 2)
    commands = [launcher.engine(AttemptDir(tmp_path), taken, Path("/m"), k, 7 * k) for k in range(2)]
    assert [one.environment["CUDA_VISIBLE_DEVICES"] for one in commands] == ["GPU-0,GPU-1", "GPU-2,GPU-3"]
    assert [Path(option(one.argv, "--ready-file")).name for one in commands] == [
        "engine-0.json",
        "engine-1.json",
    ]
    assert [option(one.argv, "--port") for one in commands] == ["0", "7"]
    assert [option(one.argv, "--tensor-parallel") for one in commands] == ["2", "2"]
    assert {option(one.argv, "--host") for one in commands} == {"127.0.0.1"}
    parse_settings(commands[1].argv[3:])


def test_trainers_of_other_nodes_reach_an_engine_at_its_nodes_address(tmp_path: Path) -> None:
    launcher = LocalLauncher(settings(tmp_path).model_copy(update={"node_address": "10.0.0.7"}))
    engine = launcher.engine(AttemptDir(tmp_path), several(claim(), 1, 1, nodes=2), Path("/m"))
    assert (option(engine.argv, "--host"), option(engine.argv, "--allowed-host")) == ("10.0.0.7", "10.0.0.7")


@pytest.mark.parametrize(
    ("gpus", "update", "asleep"),
    [
        (("GPU-1",), {}, True),
        ((), {}, False),
        (("GPU-1",), {"resources": {"gpus": 1, "placement": "split"}}, False),
        (("GPU-1",), {"model": {"name": "m", "lora": {}}}, False),
        (("GPU-1",), {"rollout": {"max_staleness": 1}, "training": {"steps": 2}}, False),
    ],
)
def test_vllm_sleeps_where_it_shares_gpus_with_a_trainer_that_needs_all_of_them(
    tmp_path: Path, gpus: tuple[str, ...], update: dict[str, object], asleep: bool
) -> None:
    taken = claim(gpus=gpus)
    spec = JobSpec.model_validate(taken.spec.model_dump() | update)
    command = LocalLauncher(settings(tmp_path)).engine(
        AttemptDir(tmp_path), taken.model_copy(update={"spec": spec}), Path("/m")
    )
    assert ("--sleep" in command.argv) is asleep
    assert parse_settings(command.argv[3:]).sleep is asleep


def test_each_program_of_an_attempt_gets_the_secrets_that_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "the node's own")
    job = {"HF_TOKEN": "the job's own", "WANDB_API_KEY": "the tracker's"}
    attempt, model = AttemptDir(tmp_path), Path("/model")
    launcher, plain = LocalLauncher(settings(tmp_path), job), LocalLauncher(settings(tmp_path))
    assert launcher.prepare(attempt, claim()).secrets == {"HF_TOKEN": "the job's own"}
    assert launcher.engine(attempt, claim(), model).secrets == {}
    assert launcher.trainer(attempt, claim(), model).secrets == job
    assert plain.prepare(attempt, claim()).environment["HF_TOKEN"] == "the node's own"
    for command in (plain.engine(attempt, claim(), model), plain.trainer(attempt, claim(), model)):
        assert "HF_TOKEN" not in command.environment
    assert "the job's own" not in repr(launcher.trainer(attempt, claim(), model))
