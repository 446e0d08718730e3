"""The parts of a trainer's peak follow the spec."""

from pathlib import Path

import pytest

from powermean.contracts.job import JobSpec
from tests.support.tiny_model import tiny_spec
from trainer.defaults import CPU_TOKENS, LEAST_GPU_TOKENS
from trainer.preflight.footprint import Footprint, footprint, micro_batch, precision_of
from trainer.preflight.model_facts import in_folder
from trainer.preflight.tensors import tensor_shapes

PROMPT = 8


def spec(model: dict[str, object] | None = None, **changes: object) -> JobSpec:
    return JobSpec.model_validate(tiny_spec("tiny") | {"model": {"folder": "tiny"} | (model or {})} | changes)


def of(job: JobSpec, folder: Path, *, cuda: bool) -> Footprint:
    found = footprint(job, in_folder(folder), PROMPT, cuda=cuda)
    assert found is not None
    return found


def numbers(folder: Path) -> int:
    total = 0
    for shape in tensor_shapes(folder).values():
        count = 1
        for one in shape:
            count *= one
        total += count
    return total


def test_weights_by_precision(tiny_folder: Path) -> None:
    """float32; autocast's copies beside it; bfloat16 with float32 masters; beta's initial model on top."""
    n = numbers(tiny_folder)
    assert of(spec(), tiny_folder, cuda=False).weights == 4 * n
    assert of(spec(), tiny_folder, cuda=True).weights == 6 * n
    masters = spec(training={"steps": 1, "weights": "bfloat16"})
    assert of(masters, tiny_folder, cuda=True).weights == 6 * n
    assert of(spec(algorithm={"name": "grpo", "beta": 0.1}), tiny_folder, cuda=False).weights == 8 * n


def test_an_adapter_has_gradients_and_moments_of_its_own_alone(tiny_folder: Path) -> None:
    full, adapter = (
        of(spec(), tiny_folder, cuda=False),
        of(spec({"lora": {"rank": 4}}), tiny_folder, cuda=False),
    )
    one = of(spec({"lora": {"rank": 4, "target_modules": ["q_proj"]}}), tiny_folder, cuda=False)
    assert full.moments == 8 * numbers(tiny_folder)
    assert adapter.moments < full.moments
    assert one.moments == 8 * 4 * (64 + 64) * 2  # rank, both widths, layers


def test_precision_is_what_the_trainer_runs_in() -> None:
    bfloat16 = {"steps": 1, "weights": "bfloat16"}
    assert precision_of(spec(), cuda=False) == "float32"
    assert precision_of(spec(), cuda=True) == "autocast"
    assert precision_of(spec({"dtype": "float32"}), cuda=True) == "float32"
    assert precision_of(spec({"dtype": "bfloat16"}, training=bfloat16), cuda=False) == "bfloat16"


def test_a_micro_batch_is_never_less_than_one_row_nor_more_than_the_minibatch() -> None:
    """Tokens of the prompt count once in a group."""
    job = {"steps": 1, "prompts_per_step": 4, "minibatches": 2}
    rollout = {"group_size": 8, "max_new_tokens": 4}
    group = PROMPT + 8 * 4
    assert micro_batch(spec(rollout=rollout, training=job), PROMPT, cuda=False) == (2 * group, True)
    tokens = job | {"micro_batch_tokens": 50}
    assert micro_batch(spec(rollout=rollout, training=tokens), PROMPT, cuda=False) == (50, False)
    tokens = job | {"micro_batch_tokens": 1}
    assert micro_batch(spec(rollout=rollout, training=tokens), PROMPT, cuda=False) == (PROMPT + 4, False)
    groups = job | {"micro_batch_groups": 1}
    assert micro_batch(spec(rollout=rollout, training=groups), PROMPT, cuda=False) == (group, False)
    long = {"group_size": 8, "max_new_tokens": 1000}
    assert micro_batch(spec(rollout=long, training=job), PROMPT, cuda=False) == (CPU_TOKENS, False)
    assert micro_batch(spec(rollout=long, training=job), PROMPT, cuda=True) == (LEAST_GPU_TOKENS, False)


@pytest.mark.parametrize("cuda", [False, True])
def test_checkpointing_keeps_a_layer_s_input_instead_of_its_activations(
    tiny_folder: Path, cuda: bool
) -> None:
    checkpointing = spec(training={"steps": 1, "gradient_checkpointing": True})
    plain = spec(training={"steps": 1})
    assert (
        of(checkpointing, tiny_folder, cuda=cuda).activations < of(plain, tiny_folder, cuda=cuda).activations
    )


def test_a_model_of_unknown_widths_has_no_estimate(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mystery"}')
    assert footprint(spec(), in_folder(tmp_path), PROMPT, cuda=False) is None
