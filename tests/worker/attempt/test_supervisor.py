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
from powermean.processes import send
from rollout.counting import SUFFIX
from tests.support.fake_server import NodeServer
from tests.support.small_disk import fill, small_disk
from tests.support.supervised_case import (
    DEADLINE_S,
    FINISHED,
    PREPARE,
    SPOOL,
    STUBBORN,
    WAIT,
    Case,
    make_case,
    until,
)
from worker.attempt_dir import BALLAST_BYTES

pytestmark = pytest.mark.slow


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def case(data_dir: Path, request: pytest.FixtureRequest) -> Iterator[Case]:
    attempt_id = f"job-{os.getpid()}-{abs(hash(request.node.name))}.1"
    server = NodeServer()
    server.start()
    case = make_case(data_dir, server, attempt_id)
    yield case
    case.close()
    server.stop()


def test_a_finished_run_ships_its_records_in_order_and_then_the_end(case: Case) -> None:
    text = f"spool(1, 'metrics', rows(1)); spool(2, 'metrics', rows(2)); spool(3, 'finish', {FINISHED})"
    case.start(SPOOL + "print('step one'); " + text)
    assert case.end() == 0
    assert case.server.kinds() == ["metrics", "metrics", "finish"]
    assert [body["rows"][0]["step"] for kind, body in case.server.posts if kind == "metrics"] == [1, 2]
    assert case.server.finish["outcome"] == "finished"
    assert any("step one" in body["text"] for kind, body in case.server.posts if kind == "logs")


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_an_engine_that_dies_is_worth_another_attempt(case: Case) -> None:
    case.start(engine="import os, time; time.sleep(0.3); os.kill(os.getpid(), 9)")
    case.end()
    end = case.server.finish
    assert (end["error"]["code"], end["retryable"]) == ("engine_died", True)


@pytest.mark.slow
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


@pytest.mark.slow
def test_cancel_gives_grace_and_then_kills_even_the_stubborn(case: Case) -> None:
    case.start(STUBBORN)
    until(lambda: len(case.running()) == 2)
    case.server.order = "cancel"
    assert case.end() == 0
    assert case.server.finish["outcome"] == "cancelled"


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_server_that_stays_away_ends_the_attempt_after_the_grace(case: Case) -> None:
    case.limits["partition_s"] = 3.0
    case.start()
    until(lambda: len(case.running()) == 2)
    case.server.stop()
    assert case.end() == 1


@pytest.mark.slow
def test_a_server_error_is_tried_again(case: Case) -> None:
    case.server.status["metrics"] = 503
    case.start(SPOOL + f"spool(1, 'metrics', rows(1)); spool(2, 'finish', {FINISHED})")
    time.sleep(0.7)
    assert case.server.kinds() == []
    del case.server.status["metrics"]
    assert case.end() == 0
    assert case.server.kinds() == ["metrics", "finish"]


@pytest.mark.slow
def test_a_refused_record_fails_the_attempt_loudly(case: Case) -> None:
    case.server.status["metrics"] = 422
    case.start(SPOOL + "spool(1, 'metrics', rows(1)); import time; time.sleep(60)")
    assert case.end() == 0
    assert case.server.finish["error"]["code"] == "record_refused"


def test_checkpoint_and_exit_is_the_trainers_to_do(case: Case) -> None:
    stop = {"outcome": "checkpointed"}
    case.start(
        SPOOL
        + "import time\nwhile (folder / 'order').read_text() != 'checkpoint_and_exit': time.sleep(0.02)\n"
        f"spool(1, 'finish', {stop})"
    )
    until(lambda: len(case.running()) == 2)
    case.server.order = "checkpoint_and_exit"
    assert case.end() == 0
    assert case.server.finish["outcome"] == "checkpointed"


@pytest.mark.slow
def test_who_ignores_the_order_is_ended_at_the_deadline(case: Case) -> None:
    case.limits |= {"order_s": 0.5}
    case.start(STUBBORN)
    until(lambda: len(case.running()) == 2)
    case.server.order = "checkpoint_and_exit"
    assert case.end() == 0
    end = case.server.finish
    assert (end["outcome"], end["error"]) == ("checkpointed", None)
    assert "did not stop in time" in end["reason"]


@pytest.mark.slow
def test_who_does_not_finish_early_in_time_fails_by_name(case: Case) -> None:
    case.limits |= {"order_s": 0.5}
    case.start(f"import sys; open(sys.argv[1] + '/phase', 'w').write('step 3 of 20: sampling'); {STUBBORN}")
    until(lambda: len(case.running()) == 2)
    case.server.order = "finish"
    assert case.end() == 0
    end = case.server.finish
    assert (end["outcome"], end["error"]["code"], end["retryable"]) == ("failed", "finish_timed_out", False)


@pytest.mark.slow
def test_the_time_to_finish_early_begins_once_the_model_is_loaded(case: Case) -> None:
    case.limits |= {"order_s": 0.5}
    case.server.order = "finish"
    load = "import time; open(sys.argv[1] + '/phase', 'w').write('loading the model'); time.sleep(1)"
    case.start(
        SPOOL + f"{load}; spool(1, 'finish', {FINISHED})", prepare=f"import time; time.sleep(1); {PREPARE}"
    )
    assert case.end() == 0
    assert case.server.finish["outcome"] == "finished"


@pytest.mark.slow
def test_a_model_that_is_never_loaded_is_tried_again_also_if_it_should_finish(case: Case) -> None:
    case.limits |= {"order_s": 0.1, "stall_s": 0.5}
    case.server.order = "finish"
    case.start()
    assert case.end() == 0
    end = case.server.finish
    assert (end["error"]["code"], end["retryable"]) == ("trainer_stalled", True)


@pytest.mark.slow
def test_before_its_training_has_begun_it_leaves_at_once(case: Case) -> None:
    case.start(prepare=WAIT)
    until(lambda: len(case.running()) == 1)
    case.server.order = "checkpoint_and_exit"
    assert case.end() == 0
    end = case.server.finish
    assert (end["outcome"], end["reason"]) == ("checkpointed", "its training had not begun")


@pytest.mark.slow
def test_a_hung_trainer_is_named_as_such(case: Case) -> None:
    case.limits["stall_s"] = 0.5
    case.start()
    assert case.end() == 0
    assert case.server.finish["error"]["code"] == "trainer_stalled"


@pytest.mark.slow
def test_when_the_node_stops_the_job_can_go_on_elsewhere(case: Case) -> None:
    case.start()
    until(lambda: len(case.running()) == 2)
    assert case.process
    case.process.terminate()
    assert case.end() == 0
    assert case.server.finish["outcome"] == "checkpointed"


BEGUN = SPOOL + "import time; (folder / 'trains').touch(); "
SAVES = (
    BEGUN
    + """
while (folder / "order").read_text() != "checkpoint_and_exit":
    time.sleep(0.02)
time.sleep(0.3)  # the end of its step
spool(1, "checkpoints", {"step": 2, "manifest": {"files": {}}})
spool(2, "finish", {"outcome": "checkpointed"})
"""
)


@pytest.mark.parametrize(
    ("trainer", "told", "reason"),
    [
        (SAVES, ["checkpoints", "finish"], "allocation gpu-1 was being ended"),
        (
            BEGUN + "time.sleep(60)",
            ["finish"],
            "allocation gpu-1 was being ended; there was no time to end its step",
        ),
    ],
)
def test_when_its_allocation_is_ended_a_job_saves_what_it_can(
    case: Case, trainer: str, told: list[str], reason: str
) -> None:
    """Slurm sends SIGTERM to all processes at once, and SIGKILL later."""
    case.limits |= {"pilot": "gpu-1", "taken_s": 1.0}
    case.start(trainer, engine=SPOOL + "import time; (folder / 'serves').touch(); time.sleep(60)")
    until(lambda: (case.attempt.path / "trains").exists() and (case.attempt.path / "serves").exists())
    assert case.process
    send([*case.running(), case.process.pid], signal.SIGTERM)
    assert case.end() == 0
    assert case.server.kinds() == told
    assert case.server.finish["outcome"] == "checkpointed"
    assert case.server.finish["reason"] == reason


def test_a_failure_just_before_its_allocation_is_ended_is_put_down_to_that(case: Case) -> None:
    """Slurm's SIGTERM may reach the supervisor only when it is ending what the failed trainer has left."""
    case.limits |= {"pilot": "gpu-1", "grace_s": DEADLINE_S}
    waits = "while not (folder / {!r}).exists(): time.sleep(0.02)\n"
    engine = SPOOL + "import signal, time\ndef asked(*_):\n    (folder / 'asked').touch()\n    "
    engine += waits.format("told") + "    sys.exit()\n"
    engine += "signal.signal(signal.SIGINT, asked); (folder / 'serves').touch(); time.sleep(60)"
    case.start(SPOOL + "import time\n" + waits.format("serves") + "os.kill(os.getpid(), 9)", engine=engine)
    until((case.attempt.path / "asked").exists)
    assert case.process
    case.process.terminate()
    (case.attempt.path / "told").touch()
    assert case.end() == 0
    assert case.server.finish["outcome"] == "checkpointed"
    assert case.server.finish["reason"].startswith("allocation gpu-1 was being ended; The trainer was killed")


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
