"""Orders to a supervisor with real processes: save and leave, finish early, end with its allocation."""

import signal

import pytest

from powermean.processes import send
from tests.support.supervised_case import DEADLINE_S, FINISHED, PREPARE, SPOOL, STUBBORN, WAIT, Case, until

pytestmark = pytest.mark.slow


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


def test_who_ignores_the_order_is_ended_at_the_deadline(case: Case) -> None:
    case.limits |= {"order_s": 0.5}
    case.start(STUBBORN)
    until(lambda: len(case.running()) == 2)
    case.server.order = "checkpoint_and_exit"
    assert case.end() == 0
    end = case.server.finish
    assert (end["outcome"], end["error"]) == ("checkpointed", None)
    assert "did not stop in time" in end["reason"]


def test_who_does_not_finish_early_in_time_fails_by_name(case: Case) -> None:
    case.limits |= {"order_s": 0.5}
    case.start(f"import sys; open(sys.argv[1] + '/phase', 'w').write('step 3 of 20: sampling'); {STUBBORN}")
    until(lambda: len(case.running()) == 2)
    case.server.order = "finish"
    assert case.end() == 0
    end = case.server.finish
    assert (end["outcome"], end["error"]["code"], end["retryable"]) == ("failed", "finish_timed_out", False)


def test_the_time_to_finish_early_begins_once_the_model_is_loaded(case: Case) -> None:
    case.limits |= {"order_s": 0.5}
    case.server.order = "finish"
    load = "import time; open(sys.argv[1] + '/phase', 'w').write('loading the model'); time.sleep(1)"
    case.start(
        SPOOL + f"{load}; spool(1, 'finish', {FINISHED})", prepare=f"import time; time.sleep(1); {PREPARE}"
    )
    assert case.end() == 0
    assert case.server.finish["outcome"] == "finished"


def test_a_model_that_is_never_loaded_is_tried_again_also_if_it_should_finish(case: Case) -> None:
    case.limits |= {"order_s": 0.1, "stall_s": 0.5}
    case.server.order = "finish"
    case.start()
    assert case.end() == 0
    end = case.server.finish
    assert (end["error"]["code"], end["retryable"]) == ("trainer_stalled", True)


def test_before_its_training_has_begun_it_leaves_at_once(case: Case) -> None:
    case.start(prepare=WAIT)
    until(lambda: len(case.running()) == 1)
    case.server.order = "checkpoint_and_exit"
    assert case.end() == 0
    end = case.server.finish
    assert (end["outcome"], end["reason"]) == ("checkpointed", "its training had not begun")


def test_a_hung_trainer_is_named_as_such(case: Case) -> None:
    case.limits["stall_s"] = 0.5
    case.start()
    assert case.end() == 0
    assert case.server.finish["error"]["code"] == "trainer_stalled"


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
