"""Pools on the command line, against scripted answers."""

from datetime import UTC, datetime

from powermean.contracts.pools import PilotView, PoolList, PoolView, Shape
from tests.support.scripted_server import Answer, ScriptedServer
from tests.support.terminal import powermean

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
LOCAL = PoolView(
    name="local", kind="local", shape=None, min=0, max=None, error=None, states={}, nodes=3, pilots=()
)
PILOT = PilotView(
    id="gpu-1",
    node="gpu-1",
    state="pending",
    reason="PENDING, Priority",
    external_id="17",
    created_at=NOW,
    started_at=None,
    ended_at=None,
    ends_at=None,
)
GPU = PoolView(
    name="gpu",
    kind="slurm",
    shape=Shape(gpus=8, gpu_type="H100", cpu_slots=4),
    min=0,
    max=4,
    error="squeue did not answer within 30 s",
    states={"pending": 1, "running": 2},
    nodes=2,
    pilots=(PILOT,),
)


def test_the_list_counts_what_is_on_the_way(server: ScriptedServer) -> None:
    server.on("GET /v1/pools", Answer(body=PoolList(items=(LOCAL, GPU)).model_dump_json().encode()))
    result = powermean("pool", "list")
    assert result.exit_code == 0
    _, local, gpu, *_ = result.stdout.splitlines()
    assert local.split() == ["local", "local", "3"]
    assert gpu.split() == ["gpu", "slurm", "2", "1", "0", "4", "8", "H100", "GPUs,", "4", "CPU", "slots"]
    assert "gpu: squeue did not answer within 30 s" in result.stderr


def test_a_pool_with_its_pilots(server: ScriptedServer) -> None:
    server.on("GET /v1/pools/gpu", Answer(body=GPU.model_dump_json().encode()))
    result = powermean("pool", "show", "gpu")
    assert result.exit_code == 0
    assert "gpu  slurm, 2 nodes, from 0 to 4" in result.stdout
    assert "PENDING, Priority" in result.stdout


def test_the_nodes_that_come_by_themselves(server: ScriptedServer) -> None:
    server.on("GET /v1/pools/local", Answer(body=LOCAL.model_dump_json().encode()))
    assert "nodes join by themselves, 3 so far" in powermean("pool", "show", "local").stdout
