"""`powermean replay` against a real server, with a node that computes what a real Learner recorded."""

import json
import threading
from collections.abc import Iterator

import pytest
from typer.testing import Result

from powermean.artefacts import ArtefactStore
from powermean.client import Client
from powermean.contracts.algorithms import Pmpo
from powermean.contracts.replays import ReplayTask
from powermean.token_segments import write_segment
from tests.support.live_server import listening
from tests.support.recorded_step import RecordedStep, recorded_step
from tests.support.reports import post_rows, row
from tests.support.service_driver import ADMIN_KEY, ServiceDriver
from tests.support.terminal import powermean
from trainer.replay.run import run

SPEC = Pmpo(clip_low=0.05, clip_high=0.05)
STEP = 7


class Node(threading.Thread):
    """Takes every replay that a living node is told of, as a worker does."""

    def __init__(self, service: ServiceDriver) -> None:
        super().__init__(daemon=True)
        self.service = service
        self.over = threading.Event()

    def run(self) -> None:
        store = ArtefactStore(self.service.settings.artefacts_url)
        while not self.over.wait(0.02):
            self.service.relay.turn()
            while self.service.sender.sent:
                task, _, subject = self.service.sender.sent.pop()
                if task == "powermean.replay":
                    self.compute(subject, store)

    def compute(self, replay_id: str, store: ArtefactStore) -> None:
        claimed = self.service.node.post(f"/v1/replays/{replay_id}/claim", json={"node_id": "node-1"})
        if claimed.status_code == 200:
            outcome = run(ReplayTask.model_validate(claimed.json()), store, lambda line: None)
            body = outcome.model_dump(mode="json")
            self.service.node.post(f"/v1/replays/{replay_id}/outcome", json=body)


@pytest.fixture
def job_id(service: ServiceDriver, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A job with a step trained by pmpo, behind a server that the command finds."""
    step = recorded_step(SPEC)
    attempt = service.running(algorithm=SPEC.model_dump(mode="json"))
    post_step(service, attempt, step)
    node = Node(service)
    node.start()
    with listening(service.app) as url:
        monkeypatch.setenv("POWERMEAN_URL", url)
        monkeypatch.setenv("POWERMEAN_API_KEY", ADMIN_KEY)
        yield attempt.claim.job_id
    node.over.set()
    node.join(10)


def post_step(service: ServiceDriver, attempt, step: RecordedStep) -> None:
    store = ArtefactStore(service.settings.artefacts_url)
    owner = f"jobs/{attempt.claim.job_id}/tokens/1"
    tokens = store.put_bytes(owner, "7.jsonl.gz", write_segment(step.facts, step.tokens))
    rows = [row.model_dump(mode="json") for row in step.rows]
    batch = {"step": STEP, "rows": rows, "tokens": tokens.model_dump(), "token_rows": len(rows)}
    answer = attempt.post("trajectories", batch)
    assert answer.status_code == 204, answer.text
    post_rows(
        attempt, *(row(STEP, "distance_to_grpo", value, update) for update, value in step.distances.items())
    )


def replay(*arguments: str) -> Result:
    return powermean("replay", *arguments)


@pytest.mark.slow
def test_the_recorded_objective_comes_out_again(job_id: str) -> None:
    result = replay(job_id, "--step", "7")
    assert result.exit_code == 0, result.output
    assert "pmpo -> pmpo" in result.output
    assert "covers 24 of 24 trajectories" in result.output
    assert "reproduces the recorded numbers to 1e-06" in result.output


@pytest.mark.slow
def test_another_objective_is_shown_beside_it(job_id: str) -> None:
    result = replay(job_id, "--step", "7", "--algorithm", "grpo", "--set", "epsilon_high=0.25", "--top", "3")
    assert result.exit_code == 0, result.output
    assert "pmpo -> grpo epsilon_high=0.25" in result.output
    updates, _, changed = result.output.partition("most changed")
    replayed = [line.split() for line in updates.splitlines() if line.startswith(" ") and "replayed" in line]
    assert {row[1] for row in replayed} == {"1"}  # p
    assert {row[-1] for row in replayed} == {"0"}  # the distance to GRPO
    assert changed.count("recorded") == changed.count("replayed") == 3


@pytest.mark.slow
def test_all_of_it_as_json_and_by_the_client(job_id: str) -> None:
    result = replay(job_id, "--step", "7", "--algorithm", "gmpo", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["replay"]["summary"]["covered"] == 24
    assert len(found["trajectories"]) == 24
    with Client() as client:
        again = client.replay(job_id, 7, "gmpo")
        assert (again.id, again.state) == (found["replay"]["id"], "done")
        assert [one.id for one in client.replays(job_id, 7).items] == [again.id]
        numbers = client.replay_result(job_id, again.id)
        assert numbers.trajectories[0].updates[0].replayed.loss is not None


@pytest.mark.slow
def test_a_trajectorys_tokens_have_both_weights(job_id: str) -> None:
    result = replay(job_id, "--step", "7", "--algorithm", "gmpo", "--trajectory", "0")
    assert result.exit_code == 0, result.output
    assert "trajectory 0" in result.output
    assert "recorded weight" in result.output
    assert "█" in result.output
    missing = replay(job_id, "--step", "7", "--algorithm", "gmpo", "--trajectory", "9")
    assert missing.exit_code == 1
    assert "no token records" in missing.output


@pytest.mark.slow
def test_errors_teach(job_id: str) -> None:
    for arguments, words in (
        (("--set", "clipp=1"), "Fields of pmpo: clip_low, clip_high"),
        (("--set", "clip"), "is not field=value"),
        (("--algorithm", "ppo"), "One of pmpo, grpo"),
        (("--algorithm", "power_mean"), "p=0.5"),
    ):
        result = replay(job_id, "--step", "7", *arguments)
        assert result.exit_code != 0
        assert words in " ".join(result.output.replace("│", " ").split())
    result = replay(job_id, "--step", "8")
    assert result.exit_code == 1
    assert "from 7 to 7" in result.output
