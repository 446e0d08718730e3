"""Replays as the API returns them."""

from powermean.contracts.algorithms import AlgorithmSpec
from powermean.contracts.replays import Replay as ReplayView
from powermean.contracts.replays import ReplayState
from server.db.models import Replay

NO_NODE = (
    "no node is alive and open to work: start one with `powermean up` or `python -m worker`, or open one with"
    " `powermean node uncordon`"
)


def replay_view(replay: Replay, recorded: AlgorithmSpec, open_node: bool) -> ReplayView:
    """A replay of a job that was trained with `recorded`; `open_node`: a living node takes work."""
    return ReplayView.model_validate(
        {
            "id": replay.id,
            "job_id": replay.job_id,
            "step": replay.step,
            "attempt": replay.attempt,
            "algorithm": replay.algorithm,
            "recorded": recorded,
            "state": replay.state,
            "phase": _phase(replay, open_node),
            "summary": replay.summary,
            "error": replay.error,
            "node": replay.node,
            "created_at": replay.created_at,
            "finished_at": replay.finished_at,
        }
    )


def _phase(replay: Replay, open_node: bool) -> str | None:
    if replay.state == ReplayState.RUNNING:
        return f"running on {replay.node}"
    if replay.state != ReplayState.WAITING:
        return None
    return "waiting for a node to take it" if open_node else NO_NODE
