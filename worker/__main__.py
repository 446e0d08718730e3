"""A node's agent: `python -m worker`.

It consumes the node's own Celery queue. Checks and replays may take minutes, so they run outside Celery's
threads, a few at once.
"""

import fcntl
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any

from powermean.importing import uncollected

with uncollected():
    from celery import Celery
    from celery.signals import worker_shutting_down

    from powermean.contracts.names import LONG_TASKS, REPLAY_TASK, START_TASK, VALIDATE_TASK, node_queue
    from worker.attempt_dir import prune, write_whole
    from worker.long_tasks import LongTasks
    from worker.node import Node, NodeNameTakenError
    from worker.settings import NodeSettings, NodeSettingsError


THREADS = 4


def celery_app(settings: NodeSettings, node: Node) -> Celery:
    """Celery only wakes, the database is the truth: no results, no late acknowledgement, no retries."""
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
    """Threads instead of forks, because tasks only wait for the server and start programs."""
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
    """Lock the node's folder while this process lives; exits if another worker holds the lock."""
    data_dir.mkdir(parents=True, exist_ok=True)
    handle = os.open(data_dir / "worker.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"another worker runs on {data_dir}: give this one its own POWERMEAN_DATA_DIR")
    return handle


def with_key_file(settings: NodeSettings) -> NodeSettings:
    """A key that came as text gets a file, which all processes of the node find by the setting."""
    if settings.attempt_public_key is not None or settings.attempt_public_key_text is None:
        return settings
    file = settings.data_dir / "attempt_token.pub"
    write_whole(file, settings.attempt_public_key_text)
    os.environ["POWERMEAN_ATTEMPT_PUBLIC_KEY"] = str(file)
    return NodeSettings.read()


def main(argv: list[str] | None = None) -> Any:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # With setproctitle, which vLLM installs, Celery sets the process title; that must not overwrite the
    # environment, by which our processes are found.
    os.environ["SPT_NOENV"] = "1"
    try:
        settings = NodeSettings.read()
    except NodeSettingsError as error:
        sys.exit(f"worker: {error}")
    if settings.attempt_public_key is None and settings.attempt_public_key_text is None:
        sys.exit(
            "worker: POWERMEAN_ATTEMPT_PUBLIC_KEY is not set: set it to the file attempt_token.pub that the "
            "server creates in POWERMEAN_SECRETS_DIR; rollout engines need it"
        )
    try:
        hold(settings.data_dir)
    except OSError as error:
        sys.exit(
            f"worker: {error.filename}: {error.strerror}: "
            "set POWERMEAN_DATA_DIR to a folder that this user may write to"
        )
    settings = with_key_file(settings)
    prune(settings.data_dir)
    node = Node(settings)
    try:
        node.report()  # before the first task: they are for the worker that has the name
    except NodeNameTakenError as error:
        sys.exit(f"worker: {error}")
    except OSError as error:
        logging.getLogger("powermean.worker").warning("not reported: %s", error)  # it tries again
    threading.Thread(target=node.report_for_ever, name="report", daemon=True).start()
    if settings.pilot is not None:
        threading.Thread(target=node.end_attempts, name="leave", daemon=True).start()
        worker_shutting_down.connect(lambda **_: node.leave(), weak=False)
    try:
        return celery_app(settings, node).worker_main(argv or arguments(settings))
    finally:
        if settings.pilot is not None:  # the allocation ends with this process
            node.leave()
            node.await_attempts()
        if node.name_taken:
            sys.exit(f"worker: {node.name_taken}")


if __name__ == "__main__":
    main()
