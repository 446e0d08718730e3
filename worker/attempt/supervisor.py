"""Owns one attempt on its node: `python -m worker.attempt.supervisor --attempt-dir D`.

    preparing the model -> engine and trainer run -> all processes gone -> records sent -> `finish` posted

It leaves that road at three forks. *Ordered* (cancel, node stopping): the processes are asked to end, then
made to, and the end is told. *Abandoned* (fenced, lifeline cut, server away for too long): everything is
killed at once and nobody is told, because the attempt may be somebody else's by now. *Failed*: a process
died or a record was refused; `outcome.finish` says what that means.

The engines and the trainer die with the supervisor (tether.py); it adopts whatever they leave behind. An
attempt that has a slot of an engine service starts no engine: it tells the trainer where that serves.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from pydantic import TypeAdapter

from powermean.children import TICK_S, last_words, start, wait
from powermean.contracts.attempts import Claim, EngineStart, Finish
from powermean.contracts.phases import (
    AFTER_LAST_STEP,
    SENDING_RECORDS,
    STARTING_ENGINE,
    STARTING_TRAINER,
    read_step,
)
from powermean.contracts.secrets import SecretValues
from powermean.disk import first_full
from powermean.node_client import AttemptClient
from powermean.processes import Lifeline, ProcessId, descendants, end_all, reap
from powermean.rest import ApiError, ServerUnreachableError
from powermean.tether import adopt_orphans
from worker.attempt.engines import Engines
from worker.attempt.heartbeat import Heartbeat
from worker.attempt.outcome import Ended, Stop, finish
from worker.attempt.redacted_log import RedactedLog
from worker.attempt.shipper import Shipper
from worker.attempt.supervisor_log import say
from worker.attempt_dir import AttemptDir, prune
from worker.launcher import Command, Launcher, LocalLauncher
from worker.redaction import with_secrets
from worker.settings import NodeSettings


@dataclass(frozen=True)
class Limits:
    """How long the supervisor waits, in seconds."""

    partition_s: float = 900.0  # for a server that can't be reached
    prepare_s: float = 3600.0  # for the model to be ready
    grace_s: float = 10.0  # between SIGTERM and SIGKILL
    order_s: float = 900.0  # for a trainer to checkpoint and exit, or, once it trains, to finish early
    stall_s: float = 3600.0  # without a sign of progress
    stopping_s: float = 5.0  # for the last posts when the node stops
    pilot: str | None = None  # whose pool tells the server that it stops, and why


class AbandonedError(Exception):
    """The attempt is not ours to end: kill, tell nobody."""


class StopError(Exception):
    """The attempt is to end, and the end to be told."""

    def __init__(self, why: Stop) -> None:
        super().__init__(why)
        self.why: Stop = why


class Supervisor:
    """Runs one attempt from its claim to the acknowledged end."""

    def __init__(
        self,
        attempt: AttemptDir,
        claim: Claim,
        launcher: Launcher,
        client: AttemptClient,
        limits: Limits,
        lifeline: Lifeline | None,
    ) -> None:
        self._attempt = attempt
        self._claim = claim
        self._launcher = launcher
        self._client = client
        self._limits = limits
        self._lifeline = lifeline
        self._heartbeat = Heartbeat(client, attempt, claim.beat_s)
        self._shipper = Shipper(client, attempt)
        self._logs: list[RedactedLog] = []
        self._stopping = False
        self._training = False  # before that there is nothing to save
        self._in_steps = False  # the trainer has loaded its model
        self._ordered_at: float | None = None
        self._signs: tuple[object, ...] = ()  # of progress
        self._progress_at = time.monotonic()

    def stop(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        """Signal handler: the node stops."""
        self._stopping = True

    def run(self) -> bool:
        """True when the end was told to the server."""
        self._heartbeat.start()
        self._shipper.start()
        try:
            ended = self._processes()
            self._heartbeat.phase = SENDING_RECORDS
            return self._tell(ended)
        except AbandonedError as why:
            say(f"abandoned: {why}")
            end_all(self._descendants, grace_s=0)
            return False
        finally:
            self._heartbeat.halt()
            self._shipper.halt()

    def _processes(self) -> Ended:
        """Run the attempt's programs. When this returns, all of them are gone."""
        stop: Stop | None = None
        broken: OSError | None = None
        model_code = engine_code = trainer_code = trainer = None
        engine: Engines | None = None
        try:
            model_code, model = self._prepare()
            if model is not None:
                engine = self._own_engines(model)
                trainer = self._start(self._launcher.trainer(self._attempt, self._claim, model))
                self._training = True
                self._watch(engine, trainer)
        except StopError as why:
            stop = why.why
        except OSError as error:  # a full disk, no more processes: the attempt ends in order all the same
            say(f"the supervisor can't go on: {error}")
            broken = error
        if engine:
            engine_code = engine.poll()  # that it ended before it was told to is a failure
        end_all(self._descendants, self._limits.grace_s)
        if engine:
            engine.wait()
        if trainer:
            trainer_code = trainer.wait()
        reap()
        for log in self._logs:
            log.finish()
        return Ended(
            stop=stop,
            model_code=model_code,
            engine_code=engine_code,
            engine_start=engine.failed_start() if engine else None,
            trainer_code=trainer_code,
            broken=broken,
            full_disk=first_full([self._attempt.path]),
            last_words=last_words(self._attempt.log),
        )

    def _own_engines(self, model: Path) -> Engines | None:
        """Start the attempt's engines; None where it samples from an engine service."""
        if self._claim.engine is not None:
            self._heartbeat.phase = STARTING_TRAINER
            self._attempt.write_engine_start(EngineStart(url=self._claim.engine.url))
            return None
        self._heartbeat.phase = STARTING_ENGINE

        def start_one(replica: int, port: int) -> subprocess.Popen[bytes]:
            return self._start(self._launcher.engine(self._attempt, self._claim, model, replica, port))

        return Engines(self._attempt, self._claim, start_one)

    def _prepare(self) -> tuple[int | None, Path | None]:
        """The model's folder, or the exit status of the program that should have made it ready."""
        command = self._launcher.prepare(self._attempt, self._claim)
        answer = self._attempt.path / "model"
        code = wait(self._start(command, answer), self._limits.prepare_s, self._tick)
        if code is None:
            raise StopError("stalled")
        folder = answer.read_text().strip().rpartition("\n")[2]
        return (None, Path(folder)) if code == 0 and folder else (code, None)

    def _watch(self, engine: Engines | None, trainer: subprocess.Popen[bytes]) -> None:
        """Until the trainer has ended, or its own engines before it, or a record was refused."""

        def lost() -> bool:
            return engine is not None and engine.poll() is not None

        while trainer.poll() is None and not lost() and self._shipper.refused is None:
            self._tick()
            self._check_progress()
        if lost():
            wait(trainer, self._limits.grace_s, self._tick)  # what it says of the loss is worth having

    def _tick(self) -> None:
        self._check()
        time.sleep(TICK_S)

    def _check(self) -> None:
        """Raise when the attempt has to end for a reason outside its processes."""
        self._check_ours()
        if time.monotonic() - self._heartbeat.answered > self._limits.partition_s:
            raise AbandonedError(f"the server could not be reached for {self._limits.partition_s:.0f} s")
        if self._stopping and self._limits.pilot is not None:
            raise AbandonedError(f"{self._limits.pilot} is stopped, and its pool tells the server")
        if self._stopping:
            raise StopError("node_stopping")
        if self._heartbeat.order == "cancel":
            raise StopError("cancel")
        if self._heartbeat.order == "checkpoint_and_exit" and not self._training:
            raise StopError("not_begun")
        finishing = self._heartbeat.order == "finish"
        if self._heartbeat.order != "continue" and (not finishing or self._has_begun()):
            self._ordered_at = self._ordered_at or time.monotonic()
            if time.monotonic() - self._ordered_at > self._limits.order_s:
                raise StopError("finish_ignored" if finishing else "order_ignored")

    def _has_begun(self) -> bool:
        """Whether the trainer is in its steps. Until then models are loaded, and that has its own limits."""
        phase = "" if self._in_steps or not self._training else self._attempt.phase("")
        self._in_steps = self._in_steps or read_step(phase) is not None or phase in AFTER_LAST_STEP
        return self._in_steps

    def _check_ours(self) -> None:
        if self._heartbeat.refused:
            raise AbandonedError(str(self._heartbeat.refused))
        if self._lifeline and self._lifeline.cut:
            raise AbandonedError("the service that this node belongs to is gone")

    def _check_progress(self) -> None:
        log = self._attempt.log
        signs = (
            self._attempt.phase(""),
            log.stat().st_size if log.exists() else 0,
            [path.name for path in self._attempt.spooled()[-1:]],
        )
        if signs != self._signs:
            self._signs, self._progress_at = signs, time.monotonic()
        elif time.monotonic() - self._progress_at > self._limits.stall_s:
            raise StopError("stalled")

    def _start(self, command: Command, answer: Path | None = None) -> subprocess.Popen[bytes]:
        if not command.secrets:
            return start(command.argv, command.environment, self._attempt.log, answer)
        log = RedactedLog(self._attempt.log, command.secrets)
        self._logs.append(log)
        with log.writing() as end:
            return start(command.argv, with_secrets(command.environment, command.secrets), end, answer)

    def _descendants(self) -> set[int]:
        return descendants(os.getpid())

    def _tell(self, ended: Ended) -> bool:
        """Send what is left of spool and log, then the end; raises AbandonedError when that can't be done."""
        self._shipper.halt()
        deadline = time.monotonic() + (
            self._limits.stopping_s if ended.stop == "node_stopping" else self._limits.partition_s
        )
        while not self._shipper.ship() and self._shipper.refused is None:
            self._pause(deadline)
        end = finish(replace(ended, record=self._shipper.finish, refused=self._shipper.refused))
        while not self._post(end):
            self._pause(deadline)
        self._heartbeat.halt()
        say(f"{end.outcome}" + (f": {end.error.code}: {end.error.message}" if end.error else ""))
        return True

    def _post(self, end: Finish) -> bool:
        try:
            self._client.finish(end)
        except ServerUnreachableError:
            return False
        except ApiError as error:
            if not error.retryable:
                raise AbandonedError(str(error)) from error
            return False
        return True

    def _pause(self, deadline: float) -> None:
        self._check_ours()
        if time.monotonic() > deadline:
            raise AbandonedError("the server could not be reached")
        time.sleep(TICK_S)


def read_secrets() -> SecretValues:
    """The job's secrets, which the worker hands on in memory, as standard input."""
    given = sys.stdin.buffer.read()
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), sys.stdin.fileno())
    return TypeAdapter(SecretValues).validate_json(given or b"{}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Supervise one attempt at a job.")
    parser.add_argument("--attempt-dir", type=Path, required=True)
    attempt = AttemptDir(parser.parse_args().attempt_dir.resolve())
    settings = NodeSettings.read()
    secrets = read_secrets()
    adopt_orphans()
    try:
        attempt.write_supervisor(ProcessId.own())
    except OSError as error:  # the worker has written it, too
        say(f"not written: {error}")
    claim = attempt.claim()
    lifeline = Lifeline(settings.lifeline_pid) if settings.lifeline_pid else None
    with AttemptClient(settings.server_url, attempt.attempt_id, attempt.token()) as client:
        supervisor = Supervisor(
            attempt,
            claim,
            LocalLauncher(settings, secrets),
            client,
            Limits(settings.partition_grace_s, order_s=settings.stop_grace_s, pilot=settings.pilot),
            lifeline,
        )
        signal.signal(signal.SIGTERM, supervisor.stop)
        signal.signal(signal.SIGINT, supervisor.stop)
        told = supervisor.run()
    attempt.close()
    prune(settings.data_dir)
    sys.exit(0 if told else 1)


if __name__ == "__main__":
    main()
