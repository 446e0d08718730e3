"""The check of a job's spec: a program that may break, hang or be killed, and tells nobody's secrets."""

import sys
from pathlib import Path

import pytest

from powermean.contracts.attempts import JobError, ValidationTask
from powermean.contracts.job import JobSpec
from tests.support.node_claims import SLEEP, claim, settings
from worker import programs
from worker.attempt_dir import AttemptDir
from worker.launcher import LocalLauncher


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
