"""Ranks meet within a deadline, tell each other why they fail, and notice who is gone."""

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from powermean.contracts.attempts import FinishRecord
from tests.support import rank_jobs, sharded_jobs
from tests.support.rank_crew import Crew, Failed, crew, start
from trainer.ranks.meeting import Deadlines, interface_of, use_interface_towards
from trainer.ranks.world import World
from worker.attempt_dir import attempt_dirs, read_record

pytestmark = pytest.mark.slow

SOON = Deadlines(meet_s=3.0, beat_s=0.1, lost_beats=50)
PATIENT = Deadlines(beat_s=0.1, lost_beats=200, call_s=3.0)  # with a rank that gives no sign of life


@contextmanager
def ranks(size: int, absent: tuple[int, ...] = (), deadlines: Deadlines = SOON) -> Iterator[Crew]:
    made = crew(size, deadlines, absent)
    try:
        yield made
    finally:
        made.close()


def test_the_world_is_what_torchruns_variables_say() -> None:
    variables = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    world = World.of_environment(variables)
    assert (world, world.nodes, world.leads, world.alone) == (World(5, 8, 1, 4), 2, False, False)
    assert World.of_environment({}) == World()


def test_an_interface_is_known_by_its_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None  # of nobody (RFC 5737)


def test_gloo_and_nccl_get_the_interface_by_its_whole_name() -> None:
    chosen = {"GLOO_SOCKET_IFNAME": "eth7"}
    use_interface_towards("127.0.0.1", 1, chosen)
    assert chosen == {"GLOO_SOCKET_IFNAME": "eth7", "NCCL_SOCKET_IFNAME": "=lo"}


def test_ranks_listen_where_they_meet_and_part_in_peace() -> None:
    tensors = {
        "numbers": torch.tensor([[1.5, float("nan")], [0.1, -0.0]], dtype=torch.float64),
        "none": torch.zeros(0, 3, dtype=torch.int64),
        "flags": torch.tensor([True, False, True]),
    }
    with ranks(3) as three:
        assert three.have(rank_jobs.listening) == [["127.0.0.1"]] * 3
        for told in three.have(rank_jobs.exchanged, tensors)[1:]:
            do, facts, found = told
            assert (do, facts) == ("this", {"number": 0.1, "missing": None, "name": "é"})
            for name, value in tensors.items():
                assert found[name].dtype == value.dtype
                assert torch.equal(found[name].nan_to_num(7), value.nan_to_num(7))
        three.have(rank_jobs.weights_agree, 0.0)
        three.close()
        assert [three.exits(rank) for rank in range(3)] == [0, 0, 0]


def test_other_weights_on_a_rank_are_refused() -> None:
    with ranks(2) as two:
        two.ask(rank_jobs.weights_agree, 1e-6)
        found = [two.answer(rank) for rank in range(2)]
    assert [(one.code, one.retryable) for one in found] == [("models_differ", False)] * 2


@pytest.mark.parametrize("gone", [0, 1])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_the_others_end_when_a_rank_is_gone(how: signal.Signals, gone: int) -> None:
    """They sit in a call that it would have to take part in."""
    with ranks(3) as three:
        three.have(rank_jobs.wait)
        os.kill(three.processes[gone].pid, how)
        others = [rank for rank in range(3) if rank != gone]
        three.ask(rank_jobs.wait, ranks=others)
        for rank in others:
            found = three.answer(rank)
            assert (found.code, found.retryable) == ("rank_lost", True)
            assert f"rank {gone} " in found.text
            assert three.exits(rank) == 3
        three.processes[gone].kill()


def test_a_rank_that_lives_and_hangs_before_a_call_is_named() -> None:
    with ranks(3, deadlines=PATIENT) as three:
        three.ask(rank_jobs.sleep, ranks=[1])
        three.ask(rank_jobs.wait, ranks=[0, 2])
        for rank in range(3):
            found = three.answer(rank)
            assert (found.code, found.retryable) == ("exchange_failed", True)
            assert "rank 1 of 3 did not join a call among the ranks within 3 s" in found.text


def test_a_rank_that_hangs_in_a_pass_of_a_sharded_model_is_named_and_where_it_is() -> None:
    with ranks(2, deadlines=PATIENT) as two:
        two.ask(sharded_jobs.hang_in_a_backward_pass)
        for rank in range(2):
            found = two.answer(rank)
            assert found.code == "exchange_failed"
            assert "rank 1 of 2 did not join a call" in found.text
            behind, waiting = re.findall(r"rank (\d): update, pass 1, collective (\d+), (\S+)", found.text)
            assert (behind[0], waiting[0]) == ("1", "0")
            assert int(behind[1]) < int(waiting[1])
            assert behind[2].startswith("trainer/learner/learner.py:")


def test_nobody_is_behind_while_rank_0_samples() -> None:
    with ranks(2, deadlines=PATIENT) as two:
        assert two.have(sharded_jobs.score_and_sample, 4.5) == [(2, 0)] * 2


def test_a_rank_that_fails_tells_the_others_why() -> None:
    with ranks(3) as three:
        three.ask(rank_jobs.wait, ranks=[0, 2])
        three.ask(rank_jobs.fail, ranks=[1])
        own, *others = (three.answer(rank) for rank in (1, 0, 2))
    assert own == Failed("TrainingError", "no such model", "unknown_model", False)
    for other in others:
        assert other == Failed("TrainingError", "rank 1: no such model", "unknown_model", False)


def test_ranks_that_never_came_are_named() -> None:
    with ranks(4, absent=(1, 3)) as two:
        for rank in range(2):
            found = two.answer(rank)
            assert (found.code, found.retryable) == ("ranks_missing", True)
            assert "ranks 1, 3 of 4 did not join within 3 s" in found.text


def test_a_store_that_is_not_there_is_named() -> None:
    with ranks(2, absent=(0,)) as alone:
        found = alone.answer(0)
    assert found.code == "ranks_missing"
    assert (
        f"rank 0 of 2 did not join within 3 s, whose store would be at 127.0.0.1:{alone.port}" in found.text
    )


def test_why_a_follower_fails_is_the_attempts_reason(tmp_path: Path, model_root: Path) -> None:
    two = start(2, rank_jobs.attempt, tmp_path, model_root, {"resources": {"cpu_ranks": 2}}, "lost")
    try:
        assert two.answer(1) is False
        assert two.exits(0) == 1
    finally:
        two.close()
    (attempt,) = attempt_dirs(tmp_path / "node")
    last = read_record(attempt.spooled()[-1])
    assert isinstance(last, FinishRecord)
    assert last.body.error is not None
    assert last.body.error.code == "unknown_model"
    assert last.body.error.message.startswith("rank 1: ")
