"""A service as it is run on several machines: Postgres, Redis, servers, and nodes behind proxies.

Every part is a process that the test can signal, stop and start again:

    with Cluster(folder, model_root) as cluster:
        job = cluster.client.create_job(spec)
        cluster.servers[0].program.kill()
        cluster.servers[0].start()
"""

import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
import redis

from powermean import ApiError, Client, ServerUnreachableError
from powermean.cli import redis_server
from powermean.cli.embedded import free_port
from powermean.processes import end_all, marked
from server.cluster.leadership import SCHEDULER
from tests.support.embedded_service import QUICK, command_line, runs, until
from tests.support.postgres import Postgres
from tests.support.programs import Program
from tests.support.proxy import Proxy

MARK = "POWERMEAN_TEST_CLUSTER"  # in the environment of every process of a cluster
READY_S = 90.0
STOP_S = 30.0


@dataclass
class Server:
    """One of the servers."""

    program: Program
    port: int
    key: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client(self) -> Client:
        """A client of this server alone."""
        return Client(self.url, self.key)

    @property
    def ready(self) -> bool:
        try:
            return self.client.ready().status == "ready"
        except (ApiError, ServerUnreachableError):
            return False

    def start(self, wait: bool = True) -> None:
        self.program.start()
        if wait:
            until(lambda: self.ready, READY_S, f"{self.program.name} is ready; see {self.program.log}")


@dataclass
class Node:
    """A node: its worker, its folder, and its ways to the servers and to Redis."""

    id: str
    worker: Program
    folder: Path
    to_servers: Proxy
    to_redis: Proxy


class Cluster:
    """All of it. `balancer` is what people and nodes' proxies stand in front of: any living server."""

    def __init__(
        self,
        folder: Path,
        model_root: Path,
        *,
        servers: int = 2,
        nodes: int = 2,
        slots: int = 1,
        settings: Mapping[str, str] | None = None,
        node_settings: Mapping[str, str] | None = None,
    ) -> None:
        """`settings` are environment variables of servers and workers, over those of quick tests."""
        self.folder = folder
        self.id = secrets.token_hex(8)
        self.admin_key = "pm_" + secrets.token_urlsafe(32)
        self._node_token = "pmn_" + secrets.token_urlsafe(32)
        for name in ("logs", "redis", "artefacts", "secrets"):
            (folder / name).mkdir(parents=True)
        self._everywhere = dict(os.environ) | QUICK | dict(settings or {}) | {MARK: self.id}
        self._everywhere.pop("PYTHONDONTWRITEBYTECODE", None)  # dozens of processes compile the same files
        self._everywhere |= {
            "PYTHONUNBUFFERED": "1",
            "POWERMEAN_LIFELINE_PID": str(os.getpid()),  # nothing outlives the test, however it ends
            "POWERMEAN_ARTEFACTS_URL": f"file://{folder / 'artefacts'}",
        }
        self._node_settings = dict(node_settings or {})
        self.postgres = Postgres(folder / "logs", self._everywhere)
        self.redis, self._redis_port = self._redis()
        self.servers = [self._server(number) for number in range(1, servers + 1)]
        ports = [server.port for server in self.servers]
        self.balancer = Proxy(ports)
        self.nodes = [
            self._node(f"node-{number}", ports, model_root, slots) for number in range(1, nodes + 1)
        ]

    def _redis(self) -> tuple[Program, int]:
        port, config = free_port(), self.folder / "secrets" / "redis.conf"
        self._redis_password = secrets.token_hex(16)
        redis_server.write_config(config, port, self._redis_password, self.folder / "redis")
        command = [str(redis_server.valkey_program()), "-"]
        log = self.folder / "logs" / "redis.log"
        return Program("redis", command, self._everywhere, log, given=config), port

    def redis_url(self, port: int | None = None) -> str:
        return f"redis://:{self._redis_password}@127.0.0.1:{port or self._redis_port}/0"

    def _server(self, number: int) -> Server:
        port = free_port()
        environment = self._everywhere | {
            "POWERMEAN_REDIS_URL": self.redis_url(),
            "POWERMEAN_DATABASE_URL": self.postgres.url,
            "POWERMEAN_SECRETS_DIR": str(self.folder / "secrets"),
            "POWERMEAN_PORT": str(port),
            "POWERMEAN_MIGRATE": "true",
            "POWERMEAN_BOOTSTRAP_ADMIN_KEY": self.admin_key,
            "POWERMEAN_BOOTSTRAP_NODE_TOKEN": self._node_token,
        }
        name = f"server-{number}"
        program = Program(
            name, [sys.executable, "-m", "server"], environment, self.folder / "logs" / f"{name}.log"
        )
        return Server(program, port, self.admin_key)

    def _node(self, name: str, ports: list[int], model_root: Path, slots: int) -> Node:
        to_servers, to_redis = Proxy(ports), Proxy([self._redis_port])
        folder = self.folder / name
        environment = self._everywhere | {
            "POWERMEAN_SERVER_URL": f"http://127.0.0.1:{to_servers.port}",
            "POWERMEAN_REDIS_URL": self.redis_url(to_redis.port),
            "POWERMEAN_NODE_ID": name,
            "POWERMEAN_NODE_TOKEN": self._node_token,
            "POWERMEAN_DATA_DIR": str(folder),
            "POWERMEAN_ATTEMPT_PUBLIC_KEY": str(self.folder / "secrets" / "attempt_token.pub"),
            "POWERMEAN_MODEL_ROOTS": str(model_root),
            "POWERMEAN_CPU_SLOTS": str(slots),
            **self._node_settings,
        }
        log = self.folder / "logs" / f"{name}.log"
        worker = Program(name, [sys.executable, "-m", "worker"], environment, log)
        return Node(name, worker, folder, to_servers, to_redis)

    @property
    def url(self) -> str:
        """Any living server."""
        return f"http://127.0.0.1:{self.balancer.port}"

    @property
    def client(self) -> Client:
        return Client(self.url, self.admin_key)

    def start(self) -> None:
        """Start everything and wait until every server is ready and every node has reported."""
        self.postgres.start()
        self.postgres.install_clock()
        self.redis.start()
        until(self._redis_answers, READY_S, "Redis answers")
        self.servers[0].start()  # the first one migrates
        for server in self.servers[1:]:
            server.start(wait=False)
        for node in self.nodes:
            node.worker.start()
        for server in self.servers:
            until(lambda server=server: server.ready, READY_S, f"{server.program.name} is ready")
        until(self._all_alive, READY_S, f"every node has reported; see {self.folder / 'logs'}")

    def _redis_answers(self) -> bool:
        try:
            redis_server.check(self._redis_port, self._redis_password)
        except (redis.ConnectionError, redis.TimeoutError):
            return False
        return True

    def _all_alive(self) -> bool:
        alive = {node.id for node in self.client.nodes().items if node.alive}
        return alive >= {node.id for node in self.nodes}

    def stop(self) -> set[int]:
        """Stop everything in order; what had to be killed because it was left."""
        for node in self.nodes:
            node.worker.stop(STOP_S)
        end_all(lambda: self.pids("worker.attempt.supervisor"), STOP_S)
        left = set().union(*(self.pids(role) for role in ("trainer.run", "trainer.models", "rollout")))
        for server in self.servers:
            server.program.stop(STOP_S)
        self.redis.stop(STOP_S)
        self.postgres.stop()
        left |= self.pids()
        end_all(self.pids, grace_s=0)
        for proxy in (self.balancer, *(p for node in self.nodes for p in (node.to_servers, node.to_redis))):
            proxy.close()
        return left

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def pids(self, module: str | None = None, node: str | None = None) -> set[int]:
        """Living processes, of all or of those that run this module, e.g. trainer.run; of all or one node."""
        found = marked(MARK, self.id)
        if node is not None:
            found &= marked("POWERMEAN_NODE_ID", node)
        return {pid for pid in found if module is None or runs(module, command_line(pid))}

    def leader(self) -> Server | None:
        """The server that has, or had last, the scheduler's lease; None if nobody can say."""
        try:
            with self.postgres.connect() as connection:
                row = connection.execute(
                    "SELECT holder FROM leaders WHERE name = %s", (SCHEDULER,)
                ).fetchone()
        except psycopg.OperationalError:
            return None
        holder = str(row[0]) if row else ""
        by_pid = {str(server.program.pid): server for server in self.servers if server.program.process}
        return by_pid.get(holder.rpartition("-")[0].rpartition("-")[2])
