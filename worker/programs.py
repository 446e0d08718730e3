"""Trainer programs that read a task and print an answer: checking a job, replaying a step."""

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from pydantic import ValidationError

from powermean.contracts.attempts import JobError, ValidationResult, ValidationTask
from powermean.contracts.base import Contract
from powermean.contracts.replays import ReplayOutcome, ReplayTask
from powermean.contracts.secrets import SecretValues
from powermean.processes import exit_text
from powermean.tether import tethered
from worker.launcher import without_secrets
from worker.redaction import Redactor, with_secrets

log = logging.getLogger("powermean.worker")
Answer = TypeVar("Answer", bound=Contract)

VALIDATE_S = 900.0  # a model may have to be downloaded first
REPLAY_S = 540.0  # the server waits a minute longer
TRIES = 3  # of a program that is killed
PAUSE_S = 3.0  # between them
_REMEDY = (
    "Try again; if it keeps failing, check the node's memory and whether it can fetch what the job names."
)
_STOPPED = (-signal.SIGTERM, -signal.SIGINT)  # how programs end that are stopped together with this one


def check(task: ValidationTask, secrets: SecretValues | None = None) -> ValidationResult | None:
    """Result of `python -m trainer.preflight`, or an error if it took too long; None if it was stopped."""
    return _answer(
        "trainer.preflight",
        task,
        ValidationResult,
        VALIDATE_S,
        _invalid,
        "validation",
        "node's checks",
        secrets or {},
    )


def replayed(task: ReplayTask) -> ReplayOutcome | None:
    """Result of `python -m trainer.replay`, or an error if it took too long; None if it was stopped."""
    return _answer("trainer.replay", task, ReplayOutcome, REPLAY_S, _unreplayed, "replay", "replay", {})


def _answer(
    module: str,
    task: Contract,
    answer: type[Answer],
    deadline_s: float,
    failed: Callable[[str, str], Answer],
    code: str,
    name: str,
    secrets: SecretValues,
) -> Answer | None:
    """The answer of a program that reads a task and prints its answer as its last line, without the secrets.

    None: it was stopped, for example with the worker, which says nothing about the task; the server asks
    again.
    """
    try:
        done = _run(module, task, deadline_s, secrets)
    except subprocess.TimeoutExpired:
        return failed(f"{code}_timeout", f"The {name} took longer than {deadline_s:.0f} s.")
    if done.returncode in _STOPPED:
        return None
    if done.returncode < 0:
        how = f"{exit_text(done.returncode)}, {TRIES} times"
        return failed(f"{code}_killed", f"The {name} {how}.")
    redacted = Redactor(secrets.values()).text
    try:
        return answer.model_validate_json(redacted(done.stdout).strip().rpartition("\n")[2])
    except ValidationError:
        words = redacted(done.stderr).strip()[-600:]
        return failed(f"{code}_failed", f"The {name} {exit_text(done.returncode)}. {words}".strip())


def _run(
    module: str, task: Contract, deadline_s: float, secrets: SecretValues
) -> subprocess.CompletedProcess[str]:
    """Run the program. One that is killed is run again: there may be more memory by then.

    Raises TimeoutExpired when the deadline for all tries has passed.
    """
    deadline = time.monotonic() + deadline_s
    for tried in range(1, TRIES + 1):
        done = subprocess.run(
            tethered([sys.executable, "-m", module]),
            env=with_secrets(without_secrets(), secrets),
            input=task.model_dump_json(),
            capture_output=True,
            text=True,
            timeout=max(0.0, deadline - time.monotonic()),
        )
        if done.returncode >= 0 or done.returncode in _STOPPED or tried == TRIES:
            break
        log.warning("%s %s and is run again in %.0f s", module, exit_text(done.returncode), PAUSE_S)
        time.sleep(PAUSE_S)
    return done


def _unreplayed(code: str, message: str) -> ReplayOutcome:
    return ReplayOutcome(error=JobError(code=code, message=message, remedy=_REMEDY))


def _invalid(code: str, message: str) -> ValidationResult:
    return ValidationResult(errors=(JobError(code=code, message=message, remedy=_REMEDY),))
