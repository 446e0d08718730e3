"""Replays as the API returns them."""

from powermean.contracts.algorithms import AlgorithmSpec
from powermean.contracts.replays import Replay as ReplayView
from powermean.contracts.replays import ReplayState
from server.db.models import Replay


def replay_view(replay: Replay, recorded: AlgorithmSpec, any_node: bool) -> ReplayView:
    """A replay of a job that was trained with `recorded`; `any_node`: a node is alive."""
    return ReplayView.model_validate(
        {
            "id": replay.id,
            "job_id": replay.job_id,
            "step": replay.step,
            "attempt": replay.attempt,
            "algorithm": replay.algorithm,
            "recorded": recorded,
            "state": replay.state,
            "phase": _phase(replay, any_node),
            "summary": replay.summary,
            "error": replay.error,
            "node": replay.node,
            "created_at": replay.created_at,
            "finished_at": replay.finished_at,
        }
    )


def _phase(replay: Replay, any_node: bool) -> str | None:
    if replay.state == ReplayState.RUNNING:
        return f"running on {replay.node}"
    if replay.state != ReplayState.WAITING:
        return None
    if any_node:
        return "waiting for a node to take it"
    return "no node is alive: start one with `powermean up` or `python -m worker`"
