"""The whole path of a tiny model: REST, Celery over Redis, node, engine, trainer, records, model, replay."""

import math
import os
import signal
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from powermean import ApiError
from powermean.cli.models import download_model
from powermean.contracts.api import Job, JobState
from powermean.contracts.replays import Replay, ReplayState
from tests.support.embedded_service import Service, command_line, learned, metric_rows, until
from tests.support.tiny_model import tiny_spec

pytestmark = [pytest.mark.integration, pytest.mark.slow]
STEPS = 4
UPDATES = 4  # 2 minibatches x 2 epochs


@pytest.fixture(scope="module")
def job(service: Service) -> Job:
    return service.finished(service.client.create_job(tiny_spec("tiny")).id)


def test_it_finishes_in_one_attempt_with_a_result(job: Job) -> None:
    assert (job.step, len(job.attempts)) == (STEPS, 1)
    assert job.result is not None
    assert job.result.steps == STEPS
    assert job.result.tokens > 0
    assert job.result.reward_before is not None


def test_every_step_and_update_has_its_metrics(service: Service, job: Job) -> None:
    rows = metric_rows(service.client, job.id)
    for step in range(1, STEPS + 1):
        assert (step, -1, "reward") in rows
        assert (step, -1, "time/step") in rows
        assert [u for u in range(UPDATES) if (step, u, "loss") in rows] == list(range(UPDATES))
        assert (step, UPDATES - 1, "p/mean") in rows  # in the first update all ratios are 1: no p
    assert {step for step, _, name in rows if name == "eval/reward"} == {0, 2, 4}


def test_every_trajectory_is_there_with_its_text(service: Service, job: Job) -> None:
    page = service.client.trajectories(job.id, step=STEPS, limit=200)
    assert page.total == 16 * 8
    assert page.steps == tuple(range(1, STEPS + 1))
    assert all(item.prompt and item.prompt.endswith("=") for item in page.items)
    assert any(update.p is not None for item in page.items for update in item.updates)


def test_the_tokens_of_the_first_groups_are_there_and_agree_with_the_scalars(
    service: Service, job: Job
) -> None:
    """Of 128 trajectories the default records 64."""
    page = service.client.trajectories(job.id, step=STEPS, limit=200)
    assert [item.index for item in page.items if item.has_tokens] == list(range(64))
    trained = [item for item in page.items if item.has_tokens and item.advantage]
    assert trained
    for item in trained[:: max(1, len(trained) // 8)]:
        assert service.client.trajectory(job.id, STEPS, item.index) == item
        recorded = service.client.trajectory_tokens(job.id, STEPS, item.index)
        assert [seen.update for seen in recorded.facts.updates] == list(range(UPDATES))
        assert "".join(recorded.tokens.pieces) == item.completion
        assert len(recorded.tokens.token_ids) == item.length
        for seen, scalars in zip(recorded.tokens.updates, item.updates, strict=True):
            assert seen.update == scalars.update
            assert max(map(math.exp, seen.log_ratio)) == pytest.approx(scalars.ratio_max, rel=1e-6)
            assert sum(seen.weight) == pytest.approx(1, abs=1e-6)
    with pytest.raises(ApiError, match="were not recorded") as refused:
        service.client.trajectory_tokens(job.id, STEPS, 64)
    assert refused.value.status == 404


def test_the_events_tell_the_same_as_the_history(service: Service, job: Job) -> None:
    events = list(service.client.events(job.id))
    assert [event.seq for event in events] == sorted({event.seq for event in events})
    told = {
        (row["step"], row["update"], row["name"])
        for event in events
        if event.kind == "metrics"
        for row in event.data["rows"]  # type: ignore[attr-defined]
    }
    assert told == set(metric_rows(service.client, job.id))


def test_the_model_loads_as_a_hugging_face_folder(service: Service, job: Job, tmp_path: Path) -> None:
    download_model(service.client, job.id, tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.hidden_size == 64


def test_the_log_and_checkpoints_are_there(service: Service, job: Job) -> None:
    assert service.client.logs(job.id).attempt == 1
    assert [found.step for found in service.client.checkpoints(job.id).items] == [2]


def test_the_same_seed_gives_the_same_run_bit_by_bit_also_with_copies_of_the_weights(
    service: Service, job: Job
) -> None:
    """That weights are in place is what auto is here."""
    client, rollout = service.client, tiny_spec("tiny")["rollout"]
    assert "gets copies of the weights" not in client.logs(job.id).text
    for rollout_more in ({"publish": "in_place", "engine": "transformers"}, {"publish": "shm"}):
        spec = tiny_spec("tiny", rollout=rollout | rollout_more)  # type: ignore[operator]
        other = service.finished(client.create_job(spec).id)
        assert learned(metric_rows(client, other.id)) == learned(metric_rows(client, job.id))
    assert not list(Path("/dev/shm").glob(f"powermean-{job.id}.*"))


def over(service: Service, asked: Replay) -> Replay:
    def ended() -> Replay | None:
        found = service.client.get_replay(asked.job_id, asked.id)
        return found if found.state.final else None

    found = until(ended, 120, f"{asked.id} is over")
    assert found.state is ReplayState.DONE, found.error
    return found


def test_its_steps_come_out_again_in_a_replay(service: Service, job: Job) -> None:
    for step in (1, STEPS):
        summary = over(service, service.client.replay(job.id, step)).summary
        assert summary is not None
        assert summary.reproduces, summary.largest_difference
        assert 0 < summary.covered <= 64  # of 128


def test_a_replay_with_another_objective_gives_other_numbers(service: Service, job: Job) -> None:
    found = over(service, service.client.replay(job.id, STEPS, "gmpo", {"clip": 0.05}))
    assert found.node == "local"
    assert found.summary is not None
    last = found.summary.updates[-1]
    assert last.replayed.p == 0.0
    assert last.replayed.distance_to_grpo == pytest.approx(1.0)
    tokens = service.client.replay_tokens(job.id, found.id, 0)
    assert tokens.recorded.pieces == tokens.replayed.pieces


def test_engines_that_come_and_go_give_the_run_that_one_gives(service: Service, job: Job) -> None:
    """One of two is killed in mid-run: its prompts move, and the rewards are the same."""
    client, rollout = service.client, tiny_spec("tiny")["rollout"]
    spec = tiny_spec("tiny", rollout=rollout | {"replicas": 2})  # type: ignore[operator]
    running = service.at_step(client.create_job(spec).id, 1)
    engines = {pid: " ".join(command_line(pid)) for pid in service.running("rollout")}
    (victim,) = [pid for pid, told in engines.items() if "engine-1.json" in told]
    os.kill(victim, signal.SIGKILL)
    other = service.finished(running.id)
    assert len(other.attempts) == 1
    assert "rollout engine 2 of 2 gets no work" in client.logs(other.id).text
    mine, theirs = metric_rows(client, other.id), metric_rows(client, job.id)
    for step in range(1, STEPS + 1):
        assert mine[step, -1, "reward"] == theirs[step, -1, "reward"]
        assert mine[step, -1, "sampling/sampling_logp_difference/max"] < 1e-4
    assert [mine[step, -1, "sampling/replicas"] for step in (1, STEPS)] == [2, 1]


def test_what_only_a_node_can_check_fails_with_the_field(service: Service) -> None:
    job = service.ended(service.client.create_job(tiny_spec("no-such-model")).id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.path == "model.folder"


def test_a_running_job_is_cancelled(service: Service) -> None:
    training = {"steps": 10_000, "prompts_per_step": 16, "minibatches": 2, "epochs": 2}
    job = service.client.create_job(tiny_spec("tiny", training=training))
    service.at_step(job.id, 1)
    service.client.cancel_job(job.id)
    assert service.ended(job.id).state is JobState.CANCELLED
