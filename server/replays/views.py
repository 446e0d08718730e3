"""Replays as the API returns them."""

from powermean.contracts.algorithms import AlgorithmSpec, Pmpo
from powermean.contracts.attempts import JobError
from powermean.contracts.base import Contract
from powermean.contracts.replays import Replay as ReplayView
from powermean.contracts.replays import ReplayState
from server.db.models import Job, Replay
from server.jobs.stored_spec import readable

NO_NODE = (
    "no node is alive and open to work: start one with `powermean up` or `python -m worker`, or open one with"
    " `powermean node uncordon`"
)


class _Objectives(Contract):
    algorithm: AlgorithmSpec = Pmpo()
    recorded: AlgorithmSpec = Pmpo()


def replay_view(replay: Replay, job: Job, open_node: bool) -> ReplayView:
    """A replay of the job; `open_node`: a living node takes work."""
    stored = {"algorithm": replay.algorithm}
    if "algorithm" in job.spec:
        stored["recorded"] = job.spec["algorithm"]
    read, refused = readable(stored, _Objectives)
    assert read is not None  # both have a default
    return ReplayView.model_validate(
        {
            "id": replay.id,
            "job_id": replay.job_id,
            "step": replay.step,
            "attempt": replay.attempt,
            "algorithm": read.algorithm,
            "recorded": read.recorded,
            "refused": [
                JobError(code="spec_refused", message=one.message, path=one.path, remedy=one.remedy)
                for one in refused
            ],
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
