"""What a fault returns, how long it lasts, and what several faults do."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

from powermean.processes import ProcessId
from tests.chaos.field import Field
from tests.support.cluster import Node

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


def everything(field: Field) -> frozenset[str]:
    return frozenset(job.id for job in field.unfinished)


def some_node(field: Field) -> Node:
    """Preferably that of the job aimed at."""
    drawn = field.chance.choice(field.cluster.nodes)
    return field.node_of_aim() or drawn


def phase(field: Field, job_id: str) -> str:
    job = field.jobs.get(job_id)
    doing = field.doing().get(job_id) or (job.phase or job.state if job else "")
    return f"while {doing}" if doing else ""


def freeze(field: Field, process: ProcessId) -> float:
    """SIGSTOP, and SIGCONT after a while; how long."""
    absence = field.chance.choice(ABSENCES_S)
    os.kill(process.pid, signal.SIGSTOP)

    def thaw() -> None:
        if process.alive:
            os.kill(process.pid, signal.SIGCONT)

    field.later(absence, thaw)
    return absence
