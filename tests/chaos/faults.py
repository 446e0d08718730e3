"""The faults: each does one bad thing to the cluster and has it undone later.

A fault returns what it hit and the jobs that it touched, or None where there is nothing to hit at the moment.
"""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import psycopg

from powermean.contracts.names import START_TASK, VALIDATE_TASK, node_queue
from powermean.contracts.phases import (
    ACTIVITIES,
    AFTER_LAST_STEP,
    LOADING_MODEL,
    PREPARING_MODEL,
    WAITING_FOR_ENGINE,
)
from powermean.processes import ProcessId
from server.queue import BrokerDownError, CelerySender, celery_app
from server.settings import Settings
from tests.chaos.field import Field
from tests.support.cluster import Node, Server
from tests.support.proxy import Mode, Proxy
from tests.support.small_disk import fill

# Short, but longer than a supervisor needs on a busy machine from its start to its first heartbeat.
LEASE_S, CLAIM_S, NODE_S = 12.0, 15.0, 14.0
# How long something is away: shorter than a lease, longer, and longer than a node counts as alive.
ABSENCES_S = (0.5, 2.0, 5.0, LEASE_S + 1, NODE_S + 2)
RESTART_S = (0.3, 1.0, 3.0, LEASE_S + 2)  # until what was killed is started again


ANSWER_S = 30.0  # for which nodes and attempts wait for an answer


@dataclass(frozen=True)
class Hit:
    """What a fault did, and to which jobs."""

    what: str
    jobs: frozenset[str] = frozenset()


Fault = Callable[[Field], Hit | None]
FAULTS: dict[str, Fault] = {}
# The moments of an attempt that faults wait for: what it does takes seconds at the start, then moments.
MOMENTS = (PREPARING_MODEL, LOADING_MODEL, WAITING_FOR_ENGINE, *ACTIVITIES, *AFTER_LAST_STEP)


def fault(name: str) -> Callable[[Fault], Fault]:
    def add(one: Fault) -> Fault:
        FAULTS[name] = one
        return one

    return add


def everything(field: Field) -> frozenset[str]:
    return frozenset(job.id for job in field.unfinished)


def freeze(field: Field, process: ProcessId) -> float:
    """SIGSTOP, and SIGCONT after a while; how long."""
    absence = field.chance.choice(ABSENCES_S)
    os.kill(process.pid, signal.SIGSTOP)

    def thaw() -> None:
        if process.alive:
            os.kill(process.pid, signal.SIGCONT)

    field.later(absence, thaw)
    return absence


# ---- servers


def a_server(field: Field, leader: bool) -> Server | None:
    first = field.cluster.leader() if leader else field.chance.choice(field.cluster.servers)
    return first if first is not None and first.program.alive else None


def kill_server(field: Field, leader: bool) -> Hit | None:
    server = a_server(field, leader)
    if server is None:
        return None
    seconds = field.chance.choice(RESTART_S)
    field.take_away(server.program, seconds)
    return Hit(f"{server.program.name}, started again after {seconds:g} s", everything(field))


def freeze_server(field: Field, leader: bool) -> Hit | None:
    server = a_server(field, leader)
    if server is None:
        return None
    seconds = freeze(field, ProcessId.of(server.program.pid))
    return Hit(f"{server.program.name} for {seconds:g} s", everything(field))


FAULTS["server killed"] = lambda field: kill_server(field, leader=False)
FAULTS["leader killed"] = lambda field: kill_server(field, leader=True)
FAULTS["server frozen"] = lambda field: freeze_server(field, leader=False)
FAULTS["leader frozen"] = lambda field: freeze_server(field, leader=True)


@fault("all servers killed")
def kill_all_servers(field: Field) -> Hit | None:
    living = [server for server in field.cluster.servers if server.program.alive]
    seconds = field.chance.choice(RESTART_S)
    for server in living:
        field.take_away(server.program, seconds)
    return Hit(f"{len(living)}, started again after {seconds:g} s", everything(field)) if living else None


# ---- nodes


def a_node(field: Field) -> Node | None:
    node = some_node(field)
    return node if node.worker.alive else None


def some_node(field: Field) -> Node:
    """Preferably that of the job aimed at."""
    drawn = field.chance.choice(field.cluster.nodes)
    return field.node_of_aim() or drawn


@fault("worker killed")
def kill_worker(field: Field) -> Hit | None:
    node = a_node(field)
    if node is None:
        return None
    seconds = field.chance.choice(RESTART_S)
    field.take_away(node.worker, seconds)
    return Hit(f"{node.id}, started again after {seconds:g} s", frozenset(field.on(node.id)))


@fault("worker frozen")
def freeze_worker(field: Field) -> Hit | None:
    node = a_node(field)
    if node is None:
        return None
    seconds = freeze(field, ProcessId.of(node.worker.pid))
    return Hit(f"{node.id} for {seconds:g} s", frozenset(field.on(node.id)))


@fault("node lost its power")
def kill_node(field: Field) -> Hit | None:
    """Everything on it at once."""
    node = a_node(field)
    if node is None:
        return None
    jobs, seconds = frozenset(field.on(node.id)), field.chance.choice(RESTART_S)
    field.take_away(node.worker, seconds)
    for pid in field.cluster.pids(node=node.id):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return Hit(f"{node.id}, back after {seconds:g} s", jobs)


@fault("node drained")
def drain(field: Field) -> Hit | None:
    """Never both at once, for jobs would only wait."""
    if field.closed_nodes:
        return None
    node, seconds = some_node(field), field.chance.choice((2.0, 6.0, 12.0))
    field.closed_nodes.add(node.id)
    jobs = frozenset(field.on(node.id))
    field.ask(f"drain {node.id}", lambda client: client.drain_node(node.id, "chaos"))

    def reopen() -> None:
        field.ask(f"uncordon {node.id}", lambda client: client.uncordon_node(node.id))
        field.closed_nodes.discard(node.id)

    field.later(seconds, reopen)
    return Hit(f"{node.id} for {seconds:g} s", jobs)


# ---- processes of an attempt

PROGRAMS = {
    "supervisor": "worker.attempt.supervisor",
    "trainer": "trainer.run",
    "rollout service": "rollout",
    "model preparation": "trainer.models",
    "spec check": "trainer.preflight",
}


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


def phase(field: Field, job_id: str) -> str:
    job = field.jobs.get(job_id)
    doing = field.doing().get(job_id) or (job.phase or job.state if job else "")
    return f"while {doing}" if doing else ""


def _add_programs() -> None:
    for name, module in PROGRAMS.items():
        FAULTS[f"{name} killed"] = lambda field, module=module: kill_program(field, module)
        if module not in ("trainer.models", "trainer.preflight"):
            FAULTS[f"{name} frozen"] = lambda field, module=module: freeze_program(field, module)


_add_programs()


# ---- Redis and messages


@fault("Redis killed, back empty")
def kill_redis(field: Field) -> Hit | None:
    redis = field.cluster.redis
    if not redis.alive:
        return None
    seconds = field.chance.choice(RESTART_S)
    field.take_away(redis, seconds)
    return Hit(f"back after {seconds:g} s", everything(field))


@fault("Redis frozen")
def freeze_redis(field: Field) -> Hit | None:
    redis = field.cluster.redis
    if not redis.alive:
        return None
    return Hit(f"for {freeze(field, ProcessId.of(redis.pid)):g} s", everything(field))


def send(field: Field, task: str, node_id: str, subject: str) -> bool:
    settings = Settings(redis_url=field.cluster.redis_url())
    try:
        CelerySender(celery_app(settings)).send(task, node_queue(node_id), subject, 60.0)
    except BrokerDownError:
        return False
    return True


@fault("start message doubled")
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


@fault("start message late")
def late_start(field: Field) -> Hit | None:
    """That of an attempt that is over, to the node that had it."""
    old = [(job, attempt) for job in field.jobs.values() for attempt in job.attempts if attempt.ended_at]
    if not old:
        return None
    job, attempt = field.chance.choice(old)
    if not send(field, START_TASK, attempt.allocations[0].node_id, attempt.id):
        return None
    return Hit(f"attempt {attempt.number} of {len(job.attempts)}", frozenset([job.id]))


@fault("check message doubled")
def double_check(field: Field) -> Hit | None:
    if not field.jobs:
        return None
    job = field.chance.choice(list(field.jobs.values()))
    node = field.chance.choice(field.cluster.nodes)
    return Hit(str(job.state), frozenset([job.id])) if send(field, VALIDATE_TASK, node.id, job.id) else None


@fault("messages held back")
def hold_messages(field: Field) -> Hit | None:
    """A node hears from Redis only after its time to claim is over."""
    node = some_node(field)
    return disturb(field, node, node.to_redis, "swallow", field.chance.choice((2.0, CLAIM_S + 3)))


# ---- database


@fault("Postgres restarted at once")
def crash_postgres(field: Field) -> Hit | None:
    postgres = field.cluster.postgres
    if not postgres.program.alive:
        return None
    postgres.crash()
    seconds = field.chance.choice((0.0, 1.0, LEASE_S + 2))
    field.bring_back(postgres.program, seconds)
    return Hit(f"back after {seconds:g} s", everything(field))


def jump(field: Field, seconds: float) -> Hit | None:
    """It is set right after a while, which is a jump the other way."""
    shift(field, seconds)
    lasts = field.chance.choice((1.0, 5.0))
    field.later(lasts, lambda: shift(field, 0))
    return Hit(f"by {abs(seconds):g} s for {lasts:g} s", everything(field))


def shift(field: Field, seconds: float) -> None:
    """Again and again if Postgres is away."""
    try:
        field.cluster.postgres.shift_clock(seconds)
    except psycopg.OperationalError:
        field.later(0.5, lambda: shift(field, seconds))


FAULTS["clock forward"] = lambda field: jump(field, field.chance.choice((LEASE_S / 2, 60.0, 3600.0)))
FAULTS["clock back"] = lambda field: jump(field, -field.chance.choice((LEASE_S / 2, 60.0, 3600.0)))


# ---- network


def disturb(field: Field, node: Node, proxy: Proxy, mode: Mode, seconds: float) -> Hit | None:
    if proxy.mode != "pass":
        return None
    proxy.mode = mode

    def mend() -> None:
        proxy.mode = "pass"

    field.later(seconds, mend)
    return Hit(f"{node.id} for {seconds:g} s", frozenset(field.on(node.id)))


def to_servers(field: Field, mode: Mode) -> Hit | None:
    node = some_node(field)
    seconds = field.chance.choice((*ABSENCES_S, ANSWER_S + 3))
    return disturb(field, node, node.to_servers, mode, seconds)


FAULTS["network cut"] = lambda field: to_servers(field, "cut")
FAULTS["network swallows"] = lambda field: to_servers(field, "swallow")
FAULTS["network slow"] = lambda field: to_servers(field, "delay")


@fault("Redis cut off")
def cut_redis(field: Field) -> Hit | None:
    node = some_node(field)
    return disturb(field, node, node.to_redis, "cut", field.chance.choice(ABSENCES_S))


# ---- disks


def fill_disk(field: Field, name: str, jobs: frozenset[str]) -> Hit | None:
    folder = field.cluster.folder / name
    if not os.path.ismount(folder) or (folder / "fill").exists():
        return None
    full, seconds = fill(folder), field.chance.choice((1.0, 4.0, 8.0))
    field.later(seconds, lambda: full.unlink(missing_ok=True))
    return Hit(f"{name} for {seconds:g} s", jobs)


@fault("node's disk full")
def fill_node(field: Field) -> Hit | None:
    node = some_node(field)
    return fill_disk(field, node.id, frozenset(field.on(node.id)))


FAULTS["store's disk full"] = lambda field: fill_disk(field, "artefacts", everything(field))


# ---- what people and the scheduler do


@fault("paused and resumed")
def pause(field: Field) -> Hit | None:
    if not field.unfinished:
        return None
    job = field.chance.choice([job for job in field.unfinished if job.id == field.aim] or field.unfinished)
    field.ask(f"pause {job.id}", lambda client: client.pause_job(job.id))
    seconds = field.chance.choice((0.2, 2.0, 6.0))
    field.later(seconds, lambda: field.ask(f"resume {job.id}", lambda client: client.resume_job(job.id)))
    return Hit(f"{phase(field, job.id)}, for {seconds:g} s", frozenset([job.id]))


@fault("preempted")
def preempt(field: Field) -> Hit | None:
    """A waiting job's class goes up, so that it takes a running one's place."""
    waiting = [job for job in field.unfinished if job.state == "queued" and job.priority != "high"]
    running = [job for job in field.unfinished if job.state == "running" and job.priority != "high"]
    if not waiting or not running:
        return None
    job = field.chance.choice(waiting)
    field.ask(f"priority of {job.id}", lambda client: client.set_priority(job.id, "high"))
    return Hit("by a job whose priority became high", frozenset(one.id for one in running))
