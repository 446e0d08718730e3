"""A node's agent: `python -m trainer.worker`.

It consumes the node's own Celery queue, which only wakes it: what to do it asks the server. To start an
attempt is to claim it, write its folder and spawn its supervisor, which outlives this process. Checks and
replays may take minutes: they run beside Celery's threads, few at once.
Beside that it reports every few seconds what the node has and what still runs on it; the answer says which
engine services it is to keep running.
"""

import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from celery import Celery
from pydantic import ValidationError

from powermean.contracts.attempts import GpuInfo, JobError, ValidationResult, ValidationTask
from powermean.contracts.base import Contract
from powermean.contracts.names import REPLAY_TASK, START_TASK, VALIDATE_TASK, node_queue
from powermean.contracts.replays import ReplayOutcome, ReplayTask
from powermean.node_client import NodeClient
from powermean.processes import ProcessId
from powermean.rest import ApiError, ServerUnreachable
from powermean.tether import tethered
from trainer.attempt_dir import AttemptDir, prune
from trainer.engines import Engines
from trainer.inventory import gpus, report
from trainer.launcher import LocalEngineLauncher
from trainer.long_tasks import LongTasks
from trainer.outcome import exit_text
from trainer.settings import NodeSettings, NodeSettingsError

Answer = TypeVar("Answer", bound=Contract)

log = logging.getLogger("powermean.worker")
REPORT_S = 3.0
LOOK_AT_GPUS_S = 60.0
VALIDATE_S = 900.0  # a model may have to be fetched first
REPLAY_S = 540.0  # the server waits a minute longer
THREADS = 4
LONG_TASKS = 2  # at once
_REMEDY = (
    "Try again; if it comes back, look at the node's memory, and whether it can fetch what the job names."
)
_STOPPED = (-signal.SIGTERM, -signal.SIGINT)  # how programs end that are stopped with this one


class Node:
    """What the tasks do."""

    def __init__(self, settings: NodeSettings) -> None:
        self._settings = settings
        self._client = NodeClient(settings.server_url, settings.node_token.get_secret_value())
        self._folders = (
            threading.Lock()
        )  # an attempt's folder without a supervisor is never seen by the report
        self._engines = Engines(settings.data_dir, LocalEngineLauncher(settings))
        self._reporting = threading.Lock()  # orders are followed in the sequence in which they were given
        self._cards: tuple[GpuInfo, ...] = ()
        self._looked = float("-inf")

    def start(self, attempt_id: str) -> None:
        """Claim the attempt and spawn its supervisor. When the claim is refused there is nothing to do."""
        try:
            claim = self._client.claim(attempt_id)
        except ApiError as error:
            log.info("attempt %s is not ours to start: %s", attempt_id, error)
            return
        except ServerUnreachable as error:
            log.warning("attempt %s not claimed, the server will ask again: %s", attempt_id, error)
            return
        with self._folders:
            attempt = AttemptDir.create(self._settings.attempt_dir(attempt_id), claim)
            with (attempt.path / "supervisor.log").open("ab") as out:
                process = subprocess.Popen(
                    [sys.executable, "-m", "trainer.supervisor", "--attempt-dir", str(attempt.path)],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            attempt.write_supervisor(ProcessId.of(process.pid))
        log.info("attempt %s started, supervisor %d", attempt_id, process.pid)
        if claim.engine is not None:
            self.report()  # the answer tells the engine about its new job, and who has left

    def validate(self, job_id: str) -> None:
        """Check what only a node can check, and tell the server."""
        try:
            result = check(self._client.validation(job_id))
            if result is not None:
                self._client.post_validation(job_id, result)
        except ApiError as error:
            log.info("job %s needs no validation: %s", job_id, error)
        except ServerUnreachable as error:
            log.warning("job %s not validated, the server will ask again: %s", job_id, error)

    def replay(self, replay_id: str) -> None:
        """Compute a recorded step again, and tell the server."""
        try:
            outcome = replayed(self._client.claim_replay(replay_id, self._settings.node_id))
            if outcome is not None:
                self._client.post_replay(replay_id, outcome)
        except ApiError as error:
            log.info("replay %s is not ours: %s", replay_id, error)
        except ServerUnreachable as error:
            log.warning("replay %s not done, the server will ask again: %s", replay_id, error)

    def report_for_ever(self) -> None:
        """Tell the server what the node has and runs; go on through any loss of the server."""
        while True:
            try:
                self.report()
            except Exception:  # the thread goes on: a node that stops reporting is lost
                log.exception("not reported")
            time.sleep(REPORT_S)

    def report(self) -> None:
        """Report once, and follow the orders that come back."""
        with self._reporting:
            if time.monotonic() - self._looked > LOOK_AT_GPUS_S:
                self._cards, self._looked = gpus(), time.monotonic()
            with self._folders:
                now = report(self._settings, self._cards, self._engines.reports())
            try:
                orders = self._client.put_node(self._settings.node_id, now)
            except (ApiError, ServerUnreachable) as error:
                log.warning("not reported: %s", error)
                return
            self._engines.follow(orders)


def check(task: ValidationTask) -> ValidationResult | None:
    """What `python -m trainer.validate` finds, or that it found nothing in time; None: it was stopped."""
    return _answer(
        "trainer.validate", task, ValidationResult, VALIDATE_S, _invalid, "validation", "node's checks"
    )


def replayed(task: ReplayTask) -> ReplayOutcome | None:
    """What `python -m trainer.replay` makes of it, or that it made nothing in time; None: it was stopped."""
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

    None: it was stopped, as the worker may be, and says nothing of the task; the server asks again.
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


def celery_app(settings: NodeSettings, node: Node) -> Celery:
    """Celery only wakes, the database is the truth: no results, no late acknowledgement, no retry."""
    app = Celery("powermean.node", broker=settings.redis_url)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_acks_late=False,
        task_ignore_result=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "visibility_timeout": 600,
            "health_check_interval": 10,
        },
    )
    app.task(name=START_TASK)(node.start)
    later = LongTasks(LONG_TASKS)

    def validate(job_id: str) -> None:
        later.put(job_id, node.validate)

    def replay(replay_id: str) -> None:
        later.put(replay_id, node.replay)

    app.task(name=VALIDATE_TASK)(validate)
    app.task(name=REPLAY_TASK)(replay)
    return app


def arguments(settings: NodeSettings) -> list[str]:
    """Threads, not forks: the tasks only wait for the server and start programs."""
    return [
        "worker",
        "--pool=threads",
        f"--concurrency={THREADS}",
        f"--queues={node_queue(settings.node_id)}",
        f"--hostname={settings.node_id}@%h",
        "--without-gossip",
        "--without-mingle",
        "--without-heartbeat",
        "--loglevel=INFO",
    ]


def hold(data_dir: Path) -> int:
    """Lock the node's folder for this process's life; exits when another worker has it."""
    data_dir.mkdir(parents=True, exist_ok=True)
    handle = os.open(data_dir / "worker.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"another worker runs on {data_dir}: give this one its own POWERMEAN_DATA_DIR")
    return handle


def main(argv: list[str] | None = None) -> Any:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # With setproctitle, which vLLM brings, Celery names the process; that must not overwrite its environment,
    # by which processes of ours are found.
    os.environ["SPT_NOENV"] = "1"
    try:
        settings = NodeSettings.read()
    except NodeSettingsError as error:
        sys.exit(f"worker: {error}")
    if settings.attempt_public_key is None:
        sys.exit(
            "worker: POWERMEAN_ATTEMPT_PUBLIC_KEY is not set: give it the file attempt_token.pub, which the "
            "server made in POWERMEAN_SECRETS_DIR; without it no rollout engine starts"
        )
    hold(settings.data_dir)
    prune(settings.data_dir)
    node = Node(settings)
    threading.Thread(target=node.report_for_ever, name="report", daemon=True).start()
    return celery_app(settings, node).worker_main(argv or arguments(settings))


if __name__ == "__main__":
    main()
