"""Engine services on a node, with a stand-in for the rollout process: kept, restarted in place, ended."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from powermean.children import RestartPolicy
from powermean.contracts.attempts import EngineReport
from powermean.contracts.engines import EngineOrder, EngineSpec, NodeOrders
from powermean.processes import end_all, marked
from worker.engines.keeper import Patience
from worker.engines.services import Engines
from worker.launcher import ENGINE_MARK, Command, LocalEngineLauncher
from worker.settings import NodeSettings

pytestmark = pytest.mark.slow

DEADLINE_S = 20.0
RESTARTS = RestartPolicy(most=2, window_s=1800.0, first_pause_s=0.05)
QUICK = Patience(look_s=0.1, grace_s=2.0, restarts=RESTARTS)
FAKE_SERVICE = Path(__file__).parents[2] / "support" / "fake_engine_service.py"


class StandIn:
    """Starts the stand-in in place of the rollout service."""

    def __init__(self, how: str = "serve", prepare: str = "print('loading'); print('/some/model')") -> None:
        self.how = how
        self.prepares = prepare
        self.ports: list[int] = []

    def prepare(self, order: EngineOrder, spec_file: Path) -> Command:
        assert EngineSpec.model_validate_json(spec_file.read_bytes()) == order.spec
        return Command((sys.executable, "-S", "-c", self.prepares), {ENGINE_MARK: order.id})

    def serve(self, order: EngineOrder, model: Path, folder: Path, port: int) -> Command:
        assert model == Path("/some/model")
        self.ports.append(port)
        options = {"port": port, "folder": str(folder), "how": self.how}
        argv = (sys.executable, "-S", str(FAKE_SERVICE), json.dumps(options))
        return Command(argv, {ENGINE_MARK: order.id})


def order(name: str, jobs: tuple[str, ...] = (), generation: int = 1, **spec: Any) -> EngineOrder:
    made = EngineSpec.model_validate({"name": name, "model": {"name": "tiny/model"}} | spec)
    engine_id = f"engine-{os.getpid()}-{name}"
    return EngineOrder(id=engine_id, generation=generation, spec=made, jobs=jobs, token="seen")


def until(true: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline, f"not within the deadline: {what}"
        time.sleep(0.02)


class Stage:
    def __init__(self, data_dir: Path, patience: Patience = QUICK) -> None:
        self.data_dir = data_dir
        self.launcher = StandIn()
        self.engines = Engines(data_dir, self.launcher, patience)
        self.ids: set[str] = set()

    def follow(self, *orders: EngineOrder) -> None:
        self.ids |= {one.id for one in orders}
        self.engines.follow(NodeOrders(engines=orders))

    def report(self) -> EngineReport:
        (found,) = self.engines.reports()
        return found

    def until_state(self, state: str) -> EngineReport:
        until(lambda: self.report().state == state, f"{state}; it says {self.report()}")
        return self.report()

    def pids(self) -> set[int]:
        return {pid for engine_id in self.ids for pid in marked(ENGINE_MARK, engine_id)}

    def close(self) -> None:
        assert self.engines.halt(DEADLINE_S)
        left = self.pids()
        end_all(self.pids, grace_s=0)
        assert left == set()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.close()


def test_an_ordered_engine_serves_and_tells_what_it_has(stage: Stage) -> None:
    stage.follow(order("a", jobs=("job-1",)))
    report = stage.until_state("ready")
    assert report.url == f"http://127.0.0.1:{stage.launcher.ports[0]}"
    assert report.adapters is not None
    assert (report.adapters.slots, report.adapters.taken, report.adapters.max_rank) == (2, 1, 8)
    assert (report.max_model_len, report.requests, report.restarts) == (64, 3, 0)


def test_a_killed_engine_comes_back_on_its_port(stage: Stage) -> None:
    stage.follow(order("a"))
    before = stage.until_state("ready")
    (pid,) = stage.pids()
    os.kill(pid, signal.SIGKILL)
    until(lambda: stage.report().restarts == 1, "restarted")
    error = stage.report().error
    assert error is None or error.code == "engine_died"  # it may be back already
    after = stage.until_state("ready")
    assert after.url == before.url
    assert stage.pids() != {pid}
    assert (after.restarts, after.error) == (1, None)


@pytest.mark.slow
def test_a_new_worker_ends_what_the_old_one_left_and_keeps_the_port(stage: Stage) -> None:
    stage.follow(order("a"))
    url = stage.until_state("ready").url
    left = stage.pids()
    stubborn = replace(
        QUICK, restarts=replace(RESTARTS, most=50)
    )  # the old worker's keeper still fights for it
    again = Stage(stage.data_dir, stubborn)
    again.follow(order("a"))
    until(lambda: again.pids() and not again.pids() & left, "the old process is gone")
    assert stage.engines.halt(DEADLINE_S)  # which ends the new one's process, too: it has the same mark
    assert again.until_state("ready").url == url
    again.close()


def test_the_jobs_of_an_engine_are_in_its_file(stage: Stage) -> None:
    file = stage.data_dir / "engines" / order("a").id / "jobs.json"
    stage.follow(order("a", jobs=("job-1", "job-2")))
    until(file.exists, "the file")
    assert json.loads(file.read_text()) == ["job-1", "job-2"]
    stage.follow(order("a", jobs=("job-2",)))
    assert json.loads(file.read_text()) == ["job-2"]


@pytest.mark.slow
def test_an_engine_that_nobody_wants_ends_and_leaves_its_log(stage: Stage) -> None:
    stage.follow(order("a"), order("b"))
    until(lambda: [r.state for r in stage.engines.reports()] == ["ready"] * 2, "both ready")
    stage.follow(order("b"))
    until(lambda: len(stage.engines.reports()) == 1, "reported until it is gone")
    assert marked(ENGINE_MARK, order("a").id) == set()
    assert stage.report().state == "ready"
    assert "serving" in (stage.data_dir / "engines" / order("a").id / "engine.log").read_text()


def test_another_generation_starts_when_nothing_is_left_of_the_first(stage: Stage) -> None:
    stage.follow(order("a"))
    stage.until_state("ready")
    (first,) = stage.pids()
    deadline = time.monotonic() + DEADLINE_S
    while not (reports := stage.engines.reports()) or reports[0].generation == 1:
        assert time.monotonic() < deadline
        stage.follow(order("a", generation=2))
        assert len(stage.pids()) <= 1
        time.sleep(0.02)
    stage.until_state("ready")
    assert first not in stage.pids()


def test_an_engine_that_dies_again_and_again_has_failed(stage: Stage) -> None:
    stage.launcher.how = "crash"
    stage.follow(order("a"))
    report = stage.until_state("failed")
    assert report.error is not None
    assert report.error.code == "engine_died"
    assert "SIGSEGV" in report.error.message
    assert "no memory left" in report.error.message
    assert len(stage.launcher.ports) == 1 + RESTARTS.most
    assert len(set(stage.launcher.ports)) == 1


def test_what_another_start_cannot_mend_is_tried_once(stage: Stage) -> None:
    stage.launcher.how = "refuse"
    stage.follow(order("a"))
    report = stage.until_state("failed")
    assert report.error is not None
    assert report.error.code == "vllm_missing"
    assert len(stage.launcher.ports) == 1


def test_a_model_that_is_not_there_is_named(stage: Stage) -> None:
    stage.launcher.prepares = unprepared(retryable=False)
    stage.follow(order("a"))
    report = stage.until_state("failed")
    assert report.error is not None
    assert (report.error.code, report.error.path) == ("unknown_model", "model.name")
    assert (stage.launcher.ports, report.restarts) == ([], 0)


def test_a_model_that_may_be_there_later_is_asked_for_again(stage: Stage) -> None:
    stage.launcher.prepares = unprepared(retryable=True)
    stage.follow(order("a"))
    until(lambda: stage.report().restarts == 1, "the second try")
    stage.launcher.prepares = StandIn().prepares
    stage.until_state("ready")


def unprepared(*, retryable: bool) -> str:
    """A program that says why there is no model."""
    error = {"code": "unknown_model", "message": "no model tiny/model", "path": "model.name"}
    said = json.dumps({"error": error, "retryable": retryable})
    return f"import sys; print({said!r}); sys.exit(1)"


@pytest.mark.slow
def test_an_engine_that_is_never_ready_is_started_again_and_then_given_up(tmp_path: Path) -> None:
    once = RestartPolicy(most=1, window_s=1800.0)
    stage = Stage(tmp_path, Patience(look_s=0.05, unready_s=0.2, grace_s=1, restarts=once))
    stage.launcher.how = "unready"
    stage.follow(order("a"))
    report = stage.until_state("failed")
    assert report.error is not None
    assert report.error.code == "engine_unready"
    stage.close()


def test_the_command_line_is_that_of_the_shared_service(tmp_path: Path) -> None:
    settings = NodeSettings(
        artefacts_url="file:///artefacts",
        data_dir=tmp_path,
        attempt_public_key=Path("/keys/attempt_token.pub"),
        engine_host="node-1.example",
    )
    wanted = order("a", max_adapters=3, max_lora_rank=8, max_model_len=512)
    command = LocalEngineLauncher(settings).serve(wanted, Path("/model"), tmp_path, 4711)

    def option(name: str) -> str:
        return command.argv[command.argv.index(name) + 1]

    assert "--job-id" not in command.argv
    assert (option("--max-adapters"), option("--max-lora-rank"), option("--port")) == ("3", "8", "4711")
    assert (option("--host"), option("--allowed-host")) == ("node-1.example", "node-1.example")
    assert (option("--dtype"), option("--max-model-len")) == ("float32", "512")
    assert "POWERMEAN_NODE_TOKEN" not in command.environment
