"""JSON and text from outside: what Python's reader takes and nothing behind it can hold is refused here.

Half of a surrogate pair can be written in JSON and held by Python, but never encoded; NaN is no JSON at all.
"""

import json
import re
from collections.abc import Callable
from typing import Any

_HALF = re.compile("[\ud800-\udfff]")
_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")

_Place = tuple["_Place", str] | None  # the place around it, and the name or index in that


class UnusableJsonError(ValueError):
    """JSON that can't be taken; `path` is the dotted place, if one is known."""

    def __init__(self, message: str, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path


def read_json(
    text: str,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
    number: Callable[[str], float] | None = None,
    loads: Callable[..., Any] = json.loads,
) -> Any:
    """The document; `pairs` makes its objects, `number` what has a point or an exponent; `loads` reads it.

    Raises json.JSONDecodeError or UnusableJsonError.
    """
    try:
        found = loads(text, parse_constant=_refuse, object_pairs_hook=pairs, parse_float=number)
    except (json.JSONDecodeError, UnusableJsonError):
        raise
    except RecursionError as error:
        raise UnusableJsonError("nested too deeply") from error
    except ValueError as error:  # Python's limit for integers
        raise UnusableJsonError("a number has too many digits") from error
    if _ESCAPED_HALF.search(text) and (where := broken_at(found)) is not None:
        raise UnusableJsonError("half of a surrogate pair is no character", where)
    return found


def _refuse(name: str) -> None:
    raise UnusableJsonError(f"{name} is not JSON")


def broken_at(value: Any) -> str | None:
    """Dotted path of the first name or text that is not Unicode; None if there is none. Linear, any depth."""
    todo: list[tuple[_Place, Any]] = [(None, value)]
    while todo:
        place, here = todo.pop()
        if isinstance(here, str) and _HALF.search(here):
            return _dotted(place)
        if isinstance(here, dict):
            for name in here:
                if _HALF.search(name):
                    return _dotted((place, name))
            todo.extend(((place, name), inner) for name, inner in reversed(here.items()))
        elif isinstance(here, list):
            todo.extend(((place, str(at)), here[at]) for at in reversed(range(len(here))))
    return None


def mended(text: str) -> str:
    """The text with U+FFFD for what is not Unicode."""
    return _HALF.sub("\ufffd", text)


def _dotted(place: _Place) -> str:
    names: list[str] = []
    while place is not None:
        place, name = place
        names.append(mended(name))
    return ".".join(reversed(names))
