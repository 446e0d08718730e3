"""The job spec: what fits together, and what YAML and JSON may write for it."""

from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from powermean.contracts.engines import EngineSpec
from powermean.contracts.job import JobSpec
from tests.support.tiny_model import tiny_spec

SHARDED = tiny_spec("tiny")["training"] | {"parallel": "shard"}  # type: ignore[operator]


def faults(**changes: Any) -> list[tuple[tuple[str | int, ...], str]]:
    """Where and what of each error of the tiny spec with these parts replaced."""
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(tiny_spec("tiny", **changes))
    return [(error["loc"], error["msg"]) for error in caught.value.errors()]


@pytest.mark.parametrize("buffer", [64, 65])
def test_a_length_penalty_must_leave_room_below_it(buffer: int) -> None:
    algorithm, rollout = {"name": "dapo", "overlong_buffer": buffer}, {"max_new_tokens": 64}
    ((path, message),) = faults(algorithm=algorithm, rollout=rollout)
    assert path == ("algorithm", "overlong_buffer")
    assert "rollout.max_new_tokens (64)" in message
    fits = tiny_spec("tiny", algorithm=algorithm, rollout={"max_new_tokens": buffer + 1})
    assert JobSpec.model_validate(fits).rollout.max_new_tokens == buffer + 1


@pytest.mark.parametrize(
    ("publish", "spec", "why"),
    [
        ("gloo", {"rollout": {"engine": "transformers"}}, "rollout.engine is transformers"),
        ("ipc", {"rollout": {"engine": "transformers"}, "resources": {"gpus": 1}}, "is transformers"),
        ("gloo", {"model": {"folder": "tiny", "lora": {}}}, "model.lora trains an adapter"),
        ("gloo", {"resources": {"gpus": 1}}, "gloo is for CPUs"),
        ("nccl", {}, "nccl is for GPUs and resources.gpus is 0"),
        ("ipc", {}, "ipc is for GPUs and resources.gpus is 0"),
        ("nccl", {"resources": {"gpus": 1}}, "set resources.placement to split, or use ipc"),
        ("ipc", {"resources": {"gpus": 1, "placement": "split"}}, "placement is split: use nccl"),
        ("shm", {"resources": {"nodes": 2}}, "resources.nodes is above 1: use auto or store"),
        (
            *("nccl", {"resources": {"gpus": 2, "placement": "split"}, "training": SHARDED}),
            "training.parallel is shard: use auto, shm or store",
        ),
        ("ipc", {"resources": {"gpus": 2}, "training": SHARDED}, "training.parallel is shard"),
    ],
)
def test_a_channel_fits_what_it_goes_between(publish: str, spec: dict[str, object], why: str) -> None:
    rollout = spec.get("rollout", {}) | {"publish": publish}  # type: ignore[operator]
    ((path, message),) = faults(**spec | {"rollout": rollout})
    assert path == ("rollout", "publish")
    assert why in message


def test_a_shared_engine_is_one_for_all_nodes_and_a_rank_alone_has_the_whole_model() -> None:
    shared = {"publish": "shm", "sharing": "shared"}
    model = {"folder": "tiny", "lora": {}}
    JobSpec.model_validate(tiny_spec("tiny", rollout=shared, model=model, resources={"nodes": 2}))
    alone = {"gpus": 1, "placement": "split"}
    JobSpec.model_validate(tiny_spec("tiny", rollout={"publish": "nccl"}, resources=alone, training=SHARDED))


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"rollout": {"engine": "vllm"}}, "rollout.engine is vllm"),
        ({"rollout": {"engine": "auto"}}, "rollout.engine is auto: set it to transformers"),
        ({"resources": {"gpus": 1}}, "resources.gpus is above 0"),
        ({"model": {"folder": "tiny", "lora": {}}}, "model.lora trains an adapter"),
        ({"rollout": {"max_staleness": 1}}, "rollout.max_staleness is above 0"),
        ({"model": {"folder": "tiny", "dtype": "bfloat16"}}, "is bfloat16, training.weights float32"),
    ],
)
def test_weights_are_sampled_in_place_where_there_is_one_copy_of_them(
    spec: dict[str, object], why: str
) -> None:
    own = {"publish": "in_place", "engine": "transformers"} | spec.get("rollout", {})  # type: ignore[operator]
    ((path, message),) = faults(**spec | {"rollout": own})
    assert path == ("rollout", "publish")
    assert why in message


@pytest.mark.parametrize(("dtype", "weights"), [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_weights_of_one_type_on_a_cpu_may_be_sampled_in_place(dtype: str, weights: str) -> None:
    spec = tiny_spec("tiny", rollout={"publish": "in_place", "engine": "transformers"})
    spec["model"] = {"folder": "tiny", "dtype": dtype}
    spec["training"] = spec["training"] | {"weights": weights}  # type: ignore[operator]
    assert JobSpec.model_validate(spec).in_place_objection is None


@pytest.mark.parametrize(
    ("publish", "resources"),
    [
        ("gloo", {"gpus": 0}),
        ("ipc", {"gpus": 1}),
        ("nccl", {"gpus": 1, "placement": "split"}),
        ("shm", {"gpus": 1}),
        ("shm", {"gpus": 1, "placement": "split"}),
        ("store", {"gpus": 0}),
    ],
)
def test_ways_of_publishing_that_fit_are_taken(publish: str, resources: dict[str, object]) -> None:
    fits = tiny_spec("tiny", rollout={"publish": publish}, resources=resources)
    assert JobSpec.model_validate(fits).rollout.publish == publish


def test_only_gpus_are_split_between_trainer_and_engine() -> None:
    ((path, message),) = faults(resources={"placement": "split"})
    assert path == ("resources", "placement")
    assert "set gpus to at least 1" in message
    split = tiny_spec("tiny", resources={"gpus": 2, "placement": "split"}, rollout={"replicas": 2})
    assert JobSpec.model_validate(split).rollout_gpus == 2
    assert JobSpec.model_validate(tiny_spec("tiny", resources={"gpus": 2})).rollout_gpus == 0


@pytest.mark.parametrize("staleness", [4, 5])
def test_sampling_runs_ahead_of_no_more_steps_than_there_are(staleness: int) -> None:
    ((path, message),) = faults(rollout={"max_staleness": staleness}, training={"steps": 4})
    assert path == ("rollout", "max_staleness")
    assert "training.steps (4)" in message
    fits = tiny_spec("tiny", rollout={"max_staleness": 3}, training={"steps": 4})
    assert JobSpec.model_validate(fits).rollout.max_staleness == 3


@pytest.mark.parametrize(("device", "gpus"), [("cuda", 0), ("cpu", 1)])
def test_a_device_needs_the_resources_for_it(device: str, gpus: int) -> None:
    ((path, message),) = faults(model={"folder": "tiny", "device": device}, resources={"gpus": gpus})
    assert path == ("resources", "gpus")
    assert device in message


@pytest.mark.parametrize("kind", ["token", "sequence", "sequence_mean"])
def test_a_ratio_that_holds_the_engines_difference_needs_no_correction_for_it(kind: str) -> None:
    rollout = {"old_policy": "sampler"}
    algorithm = {"name": "pmpo", "importance_sampling_correction": kind}
    ((path, message),) = faults(algorithm=algorithm, rollout=rollout)
    assert path == ("algorithm", "importance_sampling_correction")
    assert "rollout.old_policy" in message
    spec = JobSpec.model_validate(tiny_spec("tiny", rollout=rollout))
    assert spec.algorithm.importance_sampling_correction == "off"


@pytest.mark.parametrize("value", ["3", True, 3.5])
def test_a_count_is_a_number_and_nothing_like_it(value: object) -> None:
    assert [path for path, _ in faults(training={"steps": value})] == [("training", "steps")]


def test_a_list_is_a_pair_and_a_whole_number_a_float() -> None:
    spec = JobSpec.model_validate(
        tiny_spec("tiny", optimizer={"learning_rate": 1, "betas": [0, 0.95], "max_grad_norm": 1})
    )
    assert (spec.optimizer.learning_rate, spec.optimizer.betas) == (1.0, (0.0, 0.95))
    assert isinstance(spec.optimizer.learning_rate, float)


def models_of(kind: Any) -> set[type[BaseModel]]:
    """The models in a type, with all that are in their fields."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        inner = [models_of(field.annotation) for field in kind.model_fields.values()]
        return {kind}.union(*inner)
    return set[type[BaseModel]]().union(*(models_of(part) for part in get_args(kind)))


def is_number(kind: Any) -> bool:
    return kind in (int, float) or any(is_number(part) for part in get_args(kind))


NUMBERS = [
    (model, name)
    for model in sorted(models_of(JobSpec) | models_of(EngineSpec), key=lambda model: model.__name__)
    for name, field in model.model_fields.items()
    if is_number(field.annotation)
]


@pytest.mark.parametrize(("model", "name"), NUMBERS, ids=lambda part: getattr(part, "__name__", part))
@pytest.mark.parametrize("value", [True, "1", [True, True], ["1", "1"]], ids=str)
def test_a_boolean_or_a_text_is_no_number(model: type[BaseModel], name: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate({name: value})
    assert name in [error["loc"][0] for error in caught.value.errors()]


def test_a_rank_for_each_gpu_leaves_none_to_ask_for() -> None:
    ((path, message),) = faults(resources={"gpus": 2, "cpu_ranks": 2})
    assert path == ("resources", "cpu_ranks")
    assert "leave it out" in message


@pytest.mark.parametrize(
    ("resources", "ranks"),
    [({}, 1), ({"cpu_ranks": 4}, 4), ({"gpus": 8, "nodes": 2}, 16), ({"nodes": 2, "cpu_ranks": 2}, 4)],
)
def test_ranks_of_a_job(resources: dict[str, object], ranks: int) -> None:
    assert JobSpec.model_validate(tiny_spec("tiny", resources=resources)).resources.ranks == ranks


@pytest.mark.parametrize(
    ("resources", "path", "why"),
    [
        ({"gpu_type": "H100"}, ("resources", "gpu_type"), "gpus is 0: set gpus to 1"),
        ({"gpu_memory_gib": 40.0}, ("resources", "gpu_memory_gib"), "gpus is 0: set gpus to 1"),
        ({"gpus": 1, "gpu_memory_gib": 0.0}, ("resources", "gpu_memory_gib"), "greater than 0"),
        ({"gpus": 1, "gpu_type": ""}, ("resources", "gpu_type"), "at least 1 character"),
        ({"node_labels": {"zone": ""}}, ("resources", "node_labels", "zone"), "at least 1 character"),
        ({"node_labels": {"zone": "a b"}}, ("resources", "node_labels", "zone"), "pattern"),
        ({"node_labels": {"zone": 3}}, ("resources", "node_labels", "zone"), "valid string"),
    ],
)
def test_what_is_asked_of_nodes_and_gpus_must_make_sense(
    resources: dict[str, object], path: tuple[str, ...], why: str
) -> None:
    ((where, message),) = faults(resources=resources)
    assert where == path
    assert why in message


def test_labels_go_with_a_cpu_slot_too() -> None:
    spec = JobSpec.model_validate(tiny_spec("tiny", resources={"node_labels": {"zone": "a"}}))
    assert spec.resources.node_labels == {"zone": "a"}


@pytest.mark.parametrize(
    ("spec", "path", "why"),
    [
        ({"rollout": {"gpus_per_replica": 2}}, "gpus_per_replica", "resources.gpus is 0"),
        (
            {"rollout": {"gpus_per_replica": 2, "engine": "transformers"}, "resources": {"gpus": 2}},
            *("gpus_per_replica", "which has one GPU"),
        ),
        (
            {"rollout": {"replicas": 3, "gpus_per_replica": 2}, "resources": {"gpus": 4}},
            *("replicas", "3 replicas of 2 GPUs need more than the trainer's"),
        ),
        (
            {"rollout": {"gpus_per_replica": 4}, "resources": {"gpus": 2}},
            *("gpus_per_replica", "resources.gpus is 2"),
        ),
        (
            {"model": {"folder": "tiny", "lora": {}}, "rollout": {"replicas": 2, "sharing": "shared"}},
            *("replicas", "rollout.sharing is shared"),
        ),
        ({"rollout": {"replicas": 2, "publish": "ipc"}, "resources": {"gpus": 2}}, "publish", "have several"),
        (
            {"rollout": {"replicas": 2, "publish": "in_place", "engine": "transformers"}},
            *("publish", "in_place is for one engine"),
        ),
        (
            {"rollout": {"publish": "in_place", "engine": "transformers"}, "resources": {"nodes": 2}},
            *("publish", "in_place is for one engine"),
        ),
    ],
)
def test_engines_have_gpus_of_their_own(spec: dict[str, object], path: str, why: str) -> None:
    ((where, message),) = faults(**spec)
    assert where == ("rollout", path)
    assert why in message


@pytest.mark.parametrize(
    ("rollout", "resources", "gpus"),
    [
        ({"replicas": 2, "gpus_per_replica": 2}, {"gpus": 4}, 0),
        ({"replicas": 2, "gpus_per_replica": 2}, {"gpus": 1, "placement": "split"}, 4),
        ({"replicas": 3}, {}, 0),
    ],
)
def test_gpus_of_the_engines_own(rollout: dict[str, object], resources: dict[str, object], gpus: int) -> None:
    assert (
        JobSpec.model_validate(tiny_spec("tiny", rollout=rollout, resources=resources)).rollout_gpus == gpus
    )


@pytest.mark.parametrize(
    ("spec", "path", "why"),
    [
        ({"optimizer": {"final_learning_rate_ratio": 0.1}}, "optimizer", "set that to linear or cosine"),
        ({"checkpoints": {"best_is": "lowest"}}, "checkpoints", "name a metric there"),
        ({"checkpoints": {"best": "eval/rewrd"}}, "checkpoints", "did you mean eval/reward?"),
        ({"checkpoints": {"best": "loss"}}, "checkpoints", "it is measured in each update"),
        (
            {"checkpoints": {"best": "reward", "every": 4}, "training": {"steps": 4}},
            *("checkpoints", "no checkpoint is saved before the last step (4)"),
        ),
        (
            {
                "rollout": {"publish": "in_place", "engine": "transformers"},
                "resources": {"cpu_ranks": 2},
                "training": SHARDED,
            },
            *("rollout", "training.parallel is shard: use auto, shm or store"),
        ),
    ],
)
def test_what_has_no_effect_is_refused_with_what_to_change(spec: dict[str, Any], path: str, why: str) -> None:
    ((where, message),) = faults(**spec)
    assert where[0] == path
    assert why in message
