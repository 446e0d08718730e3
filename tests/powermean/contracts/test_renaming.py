"""Renamed fields: read under either name, answered under both, stored under the new one."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from powermean.contracts.algorithms import Pmpo
from powermean.contracts.job import JobSpec
from powermean.contracts.renaming import RenamedFields, old_names_used
from powermean.contracts.replays import OBJECTIVES
from powermean.contracts.staleness import StalenessRow
from powermean.contracts.trajectories import Trajectory, TrajectoryRow
from powermean.deprecations import FIELDS
from tests.support.reports import trajectory
from tests.support.sample_staleness import sample_staleness
from tests.support.tiny_model import tiny_spec

SAMPLES: dict[type[RenamedFields], dict[str, Any]] = {
    Pmpo: {"importance_sampling_correction": "token", "importance_sampling_clip_max": 3.0},
    Trajectory: trajectory(0)
    | {
        "importance_sampling_ratio": 1.5,
        "sequence_importance_sampling_ratio": 2.5,
        "applied_importance_sampling_ratio": 1.25,
        "staleness": 2,
    },
    StalenessRow: sample_staleness(2).rows[0].model_dump() | {"applied_importance_sampling_ratio": 1.25},
}
RENAMED = [(model, old, new) for model in SAMPLES for old, new in model.old_names.items()]


def under_old_names(model: type[RenamedFields], data: dict[str, Any]) -> dict[str, Any]:
    old = {new: old for old, new in model.old_names.items()}
    return {old.get(name, name): value for name, value in data.items()}


def spec(**algorithm: Any) -> dict[str, Any]:
    return tiny_spec("tiny", algorithm={"name": "pmpo", **algorithm})


def test_every_name_of_the_table_is_a_field() -> None:
    assert {(one.old, one.new) for one in FIELDS} == {(old, new) for _, old, new in RENAMED}
    assert TrajectoryRow.old_names.items() < Trajectory.old_names.items()
    assert all(model.old_names == Pmpo.old_names for model in OBJECTIVES.values())


@pytest.mark.parametrize("model", SAMPLES)
def test_old_names_are_read_and_the_new_ones_are_stored(model: type[RenamedFields]) -> None:
    data = SAMPLES[model]
    old = under_old_names(model, data)
    assert old.keys() != data.keys()
    found = model.model_validate(old)
    assert found == model.model_validate(data)
    assert found == model.model_validate_json(found.model_dump_json())
    assert not model.old_names.keys() & found.model_dump().keys()


@pytest.mark.parametrize("model", SAMPLES)
def test_an_answer_has_both_names_and_can_be_sent_back(model: type[RenamedFields]) -> None:
    found = model.model_validate(SAMPLES[model])
    answer = found.model_dump(mode="json", by_alias=True)
    assert all(answer[old] == answer[new] for old, new in model.old_names.items())
    assert answer.keys() == model.model_json_schema(mode="serialization")["properties"].keys()
    assert model.model_validate(answer) == found


def test_a_nested_answer_has_both_names() -> None:
    found = JobSpec.model_validate(spec(importance_sampling_correction="token"))
    assert found.model_dump(by_alias=True)["algorithm"]["sampler_weight"] == "token"
    assert "sampler_weight" not in found.model_dump()["algorithm"]
    assert found.model_dump(by_alias=True, exclude_unset=True)["algorithm"] == {
        "name": "pmpo",
        "importance_sampling_correction": "token",
        "sampler_weight": "token",
    }


@pytest.mark.parametrize(("model", "old", "new"), RENAMED)
def test_the_schema_marks_the_old_name(model: type[RenamedFields], old: str, new: str) -> None:
    for mode in ("validation", "serialization"):
        schema = model.model_json_schema(mode=mode)
        fields = schema["properties"]
        assert fields[old]["deprecated"]
        assert fields[old]["description"] == f"Old name of `{new}`, until 1.0."
        assert "deprecated" not in fields[new]
        assert old not in schema.get("required", ())


@pytest.mark.parametrize(("model", "old", "new"), RENAMED)
def test_the_old_attribute_is_read_with_a_warning(model: type[RenamedFields], old: str, new: str) -> None:
    found = model.model_validate(SAMPLES[model])
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}") as told:
        assert getattr(found, old) == getattr(found, new)
    assert told[0].filename == __file__


@pytest.mark.parametrize(
    ("algorithm", "path", "message"),
    [
        ({"sampler_weight": "group"}, "sampler_weight", "Input should be 'off'"),
        ({"sampler_weight_cap": 0.5}, "sampler_weight_cap", "greater than or equal to 1"),
        ({"sampler_weights": "off"}, "sampler_weights", "Extra inputs are not permitted"),
        (
            {"sampler_weight": "token", "importance_sampling_correction": "off"},
            "sampler_weight",
            "is the old name of importance_sampling_correction, which is given too",
        ),
    ],
)
def test_mistakes_are_told_where_they_were_made(algorithm: dict[str, Any], path: str, message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        JobSpec.model_validate(spec(**algorithm))
    (found,) = refused.value.errors()
    assert found["loc"] == ("algorithm", "pmpo", path)
    assert message in found["msg"]


def test_old_names_in_a_request_are_found_with_their_place() -> None:
    def used(model: BaseModel, data: object) -> list[tuple[str, str]]:
        return [(one.path, one.replacement) for one in old_names_used(model, data)]

    both = [
        ("algorithm.sampler_weight", "algorithm.importance_sampling_correction"),
        ("algorithm.sampler_weight_cap", "algorithm.importance_sampling_clip_max"),
    ]
    data = spec(sampler_weight="token", sampler_weight_cap=3)
    found = JobSpec.model_validate(data)
    assert used(found, data) == both
    assert next(old_names_used(found, data)).message == (
        "algorithm.sampler_weight is now algorithm.importance_sampling_correction; "
        "the old name works until 1.0"
    )
    assert used(found, spec(importance_sampling_correction="token")) == []
    assert used(found, found.model_dump(by_alias=True)) == []  # an answer that comes back
    assert used(found, None) == used(found, {"algorithm": 1}) == []
