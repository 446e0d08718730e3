"""Every example is a job: the service takes it, a node finds nothing wrong with it, and it is placed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from powermean.cli.specs import load_spec
from powermean.contracts.algorithms import AlgorithmSpec
from powermean.contracts.api import JobState
from powermean.contracts.attempts import ValidationTask
from powermean.contracts.job import JobSpec
from powermean.contracts.models import ModelSpec
from server.settings import Settings
from tests.support.fake_gpu import fake_gpu
from tests.support.service_driver import ADMIN_KEY, NODE_TOKEN, ServiceDriver
from tests.support.tiny_model import build_tiny_model
from trainer.objectives import build_algorithm
from trainer.preflight import validate as preflight
from worker.settings import NodeSettings

ROOT = Path(__file__).parent.parent
ALGORITHMS = get_args(get_args(AlgorithmSpec)[0])
CLUSTERS = ROOT / "examples/clusters"
RECIPES = sorted((ROOT / "examples/recipes").glob("*.yaml"))
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml")) + RECIPES
# max_position_embeddings in the config.json of each model that an example names
CONTEXTS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": 8192,
    "Qwen/Qwen2.5-32B": 131072,
    "Qwen/Qwen2.5-3B-Instruct": 32768,
    "Qwen/Qwen2.5-Math-7B": 4096,
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceDriver]:
    folder = tmp_path_factory.mktemp("service")
    driver = ServiceDriver(
        Settings(
            database_url=f"sqlite:///{folder / 'server.db'}",
            redis_url="redis://127.0.0.1:1/0",
            artefacts_url=f"file://{folder / 'artefacts'}",
            secrets_dir=folder / "secrets",
            scheduler=False,
            migrate=True,
            bootstrap_admin_key=ADMIN_KEY,
            bootstrap_node_token=NODE_TOKEN,
        )
    )
    yield driver
    driver.close()


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model for each that is named, with its context."""
    folder = tmp_path_factory.mktemp("models")
    return {
        name: build_tiny_model(folder / name, updates=0, max_position_embeddings=context)
        for name, context in CONTEXTS.items()
    }


def submitted(service: ServiceDriver, spec: JobSpec) -> str:
    """The job's id. The data that a recipe asks its reader to upload is uploaded, and its id put in."""
    body = spec.model_dump(mode="json", exclude_unset=True)
    if spec.data.kind == "jsonl":
        rows = [
            {"problem": f"What is {number} + {number}?", "answer": str(2 * number)} for number in range(999)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        uploaded = service.person.post("/v1/datasets", content=text.encode(), params={"name": "problems"})
        body["data"]["dataset"] = uploaded.json()["id"]
    answer = service.person.post("/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(
            file, id=str(file.relative_to(ROOT)), marks=[pytest.mark.slow] * ("recipes" in file.parts)
        )
        for file in EXAMPLES
    ],
)
def test_an_example_is_a_job_that_runs_on_nodes_with_eight_gpus(
    file: Path,
    service: ServiceDriver,
    stand_ins: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def resolved(model: ModelSpec, *_: object) -> Path:
        assert model.name is not None
        return stand_ins[model.name]

    monkeypatch.setattr(preflight, "resolve_model", resolved)
    fake_gpu(monkeypatch, count=8)
    settings = NodeSettings(artefacts_url=service.settings.artefacts_url, data_dir=tmp_path)
    spec = load_spec(file)
    job_id = submitted(service, spec)
    for number in range(spec.resources.nodes):  # of its own: the others have a job each
        service.report(f"{file.stem}-{number}", gpus=8, engines=("transformers", "vllm"))
    answer = service.node.get(f"/v1/jobs/{job_id}/validation")
    result = preflight.validate(ValidationTask.model_validate(answer.json()["task"]), settings)
    assert result.errors == ()
    service.node.post(f"/v1/jobs/{job_id}/validation", json=result.model_dump(mode="json"))
    service.scheduler.turn()
    assert service.job(job_id).state is JobState.STARTING


def test_every_algorithm_has_a_recipe_that_shows_its_own_fields() -> None:
    """Those that it shares (KL, sampler weights) stay at their defaults in all published recipes."""
    specs = {file.stem: load_spec(file) for file in RECIPES}
    kinds = {f"math-{kind.model_fields['name'].default}": kind for kind in ALGORITHMS}
    assert set(specs) == set(kinds)
    for name, spec in specs.items():
        assert type(spec.algorithm) is kinds[name]
        assert f"math-{build_algorithm(spec.algorithm).name}" == spec.name == name
        assert spec.algorithm.beta == 0
        # one update per rollout batch would show nothing of the clips and means that tell them apart
        assert spec.training.minibatches * spec.training.epochs >= 4


def test_the_main_job_takes_several_updates_per_rollout_batch() -> None:
    training = load_spec(ROOT / "examples/arithmetic-smollm2.yaml").training
    assert (training.minibatches, training.epochs) == (2, 2)


def test_the_form_for_a_new_job_starts_with_the_main_job() -> None:
    main_job = (ROOT / "examples/arithmetic-smollm2.yaml").read_text()
    assert (ROOT / "dashboard/starter.yaml").read_text() == main_job
