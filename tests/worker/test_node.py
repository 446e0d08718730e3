"""The node's agent: what it reports, what it buries, and which command lines it makes."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from powermean.contracts.attempts import Claim, JobError, ValidationTask
from powermean.contracts.job import JobSpec
from powermean.contracts.models import LoraSpec
from powermean.processes import ProcessId, end_all, marked, start_time
from rollout.settings import parse_settings
from worker import programs
from worker.__main__ import main
from worker.attempt.shipper import clean, complete
from worker.attempt_dir import MARK, AttemptDir, attempt_dirs, prune
from worker.inventory import running
from worker.launcher import LocalLauncher
from worker.node import Node
from worker.settings import NodeSettings

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]


def claim(number: int = 1, gpus: tuple[str, ...] = ()) -> Claim:
    spec = {
        "name": "t",
        "model": {"name": "m"},
        "data": {"kind": "arithmetic"},
        "training": {"steps": 1},
        "resources": {"gpus": len(gpus)},
    }
    return Claim.model_validate(
        {
            "attempt_id": f"job-{os.getpid()}.{number}",
            "job_id": f"job-{os.getpid()}",
            "number": number,
            "spec": spec,
            "allocations": [
                {"role": role, "node_id": "local", "gpu_uuids": gpus} for role in ("trainer", "rollout")
            ],
            "token": "t",
            "lease_s": 60,
            "beat_s": 10,
        }
    )


def test_all_ranks_see_all_gpus_of_the_allocation_in_its_order(tmp_path: Path) -> None:
    command = LocalLauncher(settings(tmp_path)).trainer(
        made(tmp_path), claim(gpus=("B", "A")), Path("/model")
    )
    assert command.environment["CUDA_VISIBLE_DEVICES"] == "B,A"


def test_two_nodes_of_an_attempt_on_one_host_are_told_apart(tmp_path: Path) -> None:
    """The worker of one, whose supervisor has died, must not end what the other one runs."""
    first = made(tmp_path / "first")
    second = made(tmp_path / "second")
    second.claim_file.write_text(claim().model_copy(update={"node_rank": 1}).model_dump_json())
    assert first.mark == first.attempt_id
    assert second.mark == f"{second.attempt_id}/1"
    second.claim_file.write_text("{}")
    assert second.mark == second.attempt_id, "a claim of another version is no reason to report nothing"


def made(data_dir: Path, number: int = 1) -> AttemptDir:
    (data_dir / "attempts").mkdir(parents=True, exist_ok=True)
    taken = claim(number)
    return AttemptDir.create(data_dir / "attempts" / taken.attempt_id, taken)


def settings(tmp_path: Path) -> NodeSettings:
    return NodeSettings(
        artefacts_url="file:///artefacts",
        data_dir=tmp_path,
        attempt_public_key=Path("/keys/attempt_token.pub"),
    )


def option(argv: tuple[str, ...], name: str) -> str:
    return argv[argv.index(name) + 1]


def test_an_attempt_runs_as_long_as_its_supervisor(tmp_path: Path) -> None:
    attempt = made(tmp_path)
    with subprocess.Popen(SLEEP) as supervisor:
        attempt.write_supervisor(ProcessId.of(supervisor.pid))
        assert running(tmp_path) == {attempt.attempt_id: ProcessId.of(supervisor.pid)}
        supervisor.kill()
        supervisor.wait()
    assert running(tmp_path) == {}
    assert attempt.ended


def test_a_pid_that_came_round_again_is_no_supervisor(tmp_path: Path) -> None:
    attempt = made(tmp_path)
    attempt.write_supervisor(ProcessId(pid=os.getpid(), started=ProcessId.own().started - 1))
    assert running(tmp_path) == {}


def test_what_a_dead_supervisor_left_is_ended_before_its_gpus_are_reported_free(tmp_path: Path) -> None:
    attempt = made(tmp_path)
    left = subprocess.Popen(SLEEP, env={MARK: attempt.attempt_id}, start_new_session=True)
    try:
        assert running(tmp_path) == {}
        assert left.wait(5) == -9
    finally:
        end_all(lambda: marked(MARK, attempt.attempt_id), grace_s=0)


def test_a_supervisor_that_nobody_has_noted_is_ended_before_its_gpus_are_reported_free(
    tmp_path: Path,
) -> None:
    """The worker was killed just after it had started one, and the next worker is quicker than that one."""
    supervisor = Node(settings(tmp_path))._spawn(claim(), {})
    os.kill(supervisor, signal.SIGSTOP)
    AttemptDir(tmp_path / "attempts" / claim().attempt_id).path.joinpath("supervisor.json").unlink()
    try:
        assert running(tmp_path) == {}
        assert start_time(supervisor) is None
    finally:
        os.kill(supervisor, signal.SIGKILL)
        os.waitpid(supervisor, 0)


def test_a_supervisor_that_is_just_starting_does_not_die_of_sigterm(tmp_path: Path) -> None:
    """Its imports take seconds, and it can't handle a signal before; tests/support/supervised_case.py starts
    the same way, so that those tests show that it does so later.
    """
    supervisor = Node(settings(tmp_path))._spawn(claim(), {})
    try:
        state = Path(f"/proc/{supervisor}/status").read_text()
        blocked = int(state.partition("SigBlk:")[2].split()[0], 16)
        assert blocked == 1 << (signal.SIGTERM - 1)
        assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ()), "only there"
    finally:
        os.kill(supervisor, signal.SIGKILL)
        os.waitpid(supervisor, 0)


def test_a_closed_attempt_keeps_its_log_and_frees_what_is_large(tmp_path: Path) -> None:
    attempt = made(tmp_path)
    (attempt.path / "scratch").mkdir()
    (attempt.path / "scratch" / "weights").write_bytes(b"large")
    attempt.log.write_text("why it failed")
    attempt.close()
    assert not (attempt.path / "scratch").exists()
    assert attempt.log.read_text() == "why it failed"


def test_the_last_few_attempts_are_kept(tmp_path: Path) -> None:
    for number in range(1, 6):
        attempt = made(tmp_path, number)
        attempt.close()
        os.utime(attempt.path, (number, number))
    alive = made(tmp_path, 6)
    prune(tmp_path, keep=2)
    assert [a.attempt_id.rpartition(".")[2] for a in attempt_dirs(tmp_path)] == ["4", "5", "6"]
    assert not alive.ended


def test_an_attempt_whose_folder_goes_while_it_is_looked_at_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path, 1)
    left, is_dir = made(tmp_path, 2), Path.is_dir

    def goes(path: Path) -> bool:
        found = is_dir(path)
        if path.suffix == ".1":
            shutil.rmtree(path)  # as a supervisor does that ends
        return found

    monkeypatch.setattr(Path, "is_dir", goes)
    assert list(attempt_dirs(tmp_path)) == [left]


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


def test_the_workers_secrets_reach_no_other_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERMEAN_NODE_TOKEN", "pmn_hush")
    monkeypatch.setenv("POWERMEAN_REDIS_URL", "redis://:hush@127.0.0.1:6379/0")
    launcher = LocalLauncher(settings(tmp_path))
    for command in (
        launcher.prepare(AttemptDir(tmp_path), claim()),
        launcher.engine(AttemptDir(tmp_path), claim(), Path("/model")),
        launcher.trainer(AttemptDir(tmp_path), claim(), Path("/model")),
    ):
        assert not [value for value in command.environment.values() if "hush" in value]
    told = "import json, os; print(json.dumps({'errors': [{'code': 'x', 'message': str(dict(os.environ))}]}))"
    monkeypatch.setattr(programs, "tethered", lambda command: [sys.executable, "-S", "-c", told])
    error = checked(ValidationTask(job_id="job-a", spec=claim().spec))
    assert "PATH" in error.message
    assert "hush" not in error.message


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


def test_a_check_gets_its_token_and_tells_it_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"HF_TOKEN": "hf_0123456789abcdefghij"}
    task = ValidationTask(job_id="job-a", spec=claim().spec)
    told = (
        "import json, os; print(json.dumps({'errors': [{'code': 'x', 'message': os.environ['HF_TOKEN']}]}))"
    )
    broken = "import os, sys; sys.exit('refused: ' + os.environ['HF_TOKEN'])"
    for program, message in ((told, "***"), (broken, "refused: ***")):
        command = [sys.executable, "-S", "-c", program]
        monkeypatch.setattr(programs, "tethered", lambda _, command=command: command)
        found = programs.check(task, given)
        assert found is not None
        assert message in found.errors[0].message
        assert given["HF_TOKEN"] not in found.model_dump_json()


def checked(task: ValidationTask) -> JobError:
    found = programs.check(task)
    assert found is not None
    return found.errors[0]


def test_checks_that_do_not_answer_fail_the_job_with_their_words(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [sys.executable, "-S", "-c", "import sys; sys.exit('no such module')"]
    monkeypatch.setattr(programs, "tethered", lambda command: broken)
    error = checked(ValidationTask(job_id="job-a", spec=claim().spec))
    assert error.code == "validation_failed"
    assert "no such module" in error.message


def test_checks_that_are_killed_are_run_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As the kernel kills what takes too much memory: the first two are, the third answers."""
    program = (
        "import os, pathlib, signal\n"
        f"tries = pathlib.Path({str(tmp_path / 'tries')!r})\n"
        "with tries.open('a') as out: out.write('x')\n"
        "if len(tries.read_text()) < 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "print('{\"tokens\": 7}')"
    )
    monkeypatch.setattr(programs, "PAUSE_S", 0.01)
    monkeypatch.setattr(programs, "tethered", lambda command: [sys.executable, "-S", "-c", program])
    found = programs.check(ValidationTask(job_id="job-a", spec=claim().spec))
    assert found is not None
    assert (found.errors, found.tokens) == ((), 7)
    assert caplog.text.count("was killed by SIGKILL and is run again") == 2


def test_checks_that_are_always_killed_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    killed = [sys.executable, "-S", "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
    monkeypatch.setattr(programs, "PAUSE_S", 0.01)
    monkeypatch.setattr(programs, "tethered", lambda command: killed)
    error = checked(ValidationTask(job_id="job-a", spec=claim().spec))
    assert (error.code, "was killed by SIGKILL, 3 times" in error.message) == ("validation_killed", True)


def test_checks_have_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "tethered", lambda command: SLEEP)
    monkeypatch.setattr(programs, "VALIDATE_S", 0.2)
    spec = JobSpec.model_validate(claim().spec.model_dump())
    error = checked(ValidationTask(job_id="job-a", spec=spec))
    assert error.code == "validation_timeout"


def test_checks_that_are_stopped_with_the_worker_say_nothing_of_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopped = [sys.executable, "-S", "-c", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"]
    monkeypatch.setattr(programs, "tethered", lambda command: stopped)
    assert programs.check(ValidationTask(job_id="job-a", spec=claim().spec)) is None


def test_a_worker_without_the_key_that_engines_need_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POWERMEAN_ARTEFACTS_URL", f"file://{tmp_path}")
    monkeypatch.setenv("POWERMEAN_DATA_DIR", str(tmp_path))
    with pytest.raises(SystemExit, match=r"POWERMEAN_ATTEMPT_PUBLIC_KEY is not set: .*attempt_token\.pub"):
        main()


def test_a_log_that_is_not_text_keeps_its_offsets() -> None:
    raw = b"ok \xff\xfe \xc3\xa9 end"
    assert clean(raw) == "ok ?? é end"
    assert len(clean(raw).encode()) == len(raw)


@pytest.mark.parametrize(
    ("raw", "whole"),
    [
        (b"abc", b"abc"),
        (b"ab\xc3", b"ab"),
        ("é".encode(), "é".encode()),
        (b"a\xf0\x9f\x98", b"a"),
        (b"", b""),
    ],
)
def test_half_a_character_waits_for_its_rest(raw: bytes, whole: bytes) -> None:
    assert complete(raw) == whole
