"""Replays over REST: what a trainer recorded, and what a node and a person say of a replay."""

import gzip
from datetime import timedelta
from typing import Any

from sqlalchemy import update

from powermean.contracts.replays import ReplayResult
from powermean.contracts.token_records import StepFacts, TrajectoryTokens, UpdateFacts, UpdateTokens
from powermean.token_segments import write_segment
from server.db.models import Node, Replay
from server.db.session import database_now
from tests.support.reports import trajectory
from tests.support.service_driver import AttemptDriver, ServiceDriver, error_of
from tests.support.stored_things import store_of

FACTS = StepFacts(
    step=3,
    progress=0.1,
    mean_reward=0.5,
    reward_std=0.5,
    max_new_tokens=4,
    updates=(UpdateFacts(update=0, epoch=0, minibatch=0, trajectories=2, tokens=6),),
)


def tokens_of(index: int, weight: float = 0.5) -> TrajectoryTokens:
    seen = UpdateTokens(update=0, log_ratio=(0.25, -0.5), weight=(weight, 1 - weight), clipped=(False, True))
    return TrajectoryTokens(
        index=index, token_ids=(1, 2), pieces=("<b>", "x"), sampler_log_probs=(-1.0, -1.0), updates=(seen,)
    )


def record(service: ServiceDriver, attempt: AttemptDriver, step: int, *, tokens: bool = True) -> None:
    """The trajectories of a step, as a trainer reports them."""
    ref = None
    if tokens:
        segment = write_segment(FACTS, [tokens_of(0), tokens_of(1)])
        owner = f"jobs/{attempt.claim.job_id}/tokens/{attempt.claim.number}"
        ref = store_of(service).put_bytes(owner, f"{step}.jsonl.gz", segment).model_dump()
    rows = [trajectory(index, p=0.5) for index in range(3)]
    answer = attempt.post("trajectories", {"step": step, "rows": rows, "tokens": ref})
    assert answer.status_code == 204, answer.text


def claim(service: ServiceDriver, replay: dict[str, Any], node: str = "node-1") -> Any:
    """A node takes the replay."""
    return service.node.post(f"/v1/replays/{replay['id']}/claim", json={"node_id": node})


def outcome(service: ServiceDriver, replay: dict[str, Any]) -> dict[str, Any]:
    """What a node posts, its parts stored."""
    aggregates = {"p": 0.5, "loss": 0.25}
    one = {"update": 0, "trajectories": 3, "covered": 2, "recorded": aggregates, "replayed": aggregates}
    numbers = {"update": 0, "recorded": {"p": 0.5}, "replayed": {"p": 1.0}}
    result = ReplayResult.model_validate(
        {
            "summary": {
                "trajectories": 3,
                "covered": 2,
                "updates": [one],
                "largest_difference": {"p": 0.5},
                "undefined_in_one": 0,
                "reproduces": None,
            },
            "trajectories": [{"index": 0, "advantage": 1, "advantage_replayed": 1, "updates": [numbers]}],
        }
    )
    owner, store = f"jobs/{replay['job_id']}/replays/{replay['id']}", store_of(service)
    packed = gzip.compress(result.model_dump_json().encode())
    segment = write_segment(FACTS, [tokens_of(0, 0.75), tokens_of(1)])
    return {
        "summary": result.summary.model_dump(mode="json"),
        "result": store.put_bytes(owner, "result.json.gz", packed).model_dump(),
        "tokens": store.put_bytes(owner, "tokens.jsonl.gz", segment).model_dump(),
    }


def finish(service: ServiceDriver, replay: dict[str, Any], body: dict[str, Any]) -> Any:
    """A node posts what came of it."""
    return service.node.post(f"/v1/replays/{replay['id']}/outcome", json=body)


def shown(service: ServiceDriver, replay: dict[str, Any], rest: str = "", status: int = 200) -> Any:
    """What a person sees of it, at a path below its own."""
    answer = service.person.get(f"/v1/jobs/{replay['job_id']}/replays/{replay['id']}{rest}")
    assert answer.status_code == status, answer.text
    return answer.json() if answer.is_success else error_of(answer)


def let_time_pass(service: ServiceDriver) -> None:
    """As if every replay had reached its deadline."""
    with service.database.write() as session:
        session.execute(update(Replay).values(deadline_at=database_now(session) - timedelta(seconds=1)))


def silence_nodes(service: ServiceDriver) -> None:
    """As if no node had reported for an hour."""
    with service.database.write() as session:
        session.execute(update(Node).values(seen_at=database_now(session) - timedelta(hours=1)))
