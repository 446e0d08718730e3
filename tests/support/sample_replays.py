"""A replay of a pmpo step as grpo, as the API gives it."""

from datetime import UTC, datetime
from typing import Any

from powermean.contracts.algorithms import Grpo, Pmpo
from powermean.contracts.replays import Replay, ReplayResult, ReplayState


def replay_result(**summary: Any) -> ReplayResult:
    """Two trajectories: 5 changes from p = 0.25 to 1, 3 has no p in either."""
    before = {"p": 0.25, "ess": 0.9, "clip_fraction": 0.5, "loss": -0.0125, "distance_to_grpo": 0.75}
    after = {"p": 1.0, "ess": 0.8, "clip_fraction": 0.25, "loss": -0.02, "distance_to_grpo": 0.0}
    numbers = [{n: v for n, v in side.items() if n != "distance_to_grpo"} for side in (before, after)]
    update = {"update": 1, "trajectories": 4, "covered": 2, "recorded": before, "replayed": after}
    found = {
        "trajectories": 4,
        "covered": 2,
        "updates": [update],
        "largest_difference": {"p": 0.75, "loss": 0.0075},
        "undefined_in_one": 0,
        "reproduces": None,
    }
    one = {"update": 1, "recorded": {"loss": 0.5}, "replayed": {"loss": 0.5}}
    other = {"update": 1, "recorded": numbers[0], "replayed": numbers[1]}
    return ReplayResult.model_validate(
        {
            "summary": found | summary,
            "trajectories": [
                {"index": 3, "advantage": -0.5, "advantage_replayed": -0.5, "updates": [one]},
                {"index": 5, "advantage": 0.5, "advantage_replayed": 0.5, "updates": [other]},
            ],
        }
    )


def sample_replay(state: ReplayState = ReplayState.DONE, **changes: Any) -> Replay:
    summary = replay_result().summary if state is ReplayState.DONE else None
    values: dict[str, Any] = {
        "id": "replay-1",
        "job_id": "job-a",
        "step": 5,
        "attempt": 1,
        "algorithm": Grpo(),
        "recorded": Pmpo(),
        "state": state,
        "phase": None if state.final else "waiting for a node to take it",
        "summary": summary,
        "created_at": datetime(2026, 1, 5, 12, 0, tzinfo=UTC),
    }
    return Replay.model_validate(values | changes)
