"""Reports of attempts, what is summarised of them, and a job whose attempts come one after the other."""

from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from server.db.models import Attempt, MetricBlock
from server.metrics.blocks import summarise
from tests.support.service_driver import AttemptDriver, ServiceDriver


def row(step: int, name: str = "reward", value: float | None = 0.5, update: int = -1) -> dict[str, Any]:
    """A metric row."""
    return {"step": step, "update": update, "name": name, "value": value}


def post_rows(attempt: AttemptDriver, *rows: dict[str, Any]) -> None:
    """Report rows, and be believed."""
    answer = attempt.post("metrics", {"rows": rows})
    assert answer.status_code == 204, answer.text


def next_attempt(service: ServiceDriver, attempt: AttemptDriver) -> AttemptDriver:
    """The attempt falls silent and its node says that its processes are gone; the next one claims."""
    service.let_lease_run_out(attempt.id)
    service.scheduler.turn()
    service.report()
    service.scheduler.turn()
    return service.claim(f"{attempt.claim.job_id}.{attempt.claim.number + 1}")


def trajectory(index: int, reward: float = 0.0, p: float | None = None, **more: Any) -> dict[str, Any]:
    """A trajectory's scalars."""
    updates = [] if p is None else [{"update": 0, "p": 1.0}, {"update": 1, "p": p}]
    return {
        "index": index,
        "group": index // 8,
        "problem": f"problem-{index}",
        "reward": reward,
        "advantage": -reward,
        "length": 3,
        "truncated": False,
        "updates": updates,
    } | more


def kept_blocks(session: Session) -> list[tuple[str, ...]]:
    """All blocks, in order; the last digits of a sum depend on the order of its rows."""
    found = session.execute(select(*MetricBlock.__table__.columns))
    return sorted(tuple(f"{one:.9g}" if isinstance(one, float) else str(one) for one in row) for row in found)


def blocks_made_anew(session: Session) -> list[tuple[str, ...]]:
    """The same, if all had been made from today's metrics."""
    session.execute(delete(MetricBlock))
    for attempt in session.scalars(select(Attempt)):
        end, attempt.summarised = attempt.summarised, 0
        summarise(session, attempt, end, end)
    return kept_blocks(session)
