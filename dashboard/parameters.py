"""What comes with a request: whole numbers in the address, and the fields of a form."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from powermean.calls import ApiError
from powermean.contracts.api import ErrorBody
from powermean.field_errors import field_errors

M = TypeVar("M", bound=BaseModel)

MOST_DIGITS = 15


def whole_number(request: Request, name: str, least: int) -> int | None:
    """The query parameter, or None if it is not given; anything but a whole number >= least is a 400."""
    text = request.query_params.get(name)
    if text is None or text == "":
        return None
    if not _is_number(text) or int(text) < least:
        raise HTTPException(400, f"{name} must be a whole number of at least {least}, not '{text[:40]}'")
    return int(text)


def path_number(request: Request, name: str) -> int:
    """A number in the path; anything else is a 404."""
    text = request.path_params[name]
    if not _is_number(text):
        raise HTTPException(404)
    return int(text)


def checked(contract: type[M], given: Mapping[str, Any]) -> M:
    """What a form says, as the API takes it. Raises ApiError, as the API would."""
    try:
        return contract.model_validate(given)
    except ValidationError as error:
        fields = tuple(field_errors(error.errors(include_url=False), given, contract))
        body = ErrorBody(code="invalid", message="Something is wrong in the form.", fields=fields)
        raise ApiError(422, body) from error


async def form_texts(request: Request, *names: str) -> dict[str, str]:
    """The form's fields by name; one that is missing or a file is empty."""
    form = await request.form(max_fields=20)
    return {name: value if isinstance(value := form.get(name), str) else "" for name in names}


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS
