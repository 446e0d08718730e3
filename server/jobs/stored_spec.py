"""A spec as the database has it, which a version with other rules may have stored."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from pydantic import ValidationError

from powermean.contracts.api import FieldError
from powermean.contracts.job import JobSpec
from powermean.field_errors import field_errors
from server.errors import ConflictError


class SpecRefusedError(ConflictError):
    """This version refuses a spec that another one stored."""

    code = "spec_refused"

    def __init__(self, first: FieldError) -> None:
        super().__init__(
            f"{first.path}: {first.message}: this version refuses the spec, which another one stored",
            remedy="Submit it again as a new job, corrected.",
        )


def as_stored(given: Mapping[str, Any]) -> tuple[JobSpec, tuple[FieldError, ...]]:
    """The spec, and what of it is refused now: these fields are left out, so they have their defaults.

    Raises SpecRefusedError where there is no default.
    """
    refused: list[FieldError] = []
    data: Any = given
    while True:
        try:
            return JobSpec.model_validate(data), tuple(refused)
        except ValidationError as error:
            wrong = field_errors(error.errors(), data, JobSpec)
            data = deepcopy(data)
            left_out = [one for one in wrong if _left_out_with(data, one.path.split("."))]
            if not left_out:
                raise SpecRefusedError((*refused, *wrong)[0]) from error
            refused += left_out


def most_restarts(given: Mapping[str, Any]) -> int:
    """`max_restarts`, whatever else of the spec is refused: the job has to end all the same."""
    return int(given.get("max_restarts", JobSpec.model_fields["max_restarts"].default))


def evaluated_every(given: Mapping[str, Any]) -> int:
    """`evaluation.every`, whatever else of the spec is refused; 0: there is none."""
    return int(given.get("evaluation", {}).get("every", 0))


def _left_out_with(spec: Any, path: list[str]) -> bool:
    """Take out the field, or what it is a part of: an item of a list has no default, the list has."""
    return any(_left_out(spec, path[:length]) for length in range(len(path), 0, -1))


def _left_out(part: Any, path: list[str]) -> bool:
    """Take a field out of the spec, in place; False where it is not there."""
    *above, name = path
    for each in above:
        part = part.get(each) if isinstance(part, dict) else None
    if not isinstance(part, dict) or name not in part:
        return False
    del part[name]
    return True
