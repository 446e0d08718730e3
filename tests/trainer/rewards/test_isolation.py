"""A grader that raises, hangs, dies or talks nonsense costs its own completion only."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from powermean.processes import descendants, start_time
from trainer.failures import TrainingError
from trainer.rewards.grading import Grade
from trainer.rewards.isolation import IsolatedGrader

HOSTILE = "tests.support.hostile_grader"
GONE_S = 10.0


def _graders() -> set[int]:
    return descendants(os.getpid())


@pytest.mark.slow
def test_failures_stay_with_their_completion_and_order_is_kept() -> None:
    before = _graders()
    with IsolatedGrader(HOSTILE, (), timeout_s=1.0) as grader:
        said = ["1", "raise", "0.5", "hang", "0.25", "die", "0", "2", "nan", "1"]
        grades = grader.grade([(text, "") for text in said])
        assert grades == [
            Grade(1.0),
            Grade(0.0, "ArithmeticError: no such number"),
            Grade(0.5),
            Grade(0.0, "grading took longer than 1 s"),
            Grade(0.25),
            Grade(0.0, "the grader process ended: exit status 7"),
            Grade(0.0),
            Grade(0.0, "the grader gave 2.0, which is not in [0, 1]"),
            Grade(0.0, "the grader gave nan, which is not in [0, 1]"),
            Grade(1.0),
        ]
        (process,) = _graders() - before
    assert _graders() <= before
    assert start_time(process) is None


@pytest.mark.slow
def test_a_killed_process_costs_no_completion_its_reward() -> None:
    before = _graders()
    with IsolatedGrader(HOSTILE, (), timeout_s=30.0) as grader:
        (process,) = _graders() - before
        os.kill(process, signal.SIGKILL)
        assert grader.grade([("1", ""), ("1", "")]) == [Grade(1.0), Grade(1.0)]


@pytest.mark.slow
def test_long_completions_pass_whole() -> None:
    with IsolatedGrader(HOSTILE, (), timeout_s=30.0) as grader:
        text = " " * 3_000_000 + "1"  # beyond any pipe's buffer
        assert grader.grade([(text, "é\n\u2028")]) == [Grade(1.0)]


def test_a_grader_that_cannot_start_is_one_named_error() -> None:
    with (
        pytest.raises(TrainingError, match="did not start: exit status 1") as error,
        IsolatedGrader("trainer.rewards.no_such_grader", (), timeout_s=1.0),
    ):
        pass
    assert error.value.error.code == "grader_unavailable"
    assert error.value.error.path == "reward.kind"


@pytest.mark.slow
def test_grader_processes_end_with_their_parent() -> None:
    script = (
        "import time\n"
        "from trainer.rewards.isolation import IsolatedGrader\n"
        f"with IsolatedGrader({HOSTILE!r}, (), timeout_s=600) as grader:\n"
        "    print('open', flush=True)\n"
        "    grader.grade([('hang', '')])\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"open\n"
    (child,) = descendants(parent.pid)
    parent.kill()
    parent.wait(GONE_S)
    parent.stdout.close()
    deadline = time.monotonic() + GONE_S
    while start_time(child) is not None:
        assert time.monotonic() < deadline, "the grader process outlived its parent"
        time.sleep(0.05)


@pytest.mark.slow
def test_two_threads_may_grade_at_once() -> None:
    """An evaluation comes beside what is sampled ahead; replies never go to the wrong one."""
    rewards = [0.0, 0.25, 0.5, 1.0] * 50
    with IsolatedGrader(HOSTILE, (), timeout_s=10.0) as grader, ThreadPoolExecutor(2) as pool:
        orders = (rewards, rewards[::-1])
        graded = pool.map(lambda order: grader.grade([(str(reward), "") for reward in order]), orders)
        assert [[grade.reward for grade in grades] for grades in graded] == list(orders)
