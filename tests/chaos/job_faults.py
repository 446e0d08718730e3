"""Faults of jobs: their programs die or freeze, their messages come twice or late, people interfere."""

import os
import signal
from contextlib import suppress
from functools import partial

from powermean.contracts.names import START_TASK, VALIDATE_TASK, node_queue
from server.queue import BrokerDownError, CelerySender, celery_app
from server.settings import Settings
from tests.chaos.field import Field
from tests.chaos.hits import Fault, Hit, everything, freeze, phase

PROGRAMS = {
    "supervisor": "worker.attempt.supervisor",
    "trainer": "trainer.run",
    "rollout service": "rollout",
    "model preparation": "trainer.models",
    "spec check": "trainer.preflight",
}
FREEZABLE = ("supervisor", "trainer", "rollout service")


def kill_program(field: Field, module: str) -> Hit | None:
    found = field.pick(module)
    if found is None:
        return None
    process, job_id = found
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    return Hit(phase(field, job_id), frozenset([job_id]) if job_id else everything(field))


def freeze_program(field: Field, module: str) -> Hit | None:
    found = field.pick(module)
    if found is None:
        return None
    process, job_id = found
    seconds = freeze(field, process)
    return Hit(
        f"for {seconds:g} s {phase(field, job_id)}", frozenset([job_id]) if job_id else everything(field)
    )


def send(field: Field, task: str, node_id: str, subject: str) -> bool:
    settings = Settings(redis_url=field.cluster.redis_url())
    try:
        CelerySender(celery_app(settings)).send(task, node_queue(node_id), subject, 60.0)
    except BrokerDownError:
        return False
    return True


def double_start(field: Field) -> Hit | None:
    """The current attempt's, which somebody has, or is about to have."""
    started = [job for job in field.unfinished if job.attempts]
    if not started:
        return None
    attempt = field.chance.choice(started).attempts[-1]
    node_id = attempt.allocations[0].node_id
    sent = [send(field, START_TASK, node_id, attempt.id) for _ in range(3)]
    job_id = attempt.id.rpartition(".")[0]
    return Hit(f"attempt {attempt.number} {phase(field, job_id)}", frozenset([job_id])) if any(sent) else None


def late_start(field: Field) -> Hit | None:
    """That of an attempt that is over, to the node that had it."""
    old = [(job, attempt) for job in field.jobs.values() for attempt in job.attempts if attempt.ended_at]
    if not old:
        return None
    job, attempt = field.chance.choice(old)
    if not send(field, START_TASK, attempt.allocations[0].node_id, attempt.id):
        return None
    return Hit(f"attempt {attempt.number} of {len(job.attempts)}", frozenset([job.id]))


def double_check(field: Field) -> Hit | None:
    if not field.jobs:
        return None
    job = field.chance.choice(list(field.jobs.values()))
    node = field.chance.choice(field.cluster.nodes)
    return Hit(str(job.state), frozenset([job.id])) if send(field, VALIDATE_TASK, node.id, job.id) else None


def pause(field: Field) -> Hit | None:
    if not field.unfinished:
        return None
    job = field.chance.choice([job for job in field.unfinished if job.id == field.aim] or field.unfinished)
    field.ask(f"pause {job.id}", lambda client: client.pause_job(job.id))
    seconds = field.chance.choice((0.2, 2.0, 6.0))
    field.later(seconds, lambda: field.ask(f"resume {job.id}", lambda client: client.resume_job(job.id)))
    return Hit(f"{phase(field, job.id)}, for {seconds:g} s", frozenset([job.id]))


def preempt(field: Field) -> Hit | None:
    """A waiting job's class goes up, so that it takes a running one's place."""
    waiting = [job for job in field.unfinished if job.state == "queued" and job.priority != "high"]
    running = [job for job in field.unfinished if job.state == "running" and job.priority != "high"]
    if not waiting or not running:
        return None
    job = field.chance.choice(waiting)
    field.ask(f"priority of {job.id}", lambda client: client.set_priority(job.id, "high"))
    return Hit("by a job whose priority became high", frozenset(one.id for one in running))


FAULTS: dict[str, Fault] = {
    **{f"{name} killed": partial(kill_program, module=module) for name, module in PROGRAMS.items()},
    **{f"{name} frozen": partial(freeze_program, module=PROGRAMS[name]) for name in FREEZABLE},
    "start message doubled": double_start,
    "start message late": late_start,
    "check message doubled": double_check,
    "paused and resumed": pause,
    "preempted": preempt,
}
