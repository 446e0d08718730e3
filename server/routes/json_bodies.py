"""JSON bodies: in UTF-8, and every text in them Unicode."""

from typing import Any

from fastapi import Request

from powermean.contracts.text import UnusableJsonError, read_json
from server.errors import InvalidInputError


class JsonRequest(Request):
    """A request whose `json` says what is wrong with the text in it."""

    async def json(self) -> Any:
        """Raises json.JSONDecodeError, which FastAPI reports, or InvalidInputError.

        Parsed on the event loop: in a thread it would stop the loop too, since json keeps the interpreter's
        lock. What bounds the time is the size that the caller may send.
        """
        if not hasattr(self, "_json"):
            self._json = parse(await self.body())
        return self._json


def parse(body: bytes) -> Any:
    """The document. Raises json.JSONDecodeError, or InvalidInputError for what JSON can't hold."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"the body is not UTF-8 (byte {error.start + 1})", remedy="Send JSON in UTF-8."
        ) from error
    try:
        return read_json(text)
    except UnusableJsonError as error:
        raise InvalidInputError.at(error.path or "body", str(error)) from error
