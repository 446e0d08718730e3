"""Jobs on several nodes, driven by a server's REST API."""

from datetime import timedelta
from typing import Any

from sqlalchemy import update

from server.db.models import AttemptMember
from server.db.session import database_now
from tests.support.service_driver import AttemptDriver, ServiceDriver

FAILED = {"error": {"code": "out_of_memory", "message": "no memory left"}}
LOST = {"error": {"code": "rank_lost", "message": "rank 1 on n2 is gone"}, "retryable": True}


def queued_gang(service: ServiceDriver, nodes: int = 2, **changes: Any) -> str:
    """A job on this many nodes, which are there."""
    for number in range(1, nodes + 1):
        service.report(f"n{number}")
    return service.queued(resources={"nodes": nodes}, **changes)


def started_gang(service: ServiceDriver, nodes: int = 2, **changes: Any) -> str:
    job_id = queued_gang(service, nodes, **changes)
    service.scheduler.turn()
    return f"{job_id}.1"


def gang(service: ServiceDriver, nodes: int = 2, **changes: Any) -> list[AttemptDriver]:
    """Its first attempt, claimed on every node."""
    attempt_id = started_gang(service, nodes, **changes)
    return [service.claim(attempt_id, f"n{number}") for number in range(1, nodes + 1)]


def claimed_long_ago(service: ServiceDriver, attempt_id: str) -> None:
    with service.database.write() as session:
        past = database_now(session) - timedelta(seconds=2 * service.settings.lease_s)
        mine = AttemptMember.attempt_id == attempt_id
        session.execute(update(AttemptMember).where(mine).values(claimed_at=past))


def held(service: ServiceDriver) -> set[str]:
    """The nodes on which something is held."""
    nodes = service.person.get("/v1/nodes").json()["items"]
    return {node["id"] for node in nodes if node["attempts"]}
