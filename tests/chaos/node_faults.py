"""Faults of nodes, of the network between them and the service, and of disks."""

import os
import signal
from contextlib import suppress

from powermean.processes import ProcessId
from tests.chaos.field import Field
from tests.chaos.hits import (
    ABSENCES_S,
    ANSWER_S,
    CLAIM_S,
    RESTART_S,
    Fault,
    Hit,
    everything,
    freeze,
    some_node,
)
from tests.support.cluster import Node
from tests.support.proxy import Mode, Proxy
from tests.support.small_disk import fill


def a_node(field: Field) -> Node | None:
    node = some_node(field)
    return node if node.worker.alive else None


def kill_worker(field: Field) -> Hit | None:
    node = a_node(field)
    if node is None:
        return None
    seconds = field.chance.choice(RESTART_S)
    field.take_away(node.worker, seconds)
    return Hit(f"{node.id}, started again after {seconds:g} s", frozenset(field.on(node.id)))


def freeze_worker(field: Field) -> Hit | None:
    node = a_node(field)
    if node is None:
        return None
    seconds = freeze(field, ProcessId.of(node.worker.pid))
    return Hit(f"{node.id} for {seconds:g} s", frozenset(field.on(node.id)))


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


def hold_messages(field: Field) -> Hit | None:
    """A node hears from Redis only after its time to claim is over."""
    node = some_node(field)
    return disturb(field, node, node.to_redis, "swallow", field.chance.choice((2.0, CLAIM_S + 3)))


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


def cut_redis(field: Field) -> Hit | None:
    node = some_node(field)
    return disturb(field, node, node.to_redis, "cut", field.chance.choice(ABSENCES_S))


def fill_disk(field: Field, name: str, jobs: frozenset[str]) -> Hit | None:
    folder = field.cluster.folder / name
    if not os.path.ismount(folder) or (folder / "fill").exists():
        return None
    full, seconds = fill(folder), field.chance.choice((1.0, 4.0, 8.0))
    field.later(seconds, lambda: full.unlink(missing_ok=True))
    return Hit(f"{name} for {seconds:g} s", jobs)


def fill_node(field: Field) -> Hit | None:
    node = some_node(field)
    return fill_disk(field, node.id, frozenset(field.on(node.id)))


FAULTS: dict[str, Fault] = {
    "worker killed": kill_worker,
    "worker frozen": freeze_worker,
    "node lost its power": kill_node,
    "node drained": drain,
    "network cut": lambda field: to_servers(field, "cut"),
    "network swallows": lambda field: to_servers(field, "swallow"),
    "network slow": lambda field: to_servers(field, "delay"),
    "messages held back": hold_messages,
    "Redis cut off": cut_redis,
    "node's disk full": fill_node,
    "store's disk full": lambda field: fill_disk(field, "artefacts", everything(field)),
}
