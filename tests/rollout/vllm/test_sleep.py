"""vLLM gives its memory back to the trainer between a hold and the next publish."""

from threading import Event

import pytest

from powermean.contracts.rollout import GenerateRequest, Sampling
from tests.support.vllm_stage import (
    HOLD,
    LAST_STEPS,
    REQUEST,
    STEPS,
    Make,
    Stage,
    error_of,
    publish_request,
    wait_until,
)

pytestmark = pytest.mark.slow


@pytest.mark.slow
def test_vllm_sleeps_from_a_hold_to_the_next_publish(make: Make) -> None:
    """It takes memory for weights before they come, and for its cache once they are there."""
    stage = make("gloo", sleep=True)
    assert stage.engine.state().sleeps
    stage.open()
    stage.forget()
    for _ in range(2):  # as after an answer that was lost
        stage.engine.hold(HOLD)
    assert stage.paths() == ["/sleep"]
    asked = GenerateRequest(prompts=((1,),), sampling=Sampling(max_new_tokens=1))
    assert error_of(lambda: stage.engine.generate(asked, Event())).code == "weights_incomplete"
    stage.engine.publish(publish_request("gloo"))
    pause, *update = STEPS
    assert stage.paths() == ["/sleep", pause, "/wake_up", *update, "/wake_up", *LAST_STEPS]
    assert error_of(lambda: stage.engine.hold(HOLD)).code == "stale_version"
    stage.forget()
    stage.engine.publish(publish_request("gloo", 2))
    assert "/wake_up" not in stage.paths()


@pytest.mark.slow
def test_vllm_that_can_t_go_to_sleep_is_ended_because_the_trainer_needs_the_memory(make: Make) -> None:
    stage = make("gloo", sleep=True)
    stage.say("fail", "/sleep", "CUDA error")
    assert "CUDA error" in str(error_of(lambda: stage.engine.hold(HOLD)))
    ended_and_started_by_a_publish(stage)


@pytest.mark.slow
def test_vllm_that_dies_asleep_starts_when_the_trainer_no_longer_needs_the_memory(make: Make) -> None:
    stage = make("gloo", sleep=True)
    stage.engine.hold(HOLD)
    stage.engine._server.kill("out of memory")
    ended_and_started_by_a_publish(stage)
    stage.engine._server.kill("again")  # awake, so it comes back by itself
    wait_until(lambda: stage.engine._server.starts == 3)


def ended_and_started_by_a_publish(stage: Stage) -> None:
    """A hold is then as good as one of a vLLM that sleeps."""
    server = stage.engine._server
    wait_until(lambda: server.phase == "held")
    (stage.script / "fail").unlink(missing_ok=True)
    stage.engine.hold(HOLD)
    assert not server._processes()
    assert (stage.engine.state().ready, server.starts) == (True, 1)
    assert error_of(lambda: stage.engine.generate(REQUEST, Event())).code == "engine_starting"
    stage.open()  # as a publish does after a restart
    stage.forget()
    stage.engine.publish(publish_request())
    assert "/wake_up" not in stage.paths()
    assert (stage.engine.state().version, server.phase, server.starts) == (1, "ready", 2)
