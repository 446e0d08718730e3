"""Text is Unicode: half of a surrogate pair can be written in JSON and held by Python, but never encoded."""

import re
from typing import Any

_HALF = re.compile("[\ud800-\udfff]")
_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")

_Place = tuple["_Place", str] | None  # the place around it, and the name or index in that


def may_break(json_text: str) -> bool:
    """Whether the text has an escape that may be half of a pair; the cheap question before `broken_at`."""
    return _ESCAPED_HALF.search(json_text) is not None


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
