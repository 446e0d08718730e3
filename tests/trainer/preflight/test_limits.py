"""A job that can't fit its node, or adapts layers that aren't there, is told so before it is queued."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from powermean.contracts.job import JobSpec
from powermean.memory import GIB
from tests.support.tiny_model import tiny_spec
from trainer.failures import TrainingError
from trainer.preflight import limits
from trainer.preflight.footprint import footprint
from trainer.preflight.limits import (
    ASLEEP_BYTES,
    ERROR,
    Place,
    changes,
    check_adapter,
    check_memory,
    check_positions,
    fits,
    place_of,
)
from trainer.preflight.model_facts import in_folder

PROMPT = 8


def spec(lora: dict[str, object] | None = None, **changes: object) -> JobSpec:
    return JobSpec.model_validate(tiny_spec("tiny") | {"model": {"folder": "tiny", "lora": lora}} | changes)


def place(total: int, engine: int = 0) -> Place:
    return Place(cuda=False, total=total, engine=engine, engine_name="transformers" if engine else "")


def needed(job: JobSpec, folder: Path) -> int:
    found = footprint(job, in_folder(folder), PROMPT, cuda=False)
    assert found is not None
    return found.total


def test_only_what_is_beyond_the_estimate_and_its_error_is_refused(tiny_folder: Path) -> None:
    job = spec()
    least = int(needed(job, tiny_folder) / ERROR) + 1
    check_memory(job, in_folder(tiny_folder), PROMPT, place(least))
    with pytest.raises(TrainingError, match=r"the trainer needs about .* the node has") as refused:
        check_memory(job, in_folder(tiny_folder), PROMPT, place(least - 2))
    assert refused.value.error.code == "not_enough_memory"
    with pytest.raises(TrainingError, match=r"beside the transformers engine's 1\.0 GiB"):
        check_memory(job, in_folder(tiny_folder), PROMPT, place(least - 2 + GIB, engine=GIB))


@pytest.mark.slow
def test_the_error_names_the_first_change_that_makes_the_job_fit(tiny_folder: Path) -> None:
    """A long micro-batch is cut; where one row is too long, only another model or node is left."""
    job = spec(
        rollout={"max_new_tokens": 4096, "group_size": 8}, training={"steps": 1, "micro_batch_tokens": 65_536}
    )
    small = JobSpec.model_validate(
        job.model_dump() | {"training": {"steps": 1, "micro_batch_tokens": PROMPT + 4096}}
    )
    with pytest.raises(TrainingError) as refused:
        check_memory(job, in_folder(tiny_folder), PROMPT, place(needed(small, tiny_folder)))
    error = refused.value.error
    assert error.path == "training.micro_batch_tokens"
    assert error.remedy is not None
    assert f"training.micro_batch_tokens: {PROMPT + 4096}" in error.remedy
    with pytest.raises(TrainingError) as refused:
        check_memory(job, in_folder(tiny_folder), PROMPT, place(1 << 20))
    assert refused.value.error.path == "model"


def test_every_change_makes_the_job_smaller(tiny_folder: Path) -> None:
    job = spec(rollout={"max_new_tokens": 512}, training={"steps": 1, "micro_batch_tokens": 8192})
    found = list(changes(job, in_folder(tiny_folder), PROMPT, place(GIB)))
    assert {one.path for one in found} == {
        "training.micro_batch_tokens",
        "training.gradient_checkpointing",
        "optimizer.state",
        "model.lora",
    }
    assert all(one.footprint.total < needed(job, tiny_folder) for one in found)


@pytest.mark.parametrize(
    ("lora", "rollout", "engine"),
    [
        (None, {"publish": "shm"}, "transformers"),
        (None, {"engine": "transformers", "max_staleness": 1}, "transformers"),
        (None, {"engine": "transformers"}, ""),  # which samples from the trainer's weights
        (None, {"engine": "transformers", "publish": "in_place"}, ""),
        ({}, {"sharing": "own"}, "transformers"),
        ({}, {}, ""),  # the engine may be one that the administrator declared, elsewhere
    ],
)
def test_an_engine_beside_the_trainer_counts(
    lora: dict[str, object] | None,
    rollout: dict[str, object],
    engine: str,
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "total_bytes", lambda: 4 * GIB)
    monkeypatch.setattr(limits, "choose", lambda asked, *_, **__: asked.replace("auto", "transformers"))
    found = place_of(spec(lora, rollout=rollout | {"max_new_tokens": 4}), tiny_folder)
    assert found is not None
    assert (found.engine_name, found.engine > 0) == (engine, engine != "")
    assert found.for_trainer == 4 * GIB - found.engine


def test_a_change_that_the_spec_does_not_allow_is_not_offered(tiny_folder: Path) -> None:
    job = spec(rollout={"engine": "transformers", "publish": "in_place", "max_new_tokens": 4})
    assert "model.lora" not in {one.path for one in changes(job, in_folder(tiny_folder), PROMPT, place(GIB))}


def test_where_nothing_tells_the_memory_nothing_is_refused(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "total_bytes", lambda: None)
    check_memory(spec(), in_folder(tiny_folder), PROMPT, place_of(spec(), tiny_folder))
    monkeypatch.setattr(limits, "total_bytes", lambda: 1)
    (tmp_path / "config.json").write_text('{"model_type": "mystery"}')
    check_memory(spec(), in_folder(tmp_path), PROMPT, place(1))


def test_a_gpu_job_is_measured_against_its_gpu(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM beside the trainer takes its share of the GPU; on GPUs of its own it takes nothing."""
    monkeypatch.setattr(limits, "gpu_bytes_of_node", lambda: 10 * GIB)
    beside = place_of(
        spec(
            resources={"gpus": 1, "placement": "colocated"}, rollout={"engine": "vllm", "max_new_tokens": 4}
        ),
        tiny_folder,
    )
    assert beside is not None
    assert beside == Place(
        cuda=True,
        total=10 * GIB,
        engine=int(limits.GPU_MEMORY_SHARE * 10 * GIB),
        engine_name="vllm",
        sleeps=True,
    )
    estimate = footprint(spec(resources={"gpus": 1}), in_folder(tiny_folder), PROMPT, cuda=True)
    assert estimate is not None
    assert fits(estimate, beside)
    monkeypatch.setattr(limits, "gpu_bytes_of_node", lambda: None)
    assert place_of(spec(resources={"gpus": 1}), tiny_folder) is None


def test_an_engine_that_sleeps_leaves_its_memory_for_updates_alone(tiny_folder: Path) -> None:
    """What stays between updates must fit beside the engine that is awake."""
    found = footprint(spec(), in_folder(tiny_folder), PROMPT, cuda=False)
    assert found is not None
    total = max(found.total, 2 * found.resident) + ASLEEP_BYTES
    beside = Place(cuda=True, total=total, engine=total - found.resident, engine_name="vllm", sleeps=True)
    assert fits(found, beside)
    assert not fits(found, replace(beside, sleeps=False))
    assert not fits(found, replace(beside, engine=beside.engine + 1))


def test_ranks_of_a_node_without_gpus_share_its_memory(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "total_bytes", lambda: 4 * GIB)
    rollout = {"engine": "transformers", "publish": "shm", "max_new_tokens": 4}
    alone, shared = (
        place_of(spec(rollout=rollout, resources={"cpu_ranks": ranks}), tiny_folder) for ranks in (1, 4)
    )
    assert alone is not None
    assert shared is not None
    assert 4 * shared.for_trainer == pytest.approx(alone.for_trainer, abs=8)


@pytest.mark.parametrize("name", ["q_pro", "embed_tokens", "lm_head", "input_layernorm"])
def test_layers_that_take_no_adapter_are_named(name: str, tiny_folder: Path) -> None:
    check_adapter(spec({"target_modules": ["q_proj", "down_proj"]}), tiny_folder)
    with pytest.raises(TrainingError, match=f"no linear layers named {name}$") as refused:
        check_adapter(spec({"target_modules": ["q_proj", name]}), tiny_folder)
    error = refused.value.error
    assert (error.code, error.path) == ("unknown_modules", "model.lora.target_modules")
    assert error.remedy is not None
    assert "q_proj" in error.remedy


def test_a_folder_that_cannot_be_read_is_an_unknown_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(TrainingError) as refused:
        check_adapter(spec({"target_modules": ["x"]}), tmp_path)
    assert refused.value.code == "unknown_model"


def test_rows_beyond_the_length_at_which_positions_change_are_refused(tmp_path: Path) -> None:
    rope: dict[str, object] = {"rope_type": "longrope", "original_max_position_embeddings": 4096}
    (tmp_path / "config.json").write_text(json.dumps({"rope_parameters": rope}))
    check_positions(tmp_path, 4097)  # the last token is never an input
    with pytest.raises(TrainingError, match="its positions change beyond 4096 tokens") as refused:
        check_positions(tmp_path, 4098)
    assert refused.value.code == "length_dependent_model"
    older = {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 2048}
    (tmp_path / "config.json").write_text(json.dumps(older))
    with pytest.raises(TrainingError, match="beyond 2048 tokens"):
        check_positions(tmp_path, 3000)
    (tmp_path / "config.json").write_text(json.dumps({"rope_parameters": {"rope_type": "yarn"}}))
    check_positions(tmp_path, 100_000)
