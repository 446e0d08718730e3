"""Faults of the service: its servers, Redis, and the database with its clock."""

import psycopg

from powermean.processes import ProcessId
from tests.chaos.field import Field
from tests.chaos.hits import LEASE_S, RESTART_S, Fault, Hit, everything, freeze
from tests.support.cluster import Server


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


def kill_all_servers(field: Field) -> Hit | None:
    living = [server for server in field.cluster.servers if server.program.alive]
    seconds = field.chance.choice(RESTART_S)
    for server in living:
        field.take_away(server.program, seconds)
    return Hit(f"{len(living)}, started again after {seconds:g} s", everything(field)) if living else None


def kill_redis(field: Field) -> Hit | None:
    redis = field.cluster.redis
    if not redis.alive:
        return None
    seconds = field.chance.choice(RESTART_S)
    field.take_away(redis, seconds)
    return Hit(f"back after {seconds:g} s", everything(field))


def freeze_redis(field: Field) -> Hit | None:
    redis = field.cluster.redis
    if not redis.alive:
        return None
    return Hit(f"for {freeze(field, ProcessId.of(redis.pid)):g} s", everything(field))


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


FAULTS: dict[str, Fault] = {
    "server killed": lambda field: kill_server(field, leader=False),
    "leader killed": lambda field: kill_server(field, leader=True),
    "server frozen": lambda field: freeze_server(field, leader=False),
    "leader frozen": lambda field: freeze_server(field, leader=True),
    "all servers killed": kill_all_servers,
    "Redis killed, back empty": kill_redis,
    "Redis frozen": freeze_redis,
    "Postgres restarted at once": crash_postgres,
    "clock forward": lambda field: jump(field, field.chance.choice((LEASE_S / 2, 60.0, 3600.0))),
    "clock back": lambda field: jump(field, -field.chance.choice((LEASE_S / 2, 60.0, 3600.0))),
}
