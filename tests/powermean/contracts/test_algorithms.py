"""Specs refuse what cannot mean anything, and name the field."""

import pytest
from pydantic import TypeAdapter, ValidationError

from powermean.contracts.algorithms import AlgorithmSpec
from powermean.contracts.replays import OBJECTIVES

SPEC: TypeAdapter[AlgorithmSpec] = TypeAdapter(AlgorithmSpec)
NAMES = list(OBJECTIVES)


def minimal(name: str) -> dict[str, object]:
    return {"name": name, "p": 0.5} if name == "power_mean" else {"name": name}


@pytest.mark.parametrize("name", NAMES)
def test_every_name_has_defaults_and_survives_json(name: str) -> None:
    spec = SPEC.validate_python(minimal(name))
    assert spec.name == name
    assert SPEC.validate_json(SPEC.dump_json(spec)) == spec


@pytest.mark.parametrize("name", NAMES)
def test_every_field_is_documented_and_bounded(name: str) -> None:
    spec = SPEC.validate_python(minimal(name))
    assert type(spec).__doc__
    schema = type(spec).model_json_schema()
    for field, facts in schema["properties"].items():
        if field == "name":
            continue
        assert facts.get("description"), field
        limits = str(facts)
        assert "enum" in limits or ("imum" in limits and "aximum" in limits.replace("exclusiveM", "m")), field


@pytest.mark.parametrize("name", NAMES)
def test_unknown_fields_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        SPEC.validate_python(minimal(name) | {"clip": 0.2})


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"name": "pmpo", "clip_high": 0}, "clip_high"),
        ({"name": "pmpo", "clip_low": 21}, "clip_low"),
        ({"name": "pmpo", "clip_fraction_full": 0}, "clip_fraction_full"),
        ({"name": "pmpo", "clip_fraction_full": 1.5}, "clip_fraction_full"),
        ({"name": "pmpo", "ess_target": "linear"}, "ess_target"),
        ({"name": "pmpo", "ess_clip_range": [0.2]}, "ess_clip_range"),
        ({"name": "pmpo", "ess_clip_range": [0.2, -0.2]}, "ess_clip_range"),
        ({"name": "pmpo", "ess_clip_range": [0.2, 21]}, "ess_clip_range"),
        ({"name": "pmpo", "clip_fraction": "both"}, "clip_fraction"),
        ({"name": "pmpo", "p": 0.5}, "p"),
        ({"name": "gmpo", "clip_low": "wide"}, "clip_low"),
        ({"name": "grpo", "epsilon_low": 1.0}, "epsilon_low"),
        ({"name": "grpo", "epsilon_high": float("inf")}, "epsilon_high"),
        ({"name": "grpo", "beta": -0.1}, "beta"),
        ({"name": "power_mean"}, "p"),
        ({"name": "power_mean", "p": 9}, "p"),
        ({"name": "power_mean", "p": float("nan")}, "p"),
        ({"name": "power_mean", "p": "half"}, "p"),
        ({"name": "holder", "p_start": -20}, "p_start"),
        ({"name": "holder", "p_end": 8.1}, "p_end"),
        ({"name": "holder", "p_end": float("-inf")}, "p_end"),
        ({"name": "dapo", "overlong_buffer": -1}, "overlong_buffer"),
        ({"name": "cispo", "ratio_cap": 1}, "ratio_cap"),
        ({"name": "apmpo", "delta": 0}, "delta"),
        ({"name": "apmpo", "reward_decay": -0.8}, "reward_decay"),
        ({"name": "grpo", "importance_sampling_correction": "group"}, "importance_sampling_correction"),
    ],
)
def test_out_of_bounds_names_the_field(spec: dict[str, object], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SPEC.validate_python(spec)
    assert any(field in error["loc"] for error in caught.value.errors())


@pytest.mark.parametrize(
    ("name", "field"),
    [
        *(
            (name, field)
            for name in ("pmpo", "gmpo", "power_mean")
            for field in ("epsilon_low", "epsilon_high")
        ),
        *((name, field) for name in ("holder", "gspo") for field in ("clip_low", "clip_high")),
        ("apmpo", "epsilon_high"),
        ("cispo", "epsilon_high"),
    ],
)
def test_the_clip_of_another_kind_is_refused(name: str, field: str) -> None:
    """A range of ratios, as sequence clips have, means nothing to a token clip in log space; nor back."""
    with pytest.raises(ValidationError) as caught:
        SPEC.validate_python(minimal(name) | {field: 0.2})
    assert [(error["loc"], error["type"]) for error in caught.value.errors()] == [
        ((name, field), "extra_forbidden")
    ]


def test_an_unknown_algorithm_lists_the_known_ones() -> None:
    with pytest.raises(ValidationError) as caught:
        SPEC.validate_python({"name": "ppo"})
    assert all(name in str(caught.value) for name in NAMES)


def test_apmpos_range_must_stay_positive() -> None:
    with pytest.raises(ValidationError, match="below 1"):
        SPEC.validate_python({"name": "apmpo", "epsilon_base": 0.6, "epsilon_amplitude": 0.5})
    with pytest.raises(ValidationError, match="must not exceed"):
        SPEC.validate_python({"name": "apmpo", "epsilon_amplitude": 0.3})


def test_specs_do_not_change_after_validation() -> None:
    spec = SPEC.validate_python({"name": "pmpo"})
    with pytest.raises(ValidationError, match="frozen"):
        spec.clip_low = 0.1  # type: ignore[misc]
