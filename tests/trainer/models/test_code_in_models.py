"""A model's folder may hold code, and may point elsewhere: neither is ever followed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from powermean.contracts.models import ModelSpec
from rollout.engine import EngineError, Fence
from rollout.transformers.engine import load_engine
from rollout.vllm.command import VllmOptions, server_command
from rollout.weights import WeightSource
from trainer.failures import TrainingError
from trainer.learner.tokenizing import load_tokenizer
from trainer.models.resolve import resolve_model
from trainer.policy.loading import load_policy

CODE = """
import pathlib
pathlib.Path({marker!r}).touch()
from transformers import {base}
class Own({base}):
    pass
"""
BASES = {
    "configuration": "LlamaConfig",
    "modeling": "LlamaForCausalLM",
    "tokenization": "PreTrainedTokenizerFast",
}


def changed(file: Path, **fields: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What the code of the model would make."""
    return tmp_path / "the code ran"


@pytest.fixture
def with_code(tmp_path: Path, tiny_folder: Path, marker: Path) -> Path:
    """A model of a known kind whose config names classes of its own, in files beside it."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    for name, base in BASES.items():
        (folder / f"{name}.py").write_text(CODE.format(marker=str(marker), base=base))
    classes = {"AutoConfig": "configuration.Own", "AutoModelForCausalLM": "modeling.Own"}
    changed(folder / "config.json", auto_map=classes)
    tokenizer = {"AutoTokenizer": [None, "tokenization.Own"]}
    changed(folder / "tokenizer_config.json", auto_map=tokenizer)
    return folder


def policy(folder: Path) -> object:
    return load_policy(folder, device=torch.device("cpu"), dtype=torch.float32, temperature=1.0)


def engine(folder: Path) -> object:
    return load_engine(
        folder,
        device="cpu",
        dtype=torch.float32,
        fence=Fence("job-1", 1, 0),
        weights=WeightSource(None),
        max_model_len=None,
        max_batch_tokens=100,
    )


@pytest.mark.slow
@pytest.mark.parametrize("load", [policy, engine, load_tokenizer])
def test_a_known_model_loads_without_the_code_beside_it(
    with_code: Path, marker: Path, load: Callable[[Path], object]
) -> None:
    load(with_code)
    assert not marker.exists()


@pytest.mark.parametrize("load", [policy, engine])
def test_a_model_that_is_nothing_without_its_code_is_refused(
    with_code: Path, marker: Path, load: Callable[[Path], object]
) -> None:
    changed(with_code / "config.json", model_type="our-own")
    with pytest.raises((TrainingError, EngineError), match=r"can't be (loaded|built)") as refused:
        load(with_code)
    assert refused.value.code == "unknown_model"
    assert not marker.exists()


def test_vllm_is_started_without_the_flag() -> None:
    command = server_command(VllmOptions(model=Path("/model"), dtype="float32"), Path("/socket"))
    assert not [argument for argument in command if "trust" in argument]


def test_an_adapter_that_names_its_base_model_is_no_model(tmp_path: Path, tiny_folder: Path) -> None:
    """transformers would load the base that it names, from wherever that is."""
    folder = tmp_path / "roots" / "adapter"
    shutil.copytree(tiny_folder, folder)
    base = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "of others")}
    (folder / "adapter_config.json").write_text(json.dumps(base))
    with pytest.raises(TrainingError, match="is an adapter, not a model") as refused:
        resolve_model(ModelSpec(folder="adapter"), tmp_path, (tmp_path / "roots",))
    assert refused.value.code == "unknown_model"
