"""The table of adapters: fences, slots, replacement under completions, restarts; vLLM is played."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from powermean.artefacts import ArtefactStore
from powermean.contracts.rollout import AdapterShape, PublishRequest, WeightFile
from rollout.engine import EngineError
from rollout.running_jobs import read_running_jobs
from rollout.vllm.adapters import Adapters
from rollout.weights import WeightSource
from tests.support.fake_adapter_server import FakeAdapterServer

SHAPE = AdapterShape(rank=4, alpha=8.0, target_modules=("q_proj",))


class Table:
    """Two slots, one server, and publishes as a trainer would make them."""

    def __init__(self, folder: Path, running: Callable[[], frozenset[str]] | None = None) -> None:
        self.server = FakeAdapterServer(folder)
        self.store = ArtefactStore((folder / "artefacts").as_uri())
        self.folder = folder
        self.adapters = Adapters(
            self.server,  # type: ignore[arg-type]
            WeightSource(self.store),
            2,
            running,
        )

    def publish(self, job: str, version: int, attempt: int = 1, rank: int = 4) -> None:
        path = self.folder / "adapter.safetensors"
        save_file({"x": torch.full((1,), float(version))}, path)
        ref = self.store.put_file(f"jobs/{job}/weights/{attempt}.{version}", path)
        file = WeightFile(uri=f"store:{ref.key}", sha256=ref.sha256, size=ref.size)
        shape = SHAPE.model_copy(update={"rank": rank})
        request = PublishRequest(
            job_id=job, attempt=attempt, version=version, method="store", files=(file,), adapter=shape
        )
        self.adapters.publish(request, shape)

    @property
    def folders(self) -> int:
        return len(list((self.folder / "adapters").iterdir()))


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path)


def _error(action: Callable[[], object]) -> EngineError:
    with pytest.raises(EngineError) as caught:
        action()
    return caught.value


def test_what_is_written_is_what_peft_would_write(table: Table) -> None:
    table.publish("a", 1)
    (folder,) = table.server.loaded.values()
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (4, 8.0, ["q_proj"])
    assert (folder / "adapter_model.safetensors").is_file()


def test_calls_under_way_keep_their_version_and_the_last_one_out_unloads_it(table: Table) -> None:
    table.publish("a", 1)
    with ExitStack() as first, ExitStack() as second:
        old, version = first.enter_context(table.adapters.in_use("a", 1))
        assert version == 1
        second.enter_context(table.adapters.in_use("a", 1))
        table.publish("a", 2)
        with table.adapters.in_use("a", 1) as (new, version):
            assert (version, new == old) == (2, False)
        assert table.server.versions == {"a.1.1", "a.1.2"}
        table.publish("a", 3)
        assert table.server.versions == {"a.1.1", "a.1.3"}  # nobody used 2
        first.close()
        assert table.server.versions == {"a.1.1", "a.1.3"}
        second.close()
        assert table.server.versions == {"a.1.3"}
    assert table.folders == 1
    assert table.adapters.slots().taken == 1


def test_a_version_dropped_under_a_call_can_be_published_again(table: Table) -> None:
    table.publish("a", 1)
    with table.adapters.in_use("a", 1) as (old, _):
        table.adapters.drop("a")
        table.publish("a", 1)
        with table.adapters.in_use("a", 1) as (new, _):
            assert old != new
            assert {old, new} == set(table.server.loaded)
    assert table.folders == 1


def test_each_job_has_a_fence_of_its_own(table: Table) -> None:
    table.publish("a", 3, attempt=2)
    table.publish("b", 1)
    assert _error(lambda: table.publish("a", 9, attempt=1)).code == "fenced"
    assert _error(lambda: table.publish("a", 3, attempt=2)).code == "stale_version"
    table.publish("a", 1, attempt=3)  # a new attempt starts from its checkpoint
    table.publish("b", 2)
    with pytest.raises(EngineError, match="attempt 2 has been replaced"), table.adapters.in_use("a", 2):
        pass
    assert table.server.versions == {"a.3.1", "b.1.2"}


def test_limits_are_named(table: Table) -> None:
    error = _error(lambda: table.publish("a", 1, rank=9))
    assert (error.status, error.code, error.path) == (422, "adapter_rank", "adapter.rank")
    with pytest.raises(EngineError) as missing, table.adapters.in_use("a", 1):
        pass
    assert missing.value.code == "adapter_missing"
    table.publish("a", 1)
    table.publish("b", 1)
    error = _error(lambda: table.publish("c", 1))
    assert (error.status, error.code) == (409, "adapter_slots")
    assert "all 2 adapter slots" in str(error)
    table.publish("b", 2)  # who has a slot keeps it
    table.adapters.drop("a")
    table.publish("c", 1)
    assert table.server.versions == {"b.1.2", "c.1.1"}


def test_where_slots_are_short_jobs_that_are_over_lose_theirs(tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.json"
    table = Table(tmp_path, lambda: read_running_jobs(jobs))
    table.publish("a", 1)
    table.publish("b", 1)
    error = _error(lambda: table.publish("c", 1))
    assert (error.status, error.code) == (503, "jobs_unknown")
    jobs.write_text('["a", "b", "c"]')
    assert _error(lambda: table.publish("c", 1)).code == "adapter_slots"
    jobs.write_text('["b", "c"]')
    table.publish("c", 1)
    assert table.server.versions == {"b.1.1", "c.1.1"}
    jobs.write_text("[")
    assert _error(lambda: table.publish("d", 1)).code == "jobs_unknown"


def test_an_adapter_that_vllm_refuses_changes_nothing(table: Table) -> None:
    table.publish("a", 1)
    table.server.failures.append(EngineError(409, "engine_error", "vLLM refused 'load adapter'"))
    assert _error(lambda: table.publish("a", 2)).code == "engine_error"
    with table.adapters.in_use("a", 1) as (_, version):
        assert version == 1
    assert (table.server.versions, table.folders, table.server.killed) == ({"a.1.1"}, 1, [])


def test_after_a_load_that_broke_off_the_server_is_not_trusted(table: Table) -> None:
    table.publish("a", 1)
    table.server.failures.append(EngineError(504, "engine_timeout", "vLLM did not finish 'load adapter'"))
    assert _error(lambda: table.publish("a", 2)).code == "engine_timeout"
    assert len(table.server.killed) == 1


def test_after_a_restart_each_adapter_is_loaded_again_when_it_is_used(table: Table) -> None:
    table.publish("a", 1)
    table.publish("b", 5)
    with table.adapters.in_use("a", 1):
        table.server.restart()
    with table.adapters.in_use("a", 1) as (_, version):
        assert version == 1
    assert table.server.versions == {"a.1.1"}
    table.publish("b", 6)  # the old one is not there to be unloaded
    assert table.server.versions == {"a.1.1", "b.1.6"}
    assert table.folders == 2


def test_a_call_that_ends_with_a_dead_server_does_not_fail_for_it(table: Table) -> None:
    table.publish("a", 1)
    with table.adapters.in_use("a", 1):
        table.publish("a", 2)
        table.server.failures.append(EngineError(503, "engine_died", "vLLM died"))
    assert table.server.killed == []
    assert table.folders == 1
