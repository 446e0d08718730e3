"""A job that can't fit the node, or adapts layers that aren't there, is told so before it is queued."""

from pathlib import Path

import pytest

from powermean.contracts.job import JobSpec
from tests.support.tiny_model import tiny_spec
from trainer.failures import TrainingError
from trainer.preflight import limits
from trainer.preflight.limits import check_adapter, check_memory, layer_names, trainer_bytes

WEIGHTS = 1000


def spec(lora: dict[str, object] | None = None, **changes: object) -> JobSpec:
    return JobSpec.model_validate(tiny_spec("tiny") | {"model": {"folder": "tiny", "lora": lora}} | changes)


@pytest.fixture
def _counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of WEIGHTS bytes in float32, an engine of twice that."""
    monkeypatch.setattr(limits, "weight_bytes", lambda _folder, size: WEIGHTS * size // 4)
    monkeypatch.setattr(limits, "engine_bytes", lambda _engine, _folder, size: 2 * WEIGHTS * size // 4)


@pytest.mark.usefixtures("_counted")
def test_the_trainer_needs_gradients_and_moments_of_what_it_trains() -> None:
    folder = Path("none")
    assert trainer_bytes(spec(), folder) == 4 * WEIGHTS
    assert trainer_bytes(spec({}), folder) == WEIGHTS
    assert trainer_bytes(spec(algorithm={"name": "grpo", "beta": 0.1}), folder) == 5 * WEIGHTS


@pytest.mark.usefixtures("_counted")
@pytest.mark.parametrize(
    ("lora", "rollout", "needed"),
    [
        (None, {"publish": "shm"}, 6 * WEIGHTS),
        (None, {"max_staleness": 1}, 6 * WEIGHTS),
        (None, {"engine": "vllm"}, 6 * WEIGHTS),
        (None, {"engine": "transformers"}, 4 * WEIGHTS),  # which samples from the trainer's weights
        (None, {"engine": "transformers", "publish": "in_place"}, 4 * WEIGHTS),
        ({}, {"sharing": "own"}, 3 * WEIGHTS),
        ({}, {}, WEIGHTS),  # the engine may be one that the administrator declared, elsewhere
    ],
)
def test_a_job_may_fill_the_node_to_the_last_byte(
    lora: dict[str, object] | None,
    rollout: dict[str, object],
    needed: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = spec(lora, rollout=rollout | {"max_new_tokens": 4})
    for total in (needed, None):
        monkeypatch.setattr(limits, "total_bytes", lambda total=total: total)
        check_memory(job, tmp_path)
    monkeypatch.setattr(limits, "total_bytes", lambda: needed - 1)
    with pytest.raises(TrainingError, match=r"at least 0\.0 GiB .* for the trainer") as refused:
        check_memory(job, tmp_path)
    error = refused.value.error
    assert (error.code, error.path) == ("not_enough_memory", "model")
    assert error.remedy is not None
    assert ("model.lora" in error.remedy) is (lora is None)


@pytest.mark.usefixtures("_counted")
def test_on_gpus_memory_is_not_this_check_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "total_bytes", lambda: 1)
    check_memory(spec(resources={"gpus": 1}), tmp_path)


def test_layers_are_named_as_peft_finds_them(tiny_folder: Path) -> None:
    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert layer_names(tiny_folder) == linear


@pytest.mark.parametrize("name", ["q_pro", "embed_tokens", "lm_head", "input_layernorm"])
def test_layers_that_take_no_adapter_are_named(name: str, tiny_folder: Path) -> None:
    check_adapter(spec({"target_modules": ["q_proj", "down_proj"]}), tiny_folder)
    with pytest.raises(TrainingError, match=f"no linear layers named {name}$") as refused:
        check_adapter(spec({"target_modules": ["q_proj", name]}), tiny_folder)
    error = refused.value.error
    assert (error.code, error.path) == ("unknown_modules", "model.lora.target_modules")
    assert error.remedy is not None
    assert "q_proj" in error.remedy


def test_a_folder_that_cannot_be_read_is_left_to_who_loads_it(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    check_adapter(spec({"target_modules": ["x"]}), tmp_path)
