"""A node computes a replay in a program of its own, once at a time, and tells the server how it ended."""

import sys
from pathlib import Path

import pytest

from powermean.artefacts import ArtefactStore
from powermean.calls import ApiError, ServerUnreachableError
from powermean.contracts.algorithms import Grpo, Pmpo
from powermean.contracts.api import ErrorBody
from powermean.contracts.replays import ReplayOutcome, ReplayTask
from powermean.contracts.token_records import StepFacts, TrajectoryTokens, UpdateFacts, UpdateTokens
from powermean.contracts.trajectories import TrajectoryRow, TrajectoryUpdate
from powermean.token_segments import write_segment
from worker import programs
from worker.node import Node
from worker.programs import replayed
from worker.settings import NodeSettings


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodeSettings:
    """As the worker and what it starts read them."""
    url = f"file://{tmp_path}/store"
    monkeypatch.setenv("POWERMEAN_ARTEFACTS_URL", url)
    monkeypatch.setenv("POWERMEAN_DATA_DIR", str(tmp_path / "node"))
    return NodeSettings(artefacts_url=url, data_dir=tmp_path / "node")


def task(settings: NodeSettings) -> ReplayTask:
    """One trajectory in one update, its second token beyond the clip."""
    facts = StepFacts(
        step=3,
        progress=0.0,
        mean_reward=0.5,
        reward_std=0.5,
        max_new_tokens=4,
        updates=(UpdateFacts(update=0, epoch=0, minibatch=0, trajectories=1, tokens=2),),
    )
    seen = UpdateTokens(update=0, log_ratio=(0.0, 0.5), weight=(0.5, 0.5), clipped=(False, True))
    tokens = TrajectoryTokens(
        index=0, token_ids=(1, 2), pieces=("a", "b"), sampler_log_probs=(-1.0, -1.0), updates=(seen,)
    )
    row = TrajectoryRow(
        index=0,
        group=0,
        problem="p",
        reward=1.0,
        advantage=1.0,
        length=2,
        truncated=False,
        updates=(TrajectoryUpdate(update=0, p=0.5),),
    )
    store = ArtefactStore(settings.artefacts_url)
    return ReplayTask(
        replay_id="replay-1",
        job_id="job-a",
        recorded=Pmpo(),
        algorithm=Grpo(),
        rows=(row,),
        tokens=store.put_bytes("jobs/job-a/tokens/1", "3.jsonl.gz", write_segment(facts, [tokens])),
    )


class Server:
    """In place of the client: gives a task or refuses, and keeps what is posted."""

    def __init__(self, answer: ReplayTask | Exception) -> None:
        self.answer = answer
        self.claims: list[tuple[str, str]] = []
        self.outcomes: list[ReplayOutcome] = []

    def claim_replay(self, replay_id: str, node_id: str) -> ReplayTask:
        self.claims.append((replay_id, node_id))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def post_replay(self, replay_id: str, outcome: ReplayOutcome) -> None:
        self.outcomes.append(outcome)


def node(settings: NodeSettings, server: Server, monkeypatch: pytest.MonkeyPatch) -> Node:
    made = Node(settings)
    monkeypatch.setattr(made, "_client", server)
    return made


@pytest.mark.slow  # imports PyTorch in a process of its own
def test_the_program_answers_with_a_result(settings: NodeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(task(settings))
    node(settings, server, monkeypatch).replay("replay-1")
    assert server.claims == [("replay-1", settings.node_id)]
    (outcome,) = server.outcomes
    assert outcome.error is None
    assert outcome.summary is not None
    assert outcome.summary.updates[0].replayed.p == 1.0
    assert outcome.result is not None
    assert ArtefactStore(settings.artefacts_url).exists(outcome.result)


def test_a_program_that_breaks_or_hangs_fails_with_its_words(
    settings: NodeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [sys.executable, "-S", "-c", "import sys; sys.exit('no such module')"]
    monkeypatch.setattr(programs, "tethered", lambda command: broken)
    error = replayed(task(settings)).error
    assert error is not None
    assert (error.code, "no such module" in error.message) == ("replay_failed", True)
    slow = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(programs, "tethered", lambda command: slow)
    monkeypatch.setattr(programs, "REPLAY_S", 0.2)
    error = replayed(task(settings)).error
    assert error is not None
    assert error.code == "replay_timeout"


@pytest.mark.parametrize(
    "refusal",
    [
        ApiError(409, ErrorBody(code="conflict", message="another node runs it")),
        ServerUnreachableError("http://server", "away"),
    ],
)
def test_what_is_refused_is_dropped(
    settings: NodeSettings, monkeypatch: pytest.MonkeyPatch, refusal: Exception
) -> None:
    server = Server(refusal)
    made = node(settings, server, monkeypatch)
    made.replay("replay-1")
    assert len(server.claims) == 1
    assert server.outcomes == []
