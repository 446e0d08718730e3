"""A spec as the database has it, which a version with other rules may have stored.

People are shown what this version can read of it. Whoever acts on a field asks for the value that was chosen.
"""

from collections.abc import Mapping
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from powermean.contracts.api import FieldError
from powermean.contracts.job import JobSpec
from powermean.field_errors import field_errors
from powermean.spec_yaml import SpecTextError, read_spec
from server.errors import ConflictError

C = TypeVar("C", bound=BaseModel)


class SpecRefusedError(ConflictError):
    """This version refuses a spec that another one stored."""

    code = "spec_refused"

    def __init__(self, first: FieldError) -> None:
        self.field = first.path  # as `path` it would be said twice: the message begins with it
        super().__init__(
            f"{first.path}: {first.message}: this version refuses the spec, which another one stored",
            remedy="Submit it again as a new job, corrected.",
        )


def chosen(given: Mapping[str, Any], path: str) -> Any:
    """One field or section, even if other fields are refused. Raises SpecRefusedError if this one is."""
    try:
        return attrgetter(path)(_only(path, JobSpec).model_validate(given))
    except ValidationError as error:
        raise SpecRefusedError(field_errors(error.errors(), given, JobSpec)[0]) from error


@cache
def _only(path: str, contract: Any) -> type[BaseModel]:
    """The contract with this one of its fields, and without the rules that go over several."""
    name, _, below = path.partition(".")
    field = contract.model_fields[name]
    kind = _only(below, field.annotation) if below else field.annotation
    fields: dict[str, Any] = {name: (kind, field)}
    return create_model(contract.__name__, __config__=ConfigDict(extra="ignore"), **fields)


def readable(given: Mapping[str, Any], contract: type[C]) -> tuple[C | None, tuple[FieldError, ...]]:
    """What this version can read, and what it refuses: that is left out, so it has its default.

    None where that has none. What is wrong only beside such a default says so.
    """
    own: list[FieldError] = []
    following: list[FieldError] = []
    at_default: list[str] = []
    data = given
    while True:
        try:
            return contract.model_validate(data), (*own, *following)
        except ValidationError as error:
            errors = error.errors()
        wrong = field_errors(errors, data, contract)
        known = field_errors([one for one in errors if one["type"] != "extra_forbidden"], data, contract)
        left_out = {one.path: there for one in wrong if (there := _there(data, one.path))}
        if at_default:
            following += [
                _beside(at_default, one, left_out[one.path]) for one in wrong if one.path in left_out
            ]
        else:
            own += [one for one in wrong if one not in own]
        if not left_out:
            return None, tuple(own)
        for path in left_out.values():
            data = _without(data, path.split("."))
        at_default += [left_out[one.path] for one in known if one.path in left_out]


def _beside(at_default: list[str], wrong: FieldError, left_out: str) -> FieldError:
    """An error of a spec in which other fields have their defaults instead of what was chosen."""
    if left_out != wrong.path:  # it lacks what has been left out, and goes itself
        return FieldError(path=left_out, message=f"all of it is left out, since {wrong.path} has no default")
    said = f"with the default of {', '.join(at_default)}: {wrong.message}"
    return wrong.model_copy(update={"message": said})


def is_same(stored: Mapping[str, Any], stored_text: str | None, spec: JobSpec, text: str) -> bool:
    """Whether the stored spec is what this one asks for, whichever version stored it.

    A field that the other version lacked has its default. One that this version lacks is in the stored spec,
    but not in the text.
    """
    if readable(stored, JobSpec) == (spec, ()):
        return True
    return stored_text is not None and _written(stored_text) == _written(text)


def _written(text: str) -> object:
    try:
        return read_spec(text).fields
    except SpecTextError:  # what came as JSON may be longer than a text may be
        return text


def most_restarts(given: Mapping[str, Any]) -> int:
    """`max_restarts`, whatever else of the spec is refused: the job has to end all the same."""
    return _number(given, "max_restarts", 0, JobSpec.model_fields["max_restarts"].default)


def minibatches(given: Mapping[str, Any]) -> int:
    """`training.minibatches`, with which the job has run, whatever else of the spec is refused."""
    return _number(given, "training.minibatches", 1, 1)


def updates_per_step(given: Mapping[str, Any]) -> int:
    """Values of a metric in a step, whatever else of the spec is refused."""
    return minibatches(given) * _number(given, "training.epochs", 1, 1)


def evaluated_every(given: Mapping[str, Any]) -> int:
    """`evaluation.every`, whatever else of the spec is refused; 0: there is none."""
    return _number(given, "evaluation.every", 0, 0)


def _number(given: Mapping[str, Any], path: str, least: int, otherwise: int) -> int:
    """A whole number as it is stored, also above what this version takes; `otherwise` if it is none."""
    value: Any = given
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= least else otherwise


def _there(part: Any, path: str) -> str:
    """The field, or what lacks it or has it as an item: an item of a list has no default, the list has."""
    found = []
    for name in path.split("."):
        if not isinstance(part, Mapping) or name not in part:
            break
        found.append(name)
        part = part[name]
    return ".".join(found)


def _without(part: Mapping[str, Any], path: list[str]) -> Mapping[str, Any]:
    name, *below = path
    if name not in part:  # it has gone with another one
        return part
    rest = {each: value for each, value in part.items() if each != name}
    return {**rest, name: _without(part[name], below)} if below else rest
