"""What a fork begins with is what its parent had, to the bit; the folders are what others load."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from powermean.contracts.artefacts import ArtefactRef
from powermean.contracts.attempts import CheckpointCommit
from powermean.contracts.forks import Origin
from powermean.contracts.models import LoraSpec
from tests.support.attempts import Played, Stage
from tests.support.fake_engine import FakeEngine
from trainer.failures import TrainingError
from trainer.forks.folders import adapter_of, model_with
from trainer.forks.start import Start, start_of
from trainer.learner.checkpoint import fetch_folder

pytestmark = pytest.mark.slow

TRAINING = {"prompts_per_step": 8, "minibatches": 1, "epochs": 1}
LORA = {"rank": 4, "alpha": 8.0}
SOURCE = "job-0123456789abcdef"


def trained(stage: Stage, number: int, **model: object) -> Played:
    """A job of two steps, with a checkpoint after the first."""
    played = stage.play(
        number,
        training=TRAINING | {"steps": 2},
        checkpoints={"every": 1},
        optimizer={"learning_rate": 1e-2, "warmup_updates": 0},
        model={"folder": "tiny"} | model,
    )
    assert played.finish.outcome == "finished", played.finish.error
    return played


def origin(kind: str, files: dict[str, ArtefactRef], base: Origin | None = None) -> Origin:
    given = {"job_id": SOURCE, "kind": kind, "files": {"files": files}, "folder": "tiny", "base": base}
    return Origin.model_validate(given)


def start(stage: Stage, given: Origin, into: str, **model: object) -> Start:
    """As a node prepares it, in a folder of its own."""
    claim = stage.claim(1, origin=given, model={"from": SOURCE} | model)
    return start_of(claim, stage.store, stage.settings, stage.folder / into)


def fetched(stage: Stage, commit: CheckpointCommit, name: str) -> Path:
    fetch_folder(stage.store, commit.manifest, stage.folder / name)
    return stage.folder / name


def weights_of(folder: Path) -> dict[str, Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).state_dict())


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, model_root: Path) -> Stage:
    return Stage(tmp_path_factory.mktemp("forks"), model_root)


@pytest.fixture(scope="module")
def whole(stage: Stage) -> Played:
    return trained(stage, 1)


@pytest.fixture(scope="module")
def adapted(stage: Stage) -> Played:
    return trained(stage, 2, lora=LORA)


def test_a_checkpoint_becomes_a_folder_that_transformers_loads(stage: Stage, whole: Played):
    commit = whole.checkpoints[0]
    found = start(stage, origin("weights", commit.manifest.files), "weights")
    assert (found.name, found.adapter) == (SOURCE, None)
    saved = load_file(fetched(stage, commit, "whole") / "model.safetensors")
    now, before = weights_of(found.folder), weights_of(stage.settings.model_roots[0] / "tiny")
    assert all(torch.equal(now[name], weight) for name, weight in saved.items())
    assert not any(torch.equal(before[name], weight) for name, weight in saved.items())
    assert AutoTokenizer.from_pretrained(found.folder)("1+2=").input_ids
    again = start(stage, origin("weights", {}), "weights")  # what is there is not fetched again
    assert again == found


def test_a_fork_begins_with_the_weights_that_its_parent_had(stage: Stage, whole: Played):
    given = origin("weights", whole.checkpoints[0].manifest.files)
    engine = FakeEngine(start(stage, given, "for the engine").folder, Path("/dev/shm"))
    played = stage.play(
        3, origin=given, engine=engine, model={"from": SOURCE}, training=TRAINING | {"steps": 1}
    )
    assert played.finish.outcome == "finished", played.finish.error
    assert max(played.series("sampling/sampling_logp_difference/max")) < 1e-4
    assert [request.version for request in engine.published] == [1]


def test_an_adapter_goes_on_and_is_published_before_the_first_step(stage: Stage, adapted: Played):
    given = origin("adapter", adapted.checkpoints[0].manifest.files)
    engine = FakeEngine(stage.settings.model_roots[0] / "tiny", Path("/dev/shm"))
    model = {"from": SOURCE, "lora": LORA}
    played = stage.play(
        4,
        origin=given,
        engine=engine,
        model=model,
        training=TRAINING | {"steps": 1},
        algorithm={"name": "grpo", "beta": 0.1},
    )
    assert played.finish.outcome == "finished", played.finish.error
    assert [request.version for request in engine.published] == [0, 1]
    assert max(played.series("sampling/sampling_logp_difference/max")) < 1e-4
    # The reference is the model with the parent's adapter, so the first update is not away from it.
    assert played.series("kl")[0] == pytest.approx(0, abs=1e-9)


def test_an_adapter_over_a_jobs_model_is_over_that_model(stage: Stage, whole: Played, adapted: Played):
    assert whole.finish.result is not None
    below = origin("model", whole.finish.result.model.files)
    found = start(stage, origin("adapter", adapted.checkpoints[0].manifest.files, below), "over", lora=LORA)
    assert found.adapter is not None
    assert (found.adapter / "model.safetensors").is_file()
    final = load_file(stage.store.local_copy(below.files.files["model.safetensors"], stage.folder / "final"))
    assert torch.equal(weights_of(found.folder)["model.norm.weight"], final["model.norm.weight"])


def test_an_adapters_folders_are_the_same_model_merged_or_not(stage: Stage, adapted: Played):
    base, lora = stage.settings.model_roots[0] / "tiny", LoraSpec(**LORA)
    checkpoint = fetched(stage, adapted.checkpoints[0], "adapted")
    model_with(checkpoint, base, stage.folder / "merged", lora)
    adapter_of(checkpoint, base, lora, "some/base", stage.folder / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(base)
    ids = torch.tensor([[3, 4, 5, 6]])
    before = plain(input_ids=ids).logits
    over = PeftModel.from_pretrained(plain, stage.folder / "adapter")(input_ids=ids).logits
    merged = AutoModelForCausalLM.from_pretrained(stage.folder / "merged")(input_ids=ids).logits
    assert torch.allclose(over, merged, atol=1e-5)
    assert (over - before).abs().max() > 1e-3
    assert '"some/base"' in (stage.folder / "adapter" / "adapter_config.json").read_text()


def test_a_checkpoint_of_another_model_is_refused(stage: Stage, whole: Played, adapted: Played):
    commit = adapted.checkpoints[0]
    with pytest.raises(TrainingError, match="differ from the model's") as caught:
        start(stage, origin("weights", commit.manifest.files), "wrong")
    assert caught.value.error.code == "checkpoint_unusable"
    assert not (stage.folder / "wrong" / "model").exists()
