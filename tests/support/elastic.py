"""A server with one pool of CPU nodes, whose engine does as the test says."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import select, update

from server.db.models import Job, Leader, Node, Pilot, PoolStatus
from server.db.session import database_now
from server.pools.pools_file import PoolsFile
from server.pools.turn import Pools, PoolTurn
from tests.support.fake_pool_engine import FakeEngine
from tests.support.service_driver import AttemptDriver, ServiceDriver

ON_POOL = {"resources": {"node_labels": {"pool": "cpu"}}}


@dataclass
class Elastic:
    """A server with one pool of CPU nodes."""

    service: ServiceDriver
    engine: FakeEngine
    pools: Pools
    turns: PoolTurn

    def turn(self) -> None:
        self.service.scheduler.turn()
        self.turns.turn()
        self.service.scheduler.turn()

    def restarted(self) -> None:
        """The server forgets all that is not in the database."""
        self.turns = PoolTurn(self.pools, self.pools.pools[0], self.engine)

    @property
    def pilots(self) -> list[Pilot]:
        with self.service.database.read() as session:
            return list(session.scalars(select(Pilot).order_by(Pilot.created_at)))

    @property
    def error(self) -> str | None:
        with self.service.database.read() as session:
            return session.get_one(PoolStatus, "cpu").error

    def queued(self, **changes: Any) -> str:
        return self.service.queued(**(ON_POOL | changes))

    def report(self, place: int = 0, **changes: Any) -> Any:
        """The pilot's worker reports, with its own token."""
        order = self.engine.orders[place]
        body = {
            "hostname": "c1",
            "instance": order.node_id,
            "cpu_slots": 1,
            "engines": ["transformers"],
            "labels": {"pool": "cpu"},
            "version": "0",
        } | changes
        client = self.service.client(order.secrets["POWERMEAN_NODE_TOKEN"])
        return client.put(f"/v1/nodes/{order.node_id}", json=body)

    def running(self) -> AttemptDriver:
        """A job that runs on a pilot."""
        job_id = self.queued()
        self.turn()
        self.engine.run("1")
        assert self.report().status_code == 200
        self.turn()
        return self.claim(f"{job_id}.1")

    def claim(self, attempt_id: str) -> AttemptDriver:
        return self.service.claim(attempt_id)

    def later(self, **columns: float) -> None:
        """As if so many seconds had passed since a time in the pilots' rows."""
        with self.service.database.write() as session:
            now = database_now(session)
            past = {name: now - timedelta(seconds=seconds) for name, seconds in columns.items()}
            session.execute(update(Pilot).values(past))

    def silent(self, seconds: float) -> None:
        """As if no node had reported for so long, to a server that was there."""
        with self.service.database.write() as session:
            past = database_now(session) - timedelta(seconds=seconds)
            session.execute(update(Node).values(seen_at=past))
            session.execute(update(Leader).values(served_since=past))

    def job(self, job_id: str) -> Any:
        return self.service.job(job_id)

    def restarts(self, job_id: str) -> int:
        with self.service.database.read() as session:
            return session.get_one(Job, job_id).restarts


def declared(**changes: Any) -> PoolsFile:
    pool = {"name": "cpu", "kind": "slurm", "max": 2, "idle_s": 60, "drain_s": 100, "shape": {}}
    return PoolsFile.model_validate({"pools": [pool | {"data_dir": "/tmp/pilots"} | changes]})


def elastic_of(service: ServiceDriver, **changes: Any) -> Elastic:
    engine = FakeEngine()
    given = {"POWERMEAN_SERVER_URL": "http://127.0.0.1:8700"}
    shared = Pools(
        service.database, service.settings, "first", declared(**changes).pools, given, "redis://:secret@r/0"
    )
    found = Elastic(service, engine, shared, PoolTurn(shared, shared.pools[0], engine))
    found.turn()
    return found
