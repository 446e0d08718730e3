"""A node's work: it starts attempts, checks jobs, replays steps, and reports what it has and runs.

A Celery message only wakes it; it asks the server what to do. Starting an attempt means claiming it, writing
its folder and spawning its supervisor, which outlives this process. The answer to each report says which
engine services the node should keep running.
"""

import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from powermean.artefacts import ArtefactStoreFullError, ArtefactStoreUnavailableError
from powermean.calls import ApiError, ServerUnreachableError
from powermean.contracts.attempts import (
    Claim,
    ClaimWithSecrets,
    Finish,
    JobError,
    NameRival,
    ValidationResult,
)
from powermean.contracts.names import NODE_NAME_TAKEN
from powermean.contracts.secrets import SecretValues
from powermean.disk import is_full
from powermean.errors import PowermeanError
from powermean.keys import without_logins
from powermean.node_client import AttemptClient, NodeClient
from powermean.processes import ProcessId, send
from worker import health
from worker.attempt import outcome
from worker.attempt.outcome import Ended
from worker.attempt_dir import MARK, AttemptDir
from worker.engines.services import Engines
from worker.gpus import Gpus
from worker.inventory import ReportNumbers, full_disk, report, supervisors
from worker.launcher import LocalEngineLauncher, without_secrets
from worker.programs import check, replayed
from worker.settings import NodeSettings
from worker.usage import UsageMeter

log = logging.getLogger("powermean.worker")


@contextmanager
def in_memory(text: str) -> Iterator[int]:
    """A descriptor to read the text from; no file system has it."""
    with open(os.memfd_create("given"), "w+") as file:
        file.write(text)
        file.seek(0)
        yield file.fileno()


@contextmanager
def held_back(number: signal.Signals) -> Iterator[None]:
    """Programs that are started meanwhile get this signal once they unblock it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (number,))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_this_process() -> None:
    """Celery ends in order."""
    os.kill(os.getpid(), signal.SIGTERM)


def _judged(result: ValidationResult, node_id: str) -> ValidationResult:
    """The result without errors of the artefact store, by which no spec is judged: they stand apart."""
    codes = (ArtefactStoreUnavailableError.code, ArtefactStoreFullError.code)
    away = [error.message for error in result.errors if error.code in codes]
    if not away:
        return result
    wrong = tuple(error for error in result.errors if error.code not in codes)
    told = f"node {node_id}: {without_logins(away[0])}"[:1000]
    return result.model_copy(update={"errors": wrong, "store_error": told})


CLAIM_PAUSES_S = (1.0, 3.0)
REPORT_S = 3.0
LEAVING_S = 0.5  # between looks at what is still to end
UNHEARD_S = 10.0  # less than the silence after which the server gives a name away
WARN_AGAIN = timedelta(minutes=10)


class NodeNameTakenError(PowermeanError):
    """Another worker has this node's name."""


class Node:
    """The work behind the Celery tasks. `refused` is called when the node's name is another worker's."""

    def __init__(self, settings: NodeSettings, refused: Callable[[], object] = end_this_process) -> None:
        self.name_taken: str | None = None  # why this worker has to end
        self._settings = settings
        self._refused = refused
        self._client = NodeClient(settings.server_url, settings.node_token.get_secret_value())
        # the report never sees an attempt's folder without its supervisor
        self._folders = threading.Lock()
        self._engines = Engines(settings.data_dir, LocalEngineLauncher(settings))
        self._reporting = threading.Lock()  # orders are followed in the order in which they were given
        self._gpus, self._usage = Gpus(), UsageMeter()
        self._numbers = ReportNumbers(settings.data_dir)
        self._accepted = float("-inf")  # when the server last took a report
        self._rival: NameRival | None = None  # that was warned of last
        self._checking: dict[str, None] = {}  # jobs, oldest first
        self._leaving = threading.Event()  # the allocation that this worker runs in is being ended

    def start(self, attempt_id: str) -> None:
        """Claim the attempt and spawn its supervisor. If the claim is refused, there is nothing to do.

        Raises NodeNameTakenError.
        """
        if self._leaving.is_set():
            return
        if time.monotonic() - self._accepted > UNHEARD_S:
            self.report()  # after a silence the name may be another worker's, and so may the attempt
        try:
            answer = self._claim(attempt_id)
        except ApiError as error:
            log.info("not starting attempt %s: %s", attempt_id, error)
            return
        except ServerUnreachableError as error:
            log.warning("attempt %s was not claimed, the server will ask again: %s", attempt_id, error)
            return
        claim = answer.claim
        if self._leaving.is_set():
            log.info(
                "attempt %s is given back: allocation %s is being ended", attempt_id, self._settings.pilot
            )
            self._tell(claim, outcome.finish(Ended(stop="not_begun", taken=self._settings.pilot)))
            return
        try:
            pid = self._spawn(claim, answer.secrets)
        except OSError as error:
            log.error("attempt %s can't be started: %s", attempt_id, error)
            self._give_up(claim, error)
            return
        log.info("attempt %s started, supervisor %d", attempt_id, pid)
        if claim.engine is not None:
            self.report()  # the answer tells the engine about its new job and about jobs that have left

    def _claim(self, attempt_id: str) -> ClaimWithSecrets:
        """Claim it, again if no answer comes: the server may have taken the claim all the same."""
        claim_id = secrets.token_hex(16)
        for pause_s in CLAIM_PAUSES_S:
            try:
                return self._client.claim(attempt_id, self._settings.node_id, claim_id)
            except ServerUnreachableError:
                time.sleep(pause_s)
        return self._client.claim(attempt_id, self._settings.node_id, claim_id)

    def _spawn(self, claim: Claim, secrets: SecretValues) -> int:
        """Write the attempt's folder and start its supervisor; returns its pid.

        The secrets are its standard input, from memory: neither on a disk, nor in its environment. By its
        mark it is found even where this worker ends before it has written which process it is. SIGTERM waits
        until it can handle it.
        """
        with self._folders, in_memory(json.dumps(secrets)) as given:
            attempt = AttemptDir.create(self._settings.attempt_dir(claim.attempt_id), claim)
            with (attempt.path / "supervisor.log").open("ab") as out, held_back(signal.SIGTERM):
                process = subprocess.Popen(
                    [sys.executable, "-m", "worker.attempt.supervisor", "--attempt-dir", str(attempt.path)],
                    env=without_secrets() | {MARK: attempt.mark},
                    stdin=given,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            try:
                attempt.write_supervisor(ProcessId.of(process.pid))
            except OSError:
                process.kill()
                raise
        return process.pid

    def _give_up(self, claim: Claim, why: OSError) -> None:
        """End a claimed attempt without a supervisor at once, rather than by its silence."""
        folder = self._settings.data_dir
        error = (
            outcome.disk_full(folder)
            if is_full(why)
            else JobError(code="supervisor_error", message=f"The node could not start the attempt: {why}")
        )
        self._tell(claim, Finish(outcome="failed", error=error, retryable=True))

    def _tell(self, claim: Claim, end: Finish) -> None:
        """The end of a claimed attempt that never had a supervisor."""
        try:
            with AttemptClient(self._settings.server_url, claim.attempt_id, claim.token) as client:
                client.finish(end.model_copy(update={"node_rank": claim.node_rank}))
        except (ApiError, ServerUnreachableError) as failure:
            log.warning("the end of attempt %s was not told: %s", claim.attempt_id, failure)

    def validate(self, job_id: str) -> None:
        """Check what only a node can check, and tell the server."""
        try:
            given = self._client.validation(job_id)
            self._checking[job_id] = None
            result = check(given.task, given.secrets)
            if result is not None and result.errors and (folder := full_disk(self._settings)):
                # Its errors may come from there, and would end the job for good.
                log.warning("job %s was not validated: the disk of %s is full", job_id, folder)
            elif result is not None:
                judged = _judged(result, self._settings.node_id)
                if judged.store_error is not None:
                    log.warning("job %s could not be checked: %s", job_id, judged.store_error)
                self._client.post_validation(job_id, judged)
        except ApiError as error:
            log.info("not validating job %s: %s", job_id, error)
        except ServerUnreachableError as error:
            log.warning("job %s was not validated, the server will ask again: %s", job_id, error)
        finally:
            self._checking.pop(job_id, None)

    def replay(self, replay_id: str) -> None:
        """Recompute a recorded step and tell the server."""
        try:
            outcome = replayed(self._client.claim_replay(replay_id, self._settings.node_id))
            if outcome is not None:
                self._client.post_replay(replay_id, outcome)
        except ApiError as error:
            log.info("not running replay %s: %s", replay_id, error)
        except ServerUnreachableError as error:
            log.warning("replay %s was not done, the server will ask again: %s", replay_id, error)

    def report_for_ever(self) -> None:
        """Keep telling the server what the node has and runs, through any outage of the server."""
        while True:
            try:
                self.report()
            except NodeNameTakenError as error:
                log.error("%s", error)
                self.name_taken = str(error)
                self._refused()
                return
            except Exception:  # the thread must continue: a node that stops reporting counts as offline
                log.exception("not reported")
            health.note(self._settings.data_dir, health.TURNED)
            if self._leaving.is_set():
                time.sleep(LEAVING_S)
            else:
                self._leaving.wait(REPORT_S)

    def leave(self) -> None:
        """Take nothing new, and have what runs here save a checkpoint and end; for signal handlers, too."""
        self._leaving.set()

    def end_attempts(self) -> None:
        """Once this node leaves, have what runs here save and end. It needs a thread of its own: a report may
        take longer than there is time.
        """
        self._leaving.wait()
        deadline = time.monotonic() + self._settings.term_grace_s
        while time.monotonic() < deadline:
            send(supervisors(self._settings.data_dir), signal.SIGTERM)  # one may have been started just now
            time.sleep(LEAVING_S)

    def await_attempts(self) -> None:
        """Until nothing runs here, or the time is over."""
        deadline = time.monotonic() + self._settings.term_grace_s
        while supervisors(self._settings.data_dir) and time.monotonic() < deadline:
            time.sleep(LEAVING_S / 5)

    def report(self) -> None:
        """Report once and follow the orders in the answer. Raises NodeNameTakenError."""
        with self._reporting:
            self._gpus.look()  # it may take seconds, and no attempt should wait for it
            with self._folders:
                services, checking = self._engines.reports(), tuple(self._checking)
                now = report(
                    self._settings,
                    self._gpus,
                    self._usage,
                    services,
                    checking,
                    leaving=self._leaving.is_set(),
                    number=self._numbers.next(),
                )
            try:
                orders = self._client.put_node(self._settings.node_id, now)
            except (ApiError, ServerUnreachableError) as error:
                if isinstance(error, ApiError) and error.body.code == NODE_NAME_TAKEN:
                    raise NodeNameTakenError(str(error)) from error
                log.warning("not reported: %s", error)
                return
            self._accepted = time.monotonic()
            health.note(self._settings.data_dir, health.HEARD)
            self._warn(orders.rival)
            self._engines.follow(orders)

    def _warn(self, rival: NameRival | None) -> None:
        """Log that another worker tries to use this node's name; now and then if it goes on trying."""
        last = self._rival
        if rival is None or rival == last:
            return
        if last is None or rival.hostname != last.hostname or rival.at - last.at > WARN_AGAIN:
            self._rival = rival
            log.warning(
                "another worker, on host %s, tried to use this node's name, %s, at %s and was refused: give "
                "each worker a POWERMEAN_NODE_ID of its own",
                rival.hostname,
                self._settings.node_id,
                f"{rival.at.astimezone():%H:%M:%S}",
            )
