"""The base of every contract: unknown fields are refused, values do not change after validation."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from powermean.contracts.names import LABEL


class Contract(BaseModel):
    """A message or a piece of a job spec. Unknown fields are an error that names them."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def conflict(field: tuple[str | int, ...], why: str, value: object) -> ValidationError:
    """The error of two incompatible fields, located at one of them; raise it in a model's validator."""
    kind = PydanticCustomError("conflict", "{why}", {"why": why})
    return ValidationError.from_exception_data(
        ".".join(map(str, field)), [InitErrorDetails(type=kind, loc=field, input=value)]
    )


Name = Annotated[str, StringConstraints(min_length=1, max_length=120, pattern=r"^[^\x00-\x1f]+$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
LabelText = Annotated[str, Field(min_length=1, max_length=63, pattern=LABEL)]
Labels = Annotated[dict[LabelText, LabelText], Field(max_length=32)]  # of a node, such as zone -> a
