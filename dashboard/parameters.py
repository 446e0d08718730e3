"""Whole numbers from a page's address."""

from starlette.exceptions import HTTPException
from starlette.requests import Request


def whole_number(request: Request, name: str, least: int) -> int | None:
    """The query parameter, None where it is not given; anything but a whole number >= least is a 400."""
    text = request.query_params.get(name)
    if text is None or text == "":
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 15 or int(text) < least:
        raise HTTPException(400, f"{name} must be a whole number from {least} on, not '{text[:40]}'")
    return int(text)
