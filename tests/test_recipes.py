"""The clusters that recipes name would run them, and a recipe that asks too much is refused."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from powermean.cli.described import load_cluster
from powermean.cli.specs import load_spec
from powermean.contracts.attempts import JobError
from powermean.contracts.clusters import DescribedCluster, DescribedTask
from powermean.contracts.job import JobSpec
from powermean.spec_files import SpecFileError
from server import described as planner
from trainer.preflight import described as node

ROOT = Path(__file__).parent.parent
CLUSTERS = ROOT / "examples/clusters"
RECIPES = sorted((ROOT / "examples/recipes").glob("*.yaml"))
ONE, SIXTEEN = (load_cluster(CLUSTERS / f"{name}.yaml") for name in ("one-node", "sixteen-nodes"))
SMALL = ROOT / "examples/recipes/math-pmpo.yaml"  # one node
LARGE = ROOT / "examples/recipes/math-dapo.yaml"  # sixteen


def errors(spec: JobSpec, cluster: DescribedCluster) -> list[JobError]:
    task = DescribedTask(spec=spec, cluster=cluster)
    return [*planner.check(task).errors, *node.check(task).errors]


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_the_cluster_that_a_recipe_names_would_run_it(file: Path) -> None:
    spec, text = load_spec(file), file.read_text()
    (named,) = (path for path in CLUSTERS.glob("*.yaml") if f"examples/clusters/{path.name}" in text)
    assert errors(spec, load_cluster(named)) == []


MUTATIONS: list[tuple[str, Path, str, Any, str, str]] = [
    ("too many GPUs on a node", SMALL, "resources.gpus", 16, "no_node", "16 GPUs"),
    ("too many nodes", SMALL, "resources.nodes", 2, "no_node", "2 nodes"),
    ("GPUs for the engine", SMALL, "resources.placement", "split", "no_node", "16 GPUs"),
    ("replicas", SMALL, "training.parallel", "replicate", "not_enough_memory", "replicated over 8"),
    ("a model", SMALL, "model.name", "Qwen/Qwen2.5-72B", "not_enough_memory", "sharded over 8"),
    ("hybrid", LARGE, "training.parallel", "hybrid", "not_enough_memory", "16 replicas"),
    ("an engine of one GPU", LARGE, "rollout.gpus_per_replica", 1, "not_enough_memory", "engine"),
    ("heads", LARGE, "rollout.gpus_per_replica", 3, "undivided_heads", "40 attention heads"),
    ("a budget", SMALL, "training.micro_batch_tokens", 4023, "budget_too_small", "4024 tokens"),
    ("the context", SMALL, "rollout.max_new_tokens", 4000, "prompt_too_long", "the model's 4096"),
]


@pytest.mark.parametrize(
    ("file", "field", "value", "code", "words"),
    [one[1:] for one in MUTATIONS],
    ids=[one[0] for one in MUTATIONS],
)
def test_a_recipe_that_asks_too_much_is_refused(
    file: Path, field: str, value: Any, code: str, words: str
) -> None:
    changed = load_spec(file, {tuple(field.split(".")): value})
    found = errors(changed, ONE if file == SMALL else SIXTEEN)
    assert code in {error.code for error in found}
    assert any(words in error.message for error in found if error.code == code)
    assert all(error.remedy for error in found)


@pytest.mark.parametrize(
    ("resources", "path"),
    [
        ({"nodes": 2}, "resources.nodes"),
        ({"node_labels": {"zone": "a"}}, "resources.node_labels"),
        ({"gpu_type": "B200"}, "resources.gpu_type"),
        ({"gpu_memory_gib": 999.0}, "resources.gpu_memory_gib"),
        ({"placement": "split"}, "resources.placement"),
        ({"gpus": 16}, "resources.gpus"),
    ],
)
def test_the_field_at_fault_is_named(resources: dict[str, Any], path: str) -> None:
    changed = load_spec(SMALL, {("resources", name): value for name, value in resources.items()})
    (error,) = planner.check(DescribedTask(spec=changed, cluster=ONE)).errors
    assert error.path == path


def test_a_shared_engine_is_left_out() -> None:
    """No file declares one; the trainer alone has to fit."""
    shared = {("model", "lora"): {}, ("rollout", "sharing"): "shared", ("rollout", "replicas"): 1}
    spec = load_spec(SMALL, shared)
    assert planner.check(DescribedTask(spec=spec, cluster=ONE)).errors == ()
    (error,) = planner.check(
        DescribedTask(spec=load_spec(SMALL, shared | {("resources", "gpus"): 16}), cluster=ONE)
    ).errors
    assert error.path == "resources.gpus"


def test_more_ranks_than_trajectories_are_refused_before_anything_else() -> None:
    """8 updates a batch of 128 prompts x 8: 128 trajectories in each."""
    load_spec(SMALL, {("resources", "nodes"): 16})
    with pytest.raises(SpecFileError, match="136 ranks share the 128 trajectories of a minibatch"):
        load_spec(SMALL, {("resources", "nodes"): 17})


def test_engines_have_gpus() -> None:
    with pytest.raises(SpecFileError, match="8 replicas of 2 GPUs need more than the trainer's"):
        load_spec(SMALL, {("rollout", "gpus_per_replica"): 2})


def test_ranks_get_gpus_of_one_type() -> None:
    """Two nodes of a type each are none for a job on two nodes; each is one for a job on one."""
    nodes = [ONE.nodes[0].model_copy(update={"gpu_type": kind}) for kind in ("NVIDIA H100", "NVIDIA A100")]
    mixed = DescribedCluster(nodes=tuple(nodes))
    assert errors(load_spec(SMALL), mixed) == []
    assert errors(load_spec(SMALL, {("resources", "gpu_type"): "a100"}), mixed) == []
    (error,) = errors(load_spec(SMALL, {("resources", "nodes"): 2}), mixed)
    assert (error.code, "all of one type" in error.message) == ("no_node", True)
    (error,) = errors(load_spec(SMALL, {("resources", "gpu_type"): "B200"}), mixed)
    assert error.code == "no_node"


@pytest.mark.slow
def test_the_command_says_it_with_the_line(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(SMALL.read_text().replace("gpus: 8", "gpus: 16"))
    command = [sys.executable, "-m", "powermean", "validate", str(file), "--cluster"]
    refused = subprocess.run(
        [*command, CLUSTERS / "one-node.yaml"], capture_output=True, text=True, check=False
    )
    line = file.read_text().splitlines().index("  gpus: 16") + 1
    assert f"{file}:{line}: resources.gpus: waiting for a node with 16 GPUs" in refused.stderr
    assert refused.returncode == 1
    file.write_text("nodes: 8")
    refused = subprocess.run([*command, file], capture_output=True, text=True, check=False)
    assert f"{file}:1: nodes" in refused.stderr


@pytest.mark.parametrize(("memory", "codes"), [(0.0, []), (29.0, []), (28.0, ["not_enough_memory"])])
def test_the_model_passes_through_the_hosts_memory(memory: float, codes: list[str]) -> None:
    """7.6 billion weights, 28.4 GiB in float32; 0 says nothing."""
    (kind,) = ONE.nodes
    hosts = DescribedCluster(nodes=(kind.model_copy(update={"memory_gib": memory}),))
    assert [error.code for error in errors(load_spec(SMALL), hosts)] == codes
