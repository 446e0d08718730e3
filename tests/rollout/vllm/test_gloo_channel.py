"""Weights into real vLLM by gloo, as the trainer sends them. One start for the file, and one a death."""

import importlib.util
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from powermean.artefacts import ArtefactStore
from powermean.tokens import KeyPair
from rollout import gloo
from rollout.engine import Fence
from rollout.vllm.channel import offered
from rollout.vllm.command import VllmOptions
from rollout.vllm.engine import load_engine
from rollout.vllm.server import Deadlines
from rollout.weights import WeightSource
from tests.support.attempts import Stage
from tests.support.served_vllm import JOB, TrainerEnd, channel_writer, refused, served, tied_policy
from tests.support.tiny_model import char_tokenizer

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

TOLERANCE = 1e-3  # of a log-prob, in float32
SOON_S = 30.0


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the engine's model, which guesses: so a job on it finds something to learn."""
    folder = tmp_path_factory.mktemp("vllm-gloo")
    tied_policy(0, initializer_range=0.12).model.save_pretrained(folder / "tiny")
    char_tokenizer().save_pretrained(folder / "tiny")
    return folder


@pytest.fixture(scope="module")
def trainer(room: Path, keys: KeyPair) -> Iterator[TrainerEnd]:
    transfer = offered("auto", on_gpu=False)
    assert transfer == "gloo", "install the package: its entry point vllm.general_plugins is missing"
    engine = load_engine(
        VllmOptions(room / "tiny", "float32", max_num_seqs=16, transfer=transfer),
        fence=Fence(JOB, 1, 0),
        weights=WeightSource(ArtefactStore((room / "artefacts").as_uri()), room),
        deadlines=Deadlines(start=500, generate=200, sync_step=60),
    )
    with served(engine, room / "tiny", keys) as client:
        made = TrainerEnd(engine, client, channel_writer("gloo"))
        yield made
        made.writer.close()


def _at_tensor(monkeypatch: pytest.MonkeyPatch, place: int, act: Callable[[], None]) -> list[float]:
    """Call `act` in mid-transfer, when our sender comes to that tensor. Returns when it did."""
    whole, at = gloo.Sender.send, list[float]()

    def sending(sender: gloo.Sender, tensors: Iterator[torch.Tensor]) -> None:
        def watched() -> Iterator[torch.Tensor]:
            for number, tensor in enumerate(tensors):
                if number == place:
                    at.append(time.monotonic())
                    act()
                yield tensor

        whole(sender, watched())

    monkeypatch.setattr(gloo.Sender, "send", sending)
    return at


SUMS = {
    "data": {
        "kind": "arithmetic",
        "tasks": [{"operator": "+", "low": 0, "high": 4}],
        "prompt": "{a}{op}{b}=",
    },
    "reward": {"kind": "exact_match", "extract": "pattern", "pattern": r"^\d"},
    "training": {"steps": 3, "prompts_per_step": 16, "minibatches": 2, "epochs": 2},
    "optimizer": {"learning_rate": 1e-2, "warmup_updates": 0},
}


def test_a_job_trains_with_weights_that_go_by_gloo(trainer: TrainerEnd, room: Path) -> None:
    """First of all, because a job's versions start at 1. It asks for a probe after each of its publishes."""
    rollout = {"group_size": 8, "max_new_tokens": 4, "stop": ["\n"], "publish": "gloo"}
    stage = Stage(room, room)
    played = stage.play(engine=trainer.client, rollout=rollout, **SUMS)  # type: ignore[arg-type]
    assert played.finish.outcome == "finished", played.finish
    differences = played.series("publish/logp_difference_max")
    assert len(differences) == 3
    assert all(one is not None and one < TOLERANCE for one in differences)
    assert trainer.client.health().version == 3


def test_after_each_publish_log_probs_are_the_new_models(trainer: TrainerEnd) -> None:
    """Over one channel; the output layer follows the embedding that it is tied to."""
    state = trainer.client.health()
    assert state.methods == ("store", "shm", "gloo")
    for version in (state.version + 1, state.version + 2):
        policy = tied_policy(version)
        assert trainer.difference(policy) > 0.1
        trainer.publish(policy, version)
        assert trainer.client.health().version == version
        assert trainer.difference(policy) < TOLERANCE


def test_what_does_not_fit_is_refused_at_once_and_changes_nothing(trainer: TrainerEnd) -> None:
    now = trainer.client.health().version
    started = time.monotonic()
    narrow, fits = tied_policy(1, intermediate_size=96), tied_policy(1)
    assert refused(lambda: trainer.publish(narrow, now + 1)) == "weights_mismatch"
    assert refused(lambda: trainer.publish(fits, now)) == "stale_version"
    in_bfloat16 = channel_writer("gloo", torch.bfloat16)
    assert refused(lambda: trainer.publish(fits, now + 1, in_bfloat16)) == "weights_mismatch"
    assert time.monotonic() - started < SOON_S
    assert trainer.difference(tied_policy(now)) < TOLERANCE
    trainer.publish(tied_policy(now + 1), now + 1)
    assert trainer.difference(tied_policy(now + 1)) < TOLERANCE


def test_vllm_killed_in_mid_transfer_ends_both_sides_and_is_made_good(
    trainer: TrainerEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = trainer.client.health().version + 1
    policy, worker = tied_policy(version), trainer.worker()
    with monkeypatch.context() as patch:
        killed = _at_tensor(patch, 5, lambda: os.kill(worker, signal.SIGKILL))
        assert refused(lambda: trainer.publish(policy, version)) in {"engine_died", "engine_error"}
        seconds = time.monotonic() - killed[0]
    print(f"killed in mid-transfer: both sides had ended after {seconds:.1f} s")
    assert seconds < SOON_S
    assert trainer.engine.state().version == version - 1  # its client would refuse once vLLM is down
    steady = trainer.steady(policy)
    steady.publish(trainer.writer.write(policy.model, version), 100.0)  # waits for the restart
    assert trainer.engine._server.starts == 2
    assert trainer.difference(policy) < TOLERANCE


def test_vllm_that_hangs_in_mid_transfer_is_ended_at_the_deadline_and_made_good(
    trainer: TrainerEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a death between two publishes is noticed by the next one, which opens the channel anew."""
    version = trainer.client.health().version + 1
    policy, worker = tied_policy(version), trainer.worker()
    with monkeypatch.context() as patch:
        server = trainer.engine._server
        patch.setattr(server, "deadlines", replace(server.deadlines, sync_step=5.0))
        stopped = _at_tensor(patch, 5, lambda: os.kill(worker, signal.SIGSTOP))
        assert refused(lambda: trainer.publish(policy, version)) == "engine_timeout"
        seconds = time.monotonic() - stopped[0]
    print(f"hung in mid-transfer: both sides had ended after {seconds:.1f} s")
    assert seconds < SOON_S
    steady = trainer.steady(policy)
    steady.publish(trainer.writer.write(policy.model, version), 100.0)
    assert trainer.difference(policy) < TOLERANCE
    os.kill(trainer.worker(), signal.SIGKILL)
    newer = tied_policy(version + 1)
    steady.publish(trainer.writer.write(newer.model, version + 1), 100.0)
    assert trainer.engine._server.starts == 4
    assert trainer.difference(newer) < TOLERANCE
