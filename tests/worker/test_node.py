"""The node's agent: what runs on it, what it buries, and what it starts."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from powermean.processes import ProcessId, end_all, marked, start_time
from tests.support.node_claims import SLEEP, claim, made, settings
from worker.__main__ import main
from worker.attempt_dir import MARK, AttemptDir, attempt_dirs, prune
from worker.inventory import running
from worker.node import Node


def test_two_nodes_of_an_attempt_on_one_host_are_told_apart(tmp_path: Path) -> None:
    """The worker of one, whose supervisor has died, must not end what the other one runs."""
    first = made(tmp_path / "first")
    second = made(tmp_path / "second")
    second.claim_file.write_text(claim().model_copy(update={"node_rank": 1}).model_dump_json())
    assert first.mark == first.attempt_id
    assert second.mark == f"{second.attempt_id}/1"
    second.claim_file.write_text("{}")
    assert second.mark == second.attempt_id, "a claim of another version is no reason to report nothing"


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


def test_a_worker_without_the_key_that_engines_need_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POWERMEAN_ARTEFACTS_URL", f"file://{tmp_path}")
    monkeypatch.setenv("POWERMEAN_DATA_DIR", str(tmp_path))
    with pytest.raises(SystemExit, match=r"POWERMEAN_ATTEMPT_PUBLIC_KEY is not set: .*attempt_token\.pub"):
        main()
