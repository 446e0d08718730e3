"""Grading in a separate process, which is killed when one completion takes too long.

What a grader runs (a user's regular expression, symbolic mathematics) may never end or use up all memory.
"""

import json
import math
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from threading import Lock
from types import TracebackType
from typing import Any

from powermean.contracts.rewards import RewardSpec
from powermean.tether import tethered
from trainer.failures import TrainingError
from trainer.rewards.grading import Grade, Item
from worker.redaction import without_job_secrets

START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 5.0


class _GraderTimeoutError(Exception):
    """The process did not answer in time."""


class _GraderDiedError(Exception):
    """The process ended."""


def open_grader(spec: RewardSpec) -> "IsolatedGrader":
    """A job's grader, as a context manager.

    Enter it in a thread that lives as long as the program: the process is killed when that thread ends.
    """
    return IsolatedGrader("trainer.rewards.serving", (spec.model_dump_json(),), spec.timeout_s)


class IsolatedGrader:
    """Grades in `python -m MODULE ARGUMENT...`, which speaks the protocol of trainer.rewards.serving.

    One process grades all completions. If one exceeds `timeout_s` or ends the process twice, that completion
    gets reward 0 and an error, and a new process grades the rest.
    """

    def __init__(self, module: str, arguments: Sequence[str], timeout_s: float) -> None:
        self._command = (sys.executable, "-m", module, *arguments)
        self._timeout_s = timeout_s
        self._process: _LineProcess | None = None
        self._one_at_a_time = Lock()  # the sampling thread and an evaluation may grade at the same time

    def __enter__(self) -> "IsolatedGrader":
        self._process = self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def grade(self, items: Sequence[Item]) -> list[Grade]:
        """See Grader. Raises TrainingError (grader_unavailable) if a new process can't start."""
        grades = []
        for item in items:
            with self._one_at_a_time:
                grades.append(self._grade_one(*item))
        return grades

    def _grade_one(self, completion: str, answer: str, *, again: bool = False) -> Grade:
        if self._process is None:
            self._process = self._start()
        try:
            reply = self._process.ask([completion, answer], self._timeout_s)
        except _GraderTimeoutError:
            self._stop()
            return Grade(0.0, f"grading took longer than {self._timeout_s:g} s")
        except _GraderDiedError as died:
            self._stop()
            if not again:  # somebody else may have killed it, and no reward is the completion's fault then
                return self._grade_one(completion, answer, again=True)
            return Grade(0.0, f"the grader process ended: {died}")
        if "error" in reply:
            return Grade(0.0, str(reply["error"]))
        reward = float(reply["reward"])
        if not (math.isfinite(reward) and 0 <= reward <= 1):
            return Grade(0.0, f"the grader gave {reward}, which is not in [0, 1]")
        return Grade(reward)

    def _start(self) -> "_LineProcess":
        process = _LineProcess(self._command)
        try:
            process.read(START_TIMEOUT_S)
        except (_GraderTimeoutError, _GraderDiedError) as error:
            process.kill()
            why = str(error) or f"not ready within {START_TIMEOUT_S:g} s"
            raise TrainingError(
                "grader_unavailable",
                f"the grader process did not start: {why} (see the log)",
                path="reward.kind",
                remedy="install the trainer extra on the node: pip install 'powermean[trainer]'",
            ) from error
        return process

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process = None


class _LineProcess:
    """A child process that answers each line with a line and dies with the thread that started it."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            tethered(command),
            env=without_job_secrets(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests = self._process.stdin.fileno()
        self._replies = self._process.stdout.fileno()
        os.set_blocking(self._requests, False)
        self._buffer = b""

    def ask(self, request: object, timeout_s: float) -> dict[str, Any]:
        """The reply to one request. Raises _GraderTimeoutError or _GraderDiedError."""
        deadline = time.monotonic() + timeout_s
        left = memoryview(json.dumps(request).encode() + b"\n")
        while left:
            _wait(writing=self._requests, deadline=deadline)
            try:
                left = left[os.write(self._requests, left) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise _GraderDiedError(self._ending()) from None
        return self.read(deadline - time.monotonic())

    def read(self, timeout_s: float) -> dict[str, Any]:
        """The next line. Raises _GraderTimeoutError or _GraderDiedError."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            _wait(reading=self._replies, deadline=deadline)
            piece = os.read(self._replies, 1 << 16)
            if not piece:
                raise _GraderDiedError(self._ending())
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def kill(self) -> None:
        """End the process at once; it keeps no state."""
        self._process.kill()
        self._process.wait(_STOP_TIMEOUT_S)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _ending(self) -> str:
        try:
            code = self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        return f"killed by signal {-code}" if code < 0 else f"exit status {code}"


def _wait(deadline: float, reading: int | None = None, writing: int | None = None) -> None:
    left = deadline - time.monotonic()
    readers = [] if reading is None else [reading]
    writers = [] if writing is None else [writing]
    if left <= 0 or not any(select.select(readers, writers, [], left)):
        raise _GraderTimeoutError
