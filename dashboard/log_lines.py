"""Lines of a log: which are shown, and which contain what somebody looks for. Pure functions."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# An engine's line for each request that it answered, and httpx's for each that it sent; failures stay.
_REQUEST = re.compile(r'HTTP/[\d.]+"? [23]\d\d\b')


@dataclass(frozen=True)
class Match:
    """A line with its number, in three pieces: before what was found, that, and after it."""

    number: int
    before: str
    found: str
    after: str


def without_requests(text: str) -> str:
    """The text without the lines of HTTP requests that went well."""
    return "".join(line for line in text.splitlines(keepends=True) if not _REQUEST.search(line))


def complete(text: str) -> str:
    """The text up to its last line end; all of it if there is none."""
    return text[: text.rfind("\n") + 1] or text


def lines(parts: Iterable[str]) -> Iterator[str]:
    """Whole lines of a text that comes in parts."""
    rest = ""
    for part in parts:
        *whole, rest = (rest + part).split("\n")
        yield from whole
    if rest:
        yield rest


def search(parts: Iterable[str], wanted: str, requests: bool) -> Iterator[Match]:
    """The lines that contain `wanted`, in upper or lower case; `requests`: those of HTTP requests too."""
    pattern = re.compile(re.escape(wanted), re.IGNORECASE)
    for number, line in enumerate(lines(parts), 1):
        if (found := pattern.search(line)) and (requests or not _REQUEST.search(line)):
            yield Match(number, line[: found.start()], found[0], line[found.end() :])
