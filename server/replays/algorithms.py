"""Builds the objective of a replay from a name and changed fields, or refuses it by field."""

from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue, TypeAdapter, ValidationError

from powermean.contracts.algorithms import AlgorithmSpec
from powermean.contracts.api import FieldError
from powermean.contracts.renaming import stored_names
from powermean.contracts.replays import OBJECTIVES, ReplayRequest
from powermean.field_errors import did_you_mean
from server.errors import InvalidInputError
from server.jobs.stored_spec import chosen

_READ: TypeAdapter[AlgorithmSpec] = TypeAdapter(AlgorithmSpec)
_CLIPS = (("clip_low", "clip_high"), ("epsilon_low", "epsilon_high"))
_NO_REPLAY = {
    "beta": "the KL penalty can't be replayed: the reference's log-probs are not recorded",
    "kl_target": "the KL penalty can't be replayed: the reference's log-probs are not recorded",
    "kl_horizon": "the KL penalty can't be replayed: the reference's log-probs are not recorded",
    "entropy_coefficient": "the entropy's gradient can't be replayed: the distributions are not recorded",
    "sampling_rounds": "a replay samples nothing: it uses the recorded trajectories",
}


def replayed_algorithm(spec: Mapping[str, Any], request: ReplayRequest) -> AlgorithmSpec:
    """The objective of the stored spec, or another one with its defaults, with the request's changes.

    Raises:
        InvalidInputError: naming `algorithm` or `set.<field>`, and what is valid instead.
        SpecRefusedError: this version refuses the recorded objective, beside which every replay is computed.
    """
    recorded: AlgorithmSpec = chosen(spec, "algorithm")
    name = request.algorithm or recorded.name
    if name not in OBJECTIVES:
        wrong = f"unknown algorithm {name!r}{did_you_mean(name, OBJECTIVES)}"
        raise InvalidInputError.at("algorithm", wrong, f"One of {', '.join(OBJECTIVES)}.")
    changed = _spelled_out(name, request.set)
    start: dict[str, Any] = recorded.model_dump(mode="json") if name == recorded.name else {"name": name}
    kept = {field: value for field, value in start.items() if not changed.keys() & stored_names(field)}
    try:
        found = _READ.validate_python(kept | changed)
    except ValidationError as error:
        raise _refused(name, error) from error
    corrects = found.importance_sampling_correction != "off"
    if corrects and chosen(spec, "rollout.old_policy") == "sampler":
        raise InvalidInputError.at(
            "set.importance_sampling_correction",
            "the job's rollout.old_policy is sampler: pi_old and pi_rollout are the same, every ratio is 1",
            "Leave it out.",
        )
    return found


def _spelled_out(name: str, changes: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """The changes with `clip` replaced by the two ends of the clip range; explicitly given ends win."""
    fields = _fields(name)
    known = {*fields, *OBJECTIVES[name].old_names, "clip"}
    unknown = [field for field in changes if field not in known]
    for field in unknown:
        if field in OBJECTIVES[name].model_fields and field in _NO_REPLAY:
            raise InvalidInputError.at(f"set.{field}", _NO_REPLAY[field], f"Leave it out. {_known(name)}")
    if unknown:
        wrong = [
            FieldError(
                path=f"set.{field}",
                message=f"{name} has no such field{did_you_mean(field, known)}",
                remedy=_known(name),
            )
            for field in unknown
        ]
        raise InvalidInputError(f"{wrong[0].path}: {wrong[0].message}", remedy=_known(name), fields=wrong)
    if "clip" not in changes:
        return changes
    ends = next((pair for pair in _CLIPS if pair[0] in fields), None)
    if ends is None:
        raise InvalidInputError.at("set.clip", f"{name} has no clip range with two ends", _known(name))
    given = {field: value for field, value in changes.items() if field != "clip"}
    return dict.fromkeys(ends, changes["clip"]) | given


def _fields(name: str) -> tuple[str, ...]:
    """The fields that can be changed, the objective's own first."""
    fields = [field for field in OBJECTIVES[name].model_fields if field not in (*_NO_REPLAY, "name")]
    return tuple(sorted(fields, key=lambda field: field.startswith("importance_sampling_")))


def _known(name: str) -> str:
    return f"Fields of {name}: {', '.join(_fields(name))}."


def _refused(name: str, error: ValidationError) -> InvalidInputError:
    fields = []
    for wrong in error.errors(include_url=False):
        place = [str(part) for part in wrong["loc"][1:2]]  # the first part is the objective's name
        missing = wrong["type"] == "missing" and len(wrong["loc"]) == 2
        fields.append(
            FieldError(
                path=".".join(["set", *place]),
                message=f"{name} needs it" if missing else wrong["msg"],
                remedy=f"Give it a value, as in {place[0]}=0.5." if missing else _known(name),
            )
        )
    return InvalidInputError(f"{fields[0].path}: {fields[0].message}", remedy=fields[0].remedy, fields=fields)
