"""Supervisors of jobs with several ranks: all start together, and all end when one does not end well."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_server import NodeServer
from tests.support.supervised_case import FINISHED, SPOOL, WAIT, Case, make_case, until

pytestmark = pytest.mark.slow

RANK = "import os, time; rank = int(os.environ['RANK']);\n"
HERE = "(folder / f'here-{rank}').write_text(str(os.getpid()))\n"
LOST = {"outcome": "failed", "error": {"code": "rank_lost", "message": "a rank is gone"}, "retryable": True}
# Rank 0 notices at once when another rank's connection breaks, as gloo does.
LINKED = (
    SPOOL
    + RANK
    + f"""
import socket
if rank == 0:
    store = socket.socket(fileno=int(os.environ["POWERMEAN_STORE_FD"]))
    while True:
        link, _ = store.accept()
        if link.recv(1):
            break
    {HERE}
    link.recv(1)
    spool(1, "finish", {LOST}); sys.exit(1)
link = socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
link.send(b"x")
{HERE}
time.sleep(60)
"""
)

TIDY = """
import pathlib, signal, sys, time
def end(*_):
    time.sleep(1.5); pathlib.Path("FOLDER/tidy").touch(); sys.exit()
signal.signal(signal.SIGTERM, end)
pathlib.Path("FOLDER/ready").write_text("yes")
time.sleep(60)
"""


class Gang:
    """The cases of an attempt's nodes, all on this host."""

    def __init__(self, folder: Path, name: str, nodes: int, **resources: int) -> None:
        names = tuple(f"node-{number}" for number in range(1, nodes + 1))
        self.server = NodeServer(nodes=names)
        self.server.start()
        parts = [{"role": "trainer", "node_id": one} for one in names]
        self.cases = [
            make_case(
                folder / one,
                self.server,
                f"job-{os.getpid()}-{abs(hash(name))}.1",
                node_rank=rank,
                allocations=parts,
                resources={"nodes": nodes, **resources},
            )
            for rank, one in enumerate(names)
        ]

    def start(self, trainer: str) -> None:
        for case in self.cases:
            case.start(trainer)

    def pid(self, rank: int) -> int:
        """That of a rank which has left its file."""
        places = [case.attempt.path / f"here-{rank}" for case in self.cases]
        until(lambda: any(place.exists() and place.read_text() for place in places))
        return next(int(place.read_text()) for place in places if place.exists())

    def end(self) -> float:
        """Seconds until all supervisors have ended; nothing of the attempt may run then."""
        began = time.monotonic()
        for case in self.cases:
            case.end()
        return time.monotonic() - began

    @property
    def finishes(self) -> list[Any]:
        return [body for kind, body in self.server.posts if kind == "finish"]


@pytest.fixture
def gang(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Gang]]:
    made: list[Gang] = []

    def make(nodes: int = 1, **resources: int) -> Gang:
        made.append(Gang(tmp_path, request.node.name, nodes, **resources))
        return made[-1]

    yield make
    for one in made:
        for case in one.cases:
            case.close()
        one.server.stop()


def log(case: Case) -> list[str]:
    return case.attempt.log.read_text().splitlines()


def test_ranks_find_each_other_by_torchrun_s_variables(gang: Callable[..., Gang]) -> None:
    job = gang(2, cpu_ranks=2)
    names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"]
    meet = (
        "import socket; places = [os.environ[n] for n in ('MASTER_ADDR', 'MASTER_PORT')]\n"
        "if rank == 0:\n"
        "    store = socket.socket(fileno=int(os.environ['POWERMEAN_STORE_FD'])); seen = set()\n"
        "    while len(seen) < 3: seen.add(store.accept()[0].recv(1)); seen.discard(b'')\n"
        f"    print('met', sorted(seen)); spool(1, 'finish', {FINISHED})\n"
        "else:\n"
        "    assert 'POWERMEAN_STORE_FD' not in os.environ\n"
        "    socket.create_connection(tuple(places)).send(str(rank).encode())\n"
    )
    job.start(SPOOL + RANK + f"print('has', [os.environ[n] for n in {names}])\n" + meet)
    job.end()
    assert {end["node_rank"]: end["outcome"] for end in job.finishes} == {0: "finished", 1: "finished"}
    result = {end["node_rank"]: end["result"] is not None for end in job.finishes}
    assert result == {0: True, 1: False}, "rank 0's node alone has one"
    first, second = map(log, job.cases)
    assert "has ['0', '4', '0', '2', '0', '2']" in first
    assert "met [b'1', b'2', b'3']" in first
    assert "[rank 1] has ['1', '4', '1', '2', '0', '2']" in first
    assert sorted(second) == [
        "[rank 2] has ['2', '4', '0', '2', '1', '2']",
        "[rank 3] has ['3', '4', '1', '2', '1', '2']",
    ]
    members = job.cases[1].attempt.members()
    assert [member.node_id for member in members] == ["node-1", "node-2"]
    stores = {rank: report["store_port"] is not None for rank, report in job.server.reports.items()}
    assert stores == {0: True, 1: False}


def test_a_killed_rank_ends_the_others_and_is_named_within_a_second(gang: Callable[..., Gang]) -> None:
    job = gang(cpu_ranks=3)
    job.start(SPOOL + RANK + HERE + "time.sleep(60)")
    victim = job.pid(2)
    job.pid(0)
    os.kill(victim, signal.SIGKILL)
    assert job.end() < 1.5
    (end,) = job.finishes
    assert (end["error"]["code"], end["retryable"]) == ("trainer_killed", True)
    assert "Rank 2 of the trainer was killed by SIGKILL" in end["error"]["message"]


def test_engines_have_time_to_tidy_up_when_ranks_have_none(gang: Callable[..., Gang], tmp_path: Path) -> None:
    (case,) = gang(cpu_ranks=2).cases
    case.limits["grace_s"] = 10.0
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    case.start(SPOOL + RANK + deaf + HERE + "time.sleep(60)", engine=TIDY.replace("FOLDER", str(tmp_path)))
    here = [case.attempt.path / f"here-{rank}" for rank in (0, 1)]
    until(lambda: all(file.exists() and file.read_text() for file in (*here, tmp_path / "ready")))
    os.kill(int(here[1].read_text()), signal.SIGKILL)
    killed = time.monotonic()
    case.end()
    assert (tmp_path / "tidy").exists()
    assert time.monotonic() - killed < 8, "the deaf rank was not given the engine's time"


def test_the_node_of_a_killed_rank_says_why_and_the_other_one_ends(gang: Callable[..., Gang]) -> None:
    job = gang(2)
    job.start(LINKED)
    job.pid(0)
    os.kill(job.pid(1), signal.SIGKILL)
    assert job.end() < 5
    ends = {end["node_rank"]: end["error"] for end in job.finishes}
    assert (ends[1]["code"], ends[0]["code"]) == ("trainer_killed", "rank_lost")
    assert "Rank 1" in ends[1]["message"]
    for node_rank, case in enumerate(job.cases):
        assert log(case)[-1].endswith(
            f"supervisor: the attempt failed: {ends[node_rank]['code']}: {ends[node_rank]['message']}"
        )


def test_a_lost_node_is_told_by_the_one_that_is_left(gang: Callable[..., Gang]) -> None:
    job = gang(2)
    job.start(LINKED)
    job.pid(0)
    job.pid(1)
    lost = job.cases[1].process
    assert lost
    lost.kill()
    job.end()
    (end,) = job.finishes
    assert (end["node_rank"], end["error"]["code"]) == (0, "rank_lost")


def test_a_rank_s_own_word_counts_before_what_others_say_of_it(gang: Callable[..., Gang]) -> None:
    own = {"outcome": "failed", "error": {"code": "out_of_memory", "message": "too big"}, "retryable": False}
    job = gang(cpu_ranks=2)
    fail = f"(folder / 'rank-1.json').write_text({json.dumps(own)!r}); sys.exit(1)"
    job.start(LINKED.replace("time.sleep(60)", fail))
    job.end()
    (end,) = job.finishes
    assert end["error"] == {
        "code": "out_of_memory",
        "message": "Rank 1 of the trainer: too big",
        "path": None,
        "remedy": None,
    }


def test_a_frozen_rank_is_named(gang: Callable[..., Gang]) -> None:
    job = gang(cpu_ranks=2)
    job.cases[0].limits["frozen_s"] = 0.5
    job.start(SPOOL + RANK + HERE + "time.sleep(60)")
    os.kill(job.pid(1), signal.SIGSTOP)
    job.end()
    (end,) = job.finishes
    assert (end["error"]["code"], end["retryable"]) == ("trainer_frozen", True)
    assert "Rank 1 " in end["error"]["message"]


def test_who_stays_after_rank_0_is_ended_and_the_result_counts(gang: Callable[..., Gang]) -> None:
    job = gang(cpu_ranks=2)
    job.start(SPOOL + RANK + f"spool(1, 'finish', {FINISHED}) if rank == 0 else time.sleep(60)")
    job.end()
    (end,) = job.finishes
    assert end["outcome"] == "finished"


def test_a_node_that_does_not_get_ready_is_named(gang: Callable[..., Gang]) -> None:
    job = gang(2)
    job.cases[0].limits["meet_s"] = 1.0
    job.cases[1].programs["prepare"] = WAIT
    job.start(WAIT)
    job.end()
    end = job.finishes[0]
    assert (end["error"]["code"], end["retryable"]) == ("rendezvous_timeout", True)
    assert "node-2 did not get ready" in end["error"]["message"]
    assert "waiting for node-2" in job.server.phases


def test_an_address_that_other_nodes_can_t_reach_is_named(gang: Callable[..., Gang]) -> None:
    job = gang(2)
    job.cases[0].address = "127.0.0.2"
    job.cases[1].start(WAIT, prepare=WAIT)  # it does not wait for the model
    until(lambda: job.server.reports.get(1))
    job.server.reports[0] = {"address": "127.0.0.2", "store_port": 9, "engine_urls": []}
    job.cases[1].end()
    (end,) = job.finishes
    assert (end["error"]["code"], end["retryable"]) == ("rendezvous_unreachable", False), "the loopback"
    assert "node-1 can't be reached at 127.0.0.2, port 9" in end["error"]["message"]


def test_a_node_whose_address_is_the_loopback_fails_for_good(gang: Callable[..., Gang]) -> None:
    job = gang(2)
    job.cases[1].start(WAIT, prepare=WAIT)
    until(lambda: job.server.reports.get(1))
    job.server.reports[0] = {"address": "198.51.100.1", "store_port": 9, "engine_urls": []}
    job.cases[1].end()
    (end,) = job.finishes
    assert (end["error"]["code"], end["retryable"]) == ("node_address_loopback", False)
    assert "POWERMEAN_NODE_ADDRESS of this node is 127.0.0.1" in end["error"]["message"]


def test_an_engine_that_fails_while_its_node_waits_for_others_ends_the_attempt(
    gang: Callable[..., Gang],
) -> None:
    job = gang(2)
    job.cases[0].start(WAIT, engine="import sys; sys.exit(3)")
    job.cases[0].end()
    (end,) = job.finishes
    assert end["error"]["code"] == "engine_died"


@pytest.mark.parametrize("place", [0, 1])
def test_a_node_that_hears_of_the_end_first_still_tells_the_cause(
    gang: Callable[..., Gang], place: int
) -> None:
    own = {"outcome": "failed", "error": {"code": "out_of_memory", "message": "too big"}, "retryable": False}
    job = gang(2)
    fail = f"""
row = rows(1)
if rank == 0: spool(1, "metrics", row); spool(2, "finish", {own})
else: (folder / "rank-1.json").write_text({json.dumps(own)!r})
print("x" * 500_000); print("last words", flush=True)
(folder / "failed").touch(); time.sleep(60)
"""
    job.server.status["metrics"] = 409
    case = job.cases[place]
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        job.server.reports[1 - place] = {"address": "127.0.0.1", "store_port": port, "ready": True}
        case.start(SPOOL + RANK + fail)
        until((case.attempt.path / "failed").exists)
        job.server.status["heartbeat"] = 409
        case.end()
    (end,) = job.finishes
    assert (end["error"]["code"], end["retryable"]) == ("out_of_memory", False)
    text = "".join(body["text"] for kind, body in job.server.posts if kind == "logs")
    *_, before, last = text.splitlines()
    assert before.endswith("last words")
    assert last.endswith(
        f"supervisor: the attempt failed: out_of_memory: Rank {place} of the trainer: too big"
    )


def test_a_taken_port_is_named(gang: Callable[..., Gang]) -> None:
    job = gang(2)
    with socket.create_server(("127.0.0.1", 0)) as other:
        job.cases[0].port = other.getsockname()[1]
        job.cases[0].start(WAIT)
        job.cases[0].end()
    (end,) = job.finishes
    assert (end["error"]["code"], end["retryable"]) == ("rendezvous_port_taken", True)
    assert str(job.cases[0].port) in end["error"]["message"]


def test_a_foreign_address_is_named_on_any_node(gang: Callable[..., Gang]) -> None:
    job = gang(2)
    job.cases[1].address = "198.51.100.1"  # of no host (RFC 5737)
    job.cases[1].start(WAIT)
    job.cases[1].end()
    (end,) = job.finishes
    assert (end["error"]["code"], end["node_rank"]) == ("node_address_foreign", 1)
    assert "198.51.100.1" in end["error"]["message"]


def test_an_order_to_stop_ends_ranks_on_all_nodes_in_order(gang: Callable[..., Gang]) -> None:
    job = gang(2)
    stop = {"outcome": "checkpointed"}
    job.start(
        SPOOL
        + RANK
        + HERE
        + "while (folder / 'order').read_text() != 'checkpoint_and_exit': time.sleep(0.02)\n"
        + f"if rank == 0: spool(1, 'finish', {stop})"
    )
    job.pid(0)
    job.pid(1)
    job.server.order = "checkpoint_and_exit"
    job.end()
    outcomes = {end["node_rank"]: end["outcome"] for end in job.finishes}
    assert outcomes == {0: "checkpointed", 1: "finished"}, "the first node's is the attempt's"


def test_variables_of_another_launcher_are_not_the_ranks_own(
    gang: Callable[..., Gang], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "7")
    monkeypatch.setenv("WORLD_SIZE", "8")
    job = gang()
    job.start(SPOOL + f"print('has', os.environ.get('RANK')); spool(1, 'finish', {FINISHED})")
    job.end()
    assert "has None" in log(job.cases[0])
