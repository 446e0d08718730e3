"""The supervisor with real processes: how each way of ending is told, and that nothing is left running."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from powermean.contracts.attempts import ClaimedEngine
from rollout.counting import SUFFIX
from tests.support.small_disk import fill, small_disk
from tests.support.supervised_case import FINISHED, SPOOL, STUBBORN, WAIT, Case, until
from worker.attempt_dir import BALLAST_BYTES

pytestmark = pytest.mark.slow


def test_a_finished_run_ships_its_records_in_order_and_then_the_end(case: Case) -> None:
    text = f"spool(1, 'metrics', rows(1)); spool(2, 'metrics', rows(2)); spool(3, 'finish', {FINISHED})"
    case.start(SPOOL + "print('step one'); " + text)
    assert case.end() == 0
    assert case.server.kinds() == ["metrics", "metrics", "finish"]
    assert [body["rows"][0]["step"] for kind, body in case.server.posts if kind == "metrics"] == [1, 2]
    assert case.server.finish["outcome"] == "finished"
    assert any("step one" in body["text"] for kind, body in case.server.posts if kind == "logs")


@pytest.mark.parametrize(
    ("trainer", "code", "retryable"),
    [
        ("import os; os.kill(os.getpid(), 9)", "trainer_killed", True),
        ("import os; os.kill(os.getpid(), 11)", "trainer_killed", True),
        ("raise ValueError('bad luck')", "trainer_error", False),
        ("pass", "trainer_silent", False),
    ],
)
def test_a_trainer_without_a_last_word_is_judged_by_its_exit(
    case: Case, trainer: str, code: str, retryable: bool
) -> None:
    case.start(trainer)
    assert case.end() == 0
    end = case.server.finish
    assert (end["outcome"], end["error"]["code"], end["retryable"]) == ("failed", code, retryable)


def test_an_error_quotes_the_end_of_the_log(case: Case) -> None:
    case.start("raise ValueError('bad luck')")
    case.end()
    assert "ValueError: bad luck" in case.server.finish["error"]["message"]


def test_the_trainers_own_word_counts_before_its_exit_status(case: Case) -> None:
    own = {"outcome": "failed", "error": {"code": "out_of_memory", "message": "too big"}}
    case.start(SPOOL + f"spool(1, 'finish', {own}); sys.exit(3)")
    case.end()
    assert case.server.finish["error"]["code"] == "out_of_memory"
    assert case.server.finish["retryable"] is False


def test_a_model_that_cannot_be_had_fails_with_the_reason_given(case: Case) -> None:
    error = {"code": "unknown_model", "message": "no such model", "path": "model.name"}
    end = {"outcome": "failed", "error": error}
    case.start(prepare=SPOOL + f"spool(1, 'finish', {end}); sys.exit(1)")
    case.end()
    assert case.server.finish["error"] == {**error, "remedy": None}


def test_an_engine_that_dies_is_worth_another_attempt(case: Case) -> None:
    case.start(engine="import os, time; time.sleep(0.3); os.kill(os.getpid(), 9)")
    case.end()
    end = case.server.finish
    assert (end["error"]["code"], end["retryable"]) == ("engine_died", True)


def test_an_engine_that_could_not_start_fails_the_job_with_its_own_words(case: Case) -> None:
    start = {"error": {"code": "vllm_missing", "message": "no vLLM", "path": "rollout.engine"}}
    text = json.dumps(json.dumps(start))
    case.start(engine=f"import sys; open(sys.argv[1] + '/engine-0.json', 'w').write({text}); sys.exit(1)")
    case.end()
    end = case.server.finish
    assert (end["error"]["code"], end["error"]["path"], end["retryable"]) == (
        "vllm_missing",
        "rollout.engine",
        False,
    )


def test_cancel_gives_grace_and_then_kills_even_the_stubborn(case: Case) -> None:
    case.start(STUBBORN)
    until(lambda: len(case.running()) == 2)
    case.server.order = "cancel"
    assert case.end() == 0
    assert case.server.finish["outcome"] == "cancelled"


def test_grandchildren_that_left_the_process_group_are_ended_too(case: Case, tmp_path: Path) -> None:
    escape = (
        "import subprocess, sys, time;"
        f"subprocess.Popen([sys.executable, '-S', '-c', {STUBBORN!r}], start_new_session=True, env={{}});"
        "open(sys.argv[1] + '/phase', 'w').write('escaped')\n"
        "while not __import__('os').path.exists(sys.argv[1] + '/go'): time.sleep(0.02)"
    )
    case.start(escape)
    until(lambda: case.attempt.phase("") == "escaped")
    assert case.process
    family = {pid for pid in _below(case.process.pid) if b"SIG_IGN" in _cmdline(pid)}
    escaped = {pid for pid in family if b"/phase" not in _cmdline(pid)}  # the trainer has both in its own
    assert len(escaped) == 1
    (case.attempt.path / "go").touch()
    case.end()
    assert not [pid for pid in escaped if b"SIG_IGN" in _cmdline(pid)]


def test_fenced_kills_at_once_and_tells_nobody(case: Case) -> None:
    case.limits["grace_s"] = 15.0
    case.start(STUBBORN)
    until(lambda: len(case.running()) == 2)
    case.server.status["heartbeat"] = 409
    began = time.monotonic()
    assert case.end() == 1
    assert time.monotonic() - began < 5
    assert case.server.finish is None


def test_a_server_that_comes_back_gets_everything_in_order(case: Case) -> None:
    trainer = SPOOL + (
        "import time; spool(1, 'metrics', rows(1))\n"
        "while not (folder / 'go').exists(): time.sleep(0.02)\n"
        f"spool(2, 'metrics', rows(2)); spool(3, 'finish', {FINISHED})"
    )
    case.start(trainer)
    until(lambda: case.server.kinds() == ["metrics"])
    case.server.stop()
    (case.attempt.path / "go").touch()
    time.sleep(0.5)
    assert case.process
    assert case.process.poll() is None
    case.server.start()
    assert case.end() == 0
    assert case.server.kinds() == ["metrics", "metrics", "finish"]


def test_a_server_that_stays_away_ends_the_attempt_after_the_grace(case: Case) -> None:
    case.limits["partition_s"] = 3.0
    case.start()
    until(lambda: len(case.running()) == 2)
    case.server.stop()
    assert case.end() == 1


def test_a_server_error_is_tried_again(case: Case) -> None:
    case.server.status["metrics"] = 503
    case.start(SPOOL + f"spool(1, 'metrics', rows(1)); spool(2, 'finish', {FINISHED})")
    time.sleep(0.7)
    assert case.server.kinds() == []
    del case.server.status["metrics"]
    assert case.end() == 0
    assert case.server.kinds() == ["metrics", "finish"]


def test_a_refused_record_fails_the_attempt_loudly(case: Case) -> None:
    case.server.status["metrics"] = 422
    case.start(SPOOL + "spool(1, 'metrics', rows(1)); import time; time.sleep(60)")
    assert case.end() == 0
    assert case.server.finish["error"]["code"] == "record_refused"


def test_nothing_outlives_the_lifeline(case: Case) -> None:
    life = subprocess.Popen([sys.executable, "-S", "-c", WAIT])
    case.lifeline = life.pid
    case.start(STUBBORN)
    until(lambda: len(case.running()) == 2)
    life.kill()
    life.wait()
    assert case.end() == 1


def test_programs_die_with_a_killed_supervisor(case: Case) -> None:
    case.start(STUBBORN)
    until(lambda: len(case.running()) == 2)
    assert case.process
    os.kill(case.process.pid, signal.SIGKILL)
    until(lambda: not case.running())


def test_fresh_tokens_are_used_and_handed_to_the_trainer(case: Case) -> None:
    case.start()
    until(lambda: case.attempt.token() != "token-0")
    until(lambda: "Bearer token-1" in case.server.tokens)
    first, second = case.server.ran_s[:2]
    assert 0 <= first < second < 20
    assert (case.attempt.path / "token").stat().st_mode & 0o777 == 0o600


def _below(pid: int) -> set[int]:
    from powermean.processes import descendants

    return descendants(pid)


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_an_attempt_with_a_slot_of_an_engine_service_starts_no_engine(case: Case) -> None:
    claim = case.attempt.claim().model_copy(
        update={"engine": ClaimedEngine(id="engine-1", url="http://127.0.0.1:4711")}
    )
    case.attempt.claim_file.write_text(claim.model_dump_json())
    say = "print((folder / 'engine-0.json').read_text(), flush=True)"
    case.start(SPOOL + f"{say}; spool(1, 'finish', {FINISHED})", engine="print('an engine of its own')")
    assert case.end() == 0
    assert case.server.finish["outcome"] == "finished"
    log = case.attempt.log.read_text()
    assert '"url":"http://127.0.0.1:4711"' in log
    assert "an engine of its own" not in log


class TestOnAFullDisk:
    """The node's disk has no room: the attempt's end is told at once all the same."""

    @pytest.fixture
    def data_dir(self, tmp_path: Path) -> Iterator[Path]:
        with small_disk(tmp_path / "small", 8 * BALLAST_BYTES) as folder:
            yield folder

    @pytest.mark.slow
    def test_heartbeats_go_on_and_say_so_and_the_attempt_is_tried_again(self, case: Case) -> None:
        trainer = (
            "import pathlib, sys, time\n"
            "folder = pathlib.Path(sys.argv[1])\n"
            "(folder / 'waits').touch()\n"
            "while (folder / 'waits').exists(): time.sleep(0.02)\n"
            "raise OSError(28, 'No space left on device')"
        )
        case.start(trainer)
        until((case.attempt.path / "waits").exists)
        fill(case.attempt.path)
        seen = len(case.server.phases)
        until(lambda: len(case.server.phases) > seen + 2)  # although tokens and log lines can't be written
        assert case.server.phases[-1] == "the node's disk is full"
        (case.attempt.path / "waits").unlink()
        assert case.end() == 0
        assert (case.server.finish["error"]["code"], case.server.finish["retryable"]) == ("disk_full", True)

    def test_a_supervisor_that_cannot_write_ends_in_order(self, case: Case) -> None:
        """The answer of the model's preparation has no room: its main thread finds that out."""
        fill(case.attempt.path)
        case.start(WAIT)
        assert case.end() == 0
        assert (case.server.finish["error"]["code"], case.server.finish["retryable"]) == ("disk_full", True)


@pytest.mark.parametrize(
    ("phase", "told"),
    [
        ("step 1 of 9: sampling", "step 1 of 9: sampling, 12 of 64 completions"),
        ("step 1 of 9: sampling, round 2", "step 1 of 9: sampling, round 2, 12 of 64 completions"),
        ("step 1 of 9: updating, 2 of 4", "step 1 of 9: updating, 2 of 4"),  # the engine samples ahead
    ],
)
def test_heartbeats_say_how_far_sampling_is(case: Case, phase: str, told: str) -> None:
    case.attempt.write_phase(phase)
    case.attempt.engine_file().with_suffix(SUFFIX).write_text("12 of 64")
    case.start(WAIT)
    until(lambda: case.server.phases)
    assert case.process
    case.process.terminate()
    case.end()
    assert case.server.phases[0] == told


def test_the_end_does_not_wait_for_room_for_the_log(case: Case) -> None:
    case.server.status["logs"], case.server.code = 503, "artefact_store_full"
    case.start(SPOOL + f"print('step one'); spool(1, 'finish', {FINISHED})")
    assert case.end() == 0
    assert case.server.finish["outcome"] == "finished"


LEAK = """
import base64, os, sys, time
value = os.environ["HF_TOKEN"]
print("the value is", value, "in base64", base64.b64encode(value.encode()).decode(), flush=True)
sys.stderr.write(value[:7]); sys.stderr.flush(); time.sleep(0.7)  # in two chunks
sys.stderr.write(value[7:] + chr(10)); sys.stderr.flush()
print(value[:5]); print("    " + value[5:], flush=True)  # on two lines
raise ValueError(f"401 for {value}")
"""


def test_secrets_reach_the_trainer_alone_and_no_file(case: Case) -> None:
    case.secrets = {"HF_TOKEN": "hf_0123456789abcdefghij"}
    case.start(
        LEAK, engine="import os, time; print('engine has', os.environ.get('HF_TOKEN')); time.sleep(60)"
    )
    assert case.end() == 0
    value = case.secrets["HF_TOKEN"]
    log = case.attempt.log.read_text()
    assert log.count("***") == 6
    assert "engine has None" in log
    assert "ValueError: 401 for ***" in log
    assert "401 for ***" in case.server.finish["error"]["message"]
    assert value not in json.dumps(case.server.posts)
    for file in case.attempt.path.rglob("*"):
        assert not file.is_file() or value.encode() not in file.read_bytes(), file
