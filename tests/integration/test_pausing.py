"""Pause, resume and preemption with real processes: the place is free meanwhile, and the run is whole."""

from datetime import timedelta
from pathlib import Path

import pytest

from powermean.contracts.api import Job, JobState
from tests.support.embedded_service import JOB_S, Service, learned, metric_rows, until
from tests.support.tiny_model import tiny_spec

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]
STEPS = 14
TRAINING = {"steps": STEPS, "prompts_per_step": 16, "minibatches": 2, "epochs": 2}
LONG = tiny_spec("tiny", training=TRAINING, checkpoints={"every": 5}, evaluation={"every": 7, "problems": 25})


def in_state(service: Service, job_id: str, state: JobState) -> Job:
    def there() -> Job | None:
        job = service.client.get_job(job_id)
        return job if job.state is state else None

    return until(there, JOB_S, f"{job_id} {state}")


def test_a_paused_job_frees_its_slot_and_goes_on_without_gap_or_double(service: Service) -> None:
    client = service.client
    job_id = client.create_job(LONG).id
    service.at_step(job_id, 3)
    client.pause_job(job_id)
    paused = in_state(service, job_id, JobState.PAUSED)
    assert 3 <= paused.step < STEPS
    assert service.running("trainer.run") == set()
    saved = [checkpoint.step for checkpoint in client.checkpoints(job_id).items]
    assert max(saved) == paused.step, "its last step is saved"
    whole = service.finished(client.create_job(LONG).id)  # the node has one slot
    assert whole.attempts[0].created_at > paused.attempts[0].freed_at  # type: ignore[operator]

    client.resume_job(job_id)
    job = service.finished(job_id)
    assert [attempt.outcome for attempt in job.attempts] == ["checkpointed", "finished"]
    assert job.attempts[0].reason == "paused by administrator"
    assert job.attempts[1].first_step == paused.step + 1
    rows = metric_rows(client, job_id)
    assert sorted(step for step, _, name in rows if name == "reward") == list(range(1, STEPS + 1))
    assert learned(rows) == learned(metric_rows(client, whole.id)), "the run that was never paused"


def test_a_job_gives_way_to_one_of_higher_priority_and_takes_its_place_again(
    tmp_path: Path, model_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POWERMEAN_MIN_RUN_S", "0")
    service = Service(tmp_path / "home", model_root)
    service.start()
    try:
        client = service.client
        checked = client.create_job(tiny_spec("tiny") | {"priority": "high"}).id
        client.pause_job(checked)
        in_state(service, checked, JobState.PAUSED)  # the check of a spec may take as long as the other job
        low = client.create_job(tiny_spec("tiny", training=TRAINING | {"steps": 40}) | {"priority": "low"}).id
        service.at_step(low, 2)
        client.resume_job(checked)
        high = service.finished(checked)
        job = service.finished(low)
        first, second = job.attempts
        assert (job.preemptions, first.outcome, first.order_cause) == (1, "checkpointed", "preempted")
        assert first.reason == f"preempted: priority high goes before low, for {high.id}"
        assert first.freed_at is not None
        assert first.freed_at <= high.attempts[0].created_at < second.created_at
        assert len(high.attempts) == 1
        rows = metric_rows(client, low)  # fails on a row that is there twice
        assert sorted(step for step, _, name in rows if name == "reward") == list(range(1, 41))
        assert second.first_step > 2
    finally:
        assert service.interrupt() == 130


def test_a_job_that_has_run_for_its_hours_finishes_early_with_its_model(service: Service) -> None:
    spec = tiny_spec("tiny", training=TRAINING | {"steps": 10_000}, limits={"wall_hours": 0.001})
    job = service.finished(service.client.create_job(spec).id)
    assert 1 <= job.step < 10_000
    assert job.result is not None
    assert (job.result.steps, job.result.model.files != {}) == (job.step, True)
    assert str(job.ended_by).startswith("limits.wall_hours: ")
    rows = metric_rows(service.client, job.id)
    assert (job.step, -1, "eval/reward") in rows
    assert sorted(step for step, _, name in rows if name == "reward") == list(range(1, job.step + 1))


def test_a_cancelled_pause_and_a_pause_before_the_first_step(service: Service) -> None:
    client = service.client
    job_id = client.create_job(LONG).id
    in_state(service, job_id, JobState.RUNNING)
    client.pause_job(job_id)
    client.resume_job(job_id)
    job = service.at_step(job_id, 1)
    assert job.state is JobState.RUNNING
    client.pause_job(job_id)
    in_state(service, job_id, JobState.PAUSED)
    assert client.cancel_job(job_id).state is JobState.CANCELLED
    assert service.running("trainer.run") == set()


def test_a_trainer_that_ignores_the_order_is_ended_at_the_deadline(
    tmp_path: Path, model_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step of this one takes longer than the node gives it."""
    monkeypatch.setenv("POWERMEAN_STOP_GRACE_S", "2")
    service = Service(tmp_path / "home", model_root)
    service.start()
    try:
        spec = tiny_spec("tiny", training=TRAINING | {"prompts_per_step": 4096, "minibatches": 64})
        job_id = service.client.create_job(spec | {"max_restarts": 0}).id
        until(lambda: service.running("trainer.run"), JOB_S, "the trainer runs")
        until(lambda: "sampling" in str(service.client.get_job(job_id).phase), JOB_S, "it samples")
        service.client.pause_job(job_id)
        job = in_state(service, job_id, JobState.PAUSED)
        assert service.running("trainer.run") == set()
        (attempt,) = job.attempts
        assert attempt.error is None
        assert "did not stop in time" in str(attempt.reason)
        assert attempt.ordered_at is not None
        assert attempt.freed_at is not None
        assert attempt.freed_at - attempt.ordered_at > timedelta(seconds=2)
    finally:
        assert service.interrupt() == 130
