"""JSON bodies: in UTF-8, every text in them Unicode, and large ones beside the event loop.

A thread alone would not keep the loop free, since json and pydantic hold the interpreter's lock for as long
as one call takes. So a large document is read in pieces, and pydantic calls back into Python for each row.
"""

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from pydantic_core import from_json
from starlette.concurrency import run_in_threadpool

from powermean.contracts.text import UnusableJsonError, read_json
from server.errors import InvalidInputError

LARGE = 2**20  # bytes; reading and checking so many takes some 100 ms

_SPACE = re.compile(r"[ \t\n\r]*")

Handle = Callable[[Request], Coroutine[Any, Any, Response]]


class JsonRequest(Request):
    """A request whose `json` says what is wrong with the text in it."""

    async def json(self) -> Any:
        """Raises json.JSONDecodeError, which FastAPI reports, or InvalidInputError."""
        if not hasattr(self, "_json"):
            body = await self.body()
            large = len(body) > LARGE
            self._json = await run_in_threadpool(parse_with, in_pieces, body) if large else parse(body)
        return self._json


def beside_the_loop(handle: Handle) -> Handle:
    """FastAPI checks bodies on the loop that it runs on: for a large one that is a loop of its own."""

    async def handle_beside(request: Request) -> Response:
        if isinstance(request, JsonRequest) and len(await request.body()) > LARGE:
            return await run_in_threadpool(lambda: asyncio.run(handle(request)))
        return await handle(request)

    return handle_beside


def parse(body: bytes) -> Any:
    """The document. Raises json.JSONDecodeError, or InvalidInputError for what JSON can't hold.

    pydantic's reader takes a quarter of the time; what it refuses is left to json, whose errors say more.
    """
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError:
        return parse_with(json.loads, body)


def parse_with(loads: Callable[..., Any], body: bytes) -> Any:
    """As `parse`, by this reader."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"the body is not UTF-8 (byte {error.start + 1})", remedy="Send JSON in UTF-8."
        ) from error
    try:
        return read_json(text, loads=loads)
    except UnusableJsonError as error:
        raise InvalidInputError.at(error.path or "body", str(error)) from error


def in_pieces(text: str, **options: Any) -> Any:
    """As json.loads, with a call for each item of the lists in the outermost object, and not one for all."""
    decoder = json.JSONDecoder(**options)
    end = _space(text, 0)
    if text[end : end + 1] != "{":
        return decoder.decode(text)
    found, end = _object(decoder, text, end)
    if (end := _space(text, end)) != len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return found


def _object(decoder: json.JSONDecoder, text: str, at: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    at = _space(text, at + 1)
    while text[at : at + 1] != "}":
        if text[at : at + 1] != '"':
            raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
        name, at = decoder.raw_decode(text, at)
        at = _after(":", text, at)
        if text[at : at + 1] == "[":
            found[name], at = _list(decoder, text, at)
        else:
            found[name], at = decoder.raw_decode(text, at)
        at = _next("}", text, at)
    return found, at + 1


def _list(decoder: json.JSONDecoder, text: str, at: int) -> tuple[list[Any], int]:
    found: list[Any] = []
    at = _space(text, at + 1)
    while text[at : at + 1] != "]":
        item, at = decoder.raw_decode(text, at)
        found.append(item)
        at = _next("]", text, at)
    return found, at + 1


def _next(close: str, text: str, at: int) -> int:
    """Where the next item is, or the end."""
    at = _space(text, at)
    if text[at : at + 1] == close:
        return at
    at = _after(",", text, at)
    if text[at : at + 1] == close:
        raise json.JSONDecodeError("Illegal trailing comma before end", text, at)
    return at


def _after(mark: str, text: str, at: int) -> int:
    at = _space(text, at)
    if text[at : at + 1] != mark:
        raise json.JSONDecodeError(f"Expecting '{mark}' delimiter", text, at)
    return _space(text, at + 1)


def _space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None  # it matches nothing, too
    return found.end()
