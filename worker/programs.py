"""Trainer programs that read a task and print an answer: checking a job, replaying a step."""

import signal
import subprocess
import sys
from collections.abc import Callable
from typing import TypeVar

from pydantic import ValidationError

from powermean.contracts.attempts import JobError, ValidationResult, ValidationTask
from powermean.contracts.base import Contract
from powermean.contracts.replays import ReplayOutcome, ReplayTask
from powermean.processes import exit_text
from powermean.tether import tethered

Answer = TypeVar("Answer", bound=Contract)

VALIDATE_S = 900.0  # a model may have to be downloaded first
REPLAY_S = 540.0  # the server waits a minute longer
_REMEDY = (
    "Try again; if it keeps failing, check the node's memory and whether it can fetch what the job names."
)
_STOPPED = (-signal.SIGTERM, -signal.SIGINT)  # how programs end that are stopped together with this one


def check(task: ValidationTask) -> ValidationResult | None:
    """Result of `python -m trainer.preflight`, or an error if it took too long; None if it was stopped."""
    return _answer(
        "trainer.preflight", task, ValidationResult, VALIDATE_S, _invalid, "validation", "node's checks"
    )


def replayed(task: ReplayTask) -> ReplayOutcome | None:
    """Result of `python -m trainer.replay`, or an error if it took too long; None if it was stopped."""
    return _answer("trainer.replay", task, ReplayOutcome, REPLAY_S, _unreplayed, "replay", "replay")


def _answer(
    module: str,
    task: Contract,
    answer: type[Answer],
    deadline_s: float,
    failed: Callable[[str, str], Answer],
    code: str,
    name: str,
) -> Answer | None:
    """Run a program that reads a task and prints its answer as its last line, with a deadline.

    None: it was stopped, for example with the worker, which says nothing about the task; the server asks
    again.
    """
    try:
        done = subprocess.run(
            tethered([sys.executable, "-m", module]),
            input=task.model_dump_json(),
            capture_output=True,
            text=True,
            timeout=deadline_s,
        )
    except subprocess.TimeoutExpired:
        return failed(f"{code}_timeout", f"The {name} took longer than {deadline_s:.0f} s.")
    if done.returncode in _STOPPED:
        return None
    try:
        return answer.model_validate_json(done.stdout.strip().rpartition("\n")[2])
    except ValidationError:
        words = done.stderr.strip()[-600:]
        return failed(f"{code}_failed", f"The {name} {exit_text(done.returncode)}. {words}".strip())


def _unreplayed(code: str, message: str) -> ReplayOutcome:
    return ReplayOutcome(error=JobError(code=code, message=message, remedy=_REMEDY))


def _invalid(code: str, message: str) -> ValidationResult:
    return ValidationResult(errors=(JobError(code=code, message=message, remedy=_REMEDY),))
