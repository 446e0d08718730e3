"""Rows of a JSONL dataset and the prompt templates they fill; the server and nodes use the same rules."""

import json
import re
from collections import Counter
from collections.abc import Collection
from typing import Any

from powermean.contracts.text import UnusableJsonError, read_json

Row = dict[str, Any]
Span = tuple[int, int]  # start and end within a text

MAX_NESTING = 64  # of lists and objects within a row

_BRACE = re.compile("[{}]")


class TemplateError(ValueError):
    """A prompt template that can't be read."""


class WrittenNumber(float):
    """A number that keeps its text: 1e-07, 1e999 and 2.50 stand in prompts and answers as in the file."""

    def __new__(cls, text: str) -> "WrittenNumber":
        number = super().__new__(cls, text)
        number.text = text
        return number

    text: str


class JsonlError(ValueError):
    """A line of a dataset that can't be used. Lines count from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line
        self.message = message


def check_line(number: int, raw: bytes | str, required: Collection[str] = ()) -> Row:
    """The row of one line. Raises JsonlError unless it is a JSON object with every field of `required`.

    Empty lines are refused too, so that line numbers are row numbers. So are NaN and infinities, which are
    not JSON, duplicate fields, and text that is not Unicode. Numbers with a point or an exponent are
    WrittenNumber.
    """
    try:
        text = raw.decode("utf-8") if isinstance(raw, bytes) else raw
    except UnicodeDecodeError as error:
        raise JsonlError(number, f"not UTF-8 (byte {error.start + 1} of the line)") from error
    if not text.strip():
        raise JsonlError(number, "empty line; remove it")
    try:
        row = read_json(text, _unique, WrittenNumber)
    except json.JSONDecodeError as error:
        raise JsonlError(number, f"not JSON: {error.msg} at column {error.colno}") from error
    except UnusableJsonError as error:
        where = f"field {error.path!r}: " if error.path else ""
        raise JsonlError(number, f"not usable: {where}{error}") from error
    if not isinstance(row, dict):
        raise JsonlError(number, f"not a JSON object but {_kind(row)}")
    if _is_deeper(row, MAX_NESTING):
        raise JsonlError(number, "not usable: nested too deeply")
    for field in required:
        if row.get(field) is None:
            what = "null in field" if field in row else "no field"
            raise JsonlError(number, f"{what} {field!r}{_known(row)}")
    return row


def template_fields(template: str) -> set[str]:
    """Names of the fields in a template. Raises TemplateError if a brace has no partner."""
    return {text for is_field, text in _pieces(template) if is_field}


def render(template: str, row: Row) -> str:
    """The template with each {field} replaced by the row's value.

    Strings and numbers are inserted as they are, everything else as JSON. Raises TemplateError for a missing
    field.
    """
    return render_with_spans(template, row)[0]


def render_with_spans(template: str, row: Row) -> tuple[str, tuple[Span, ...]]:
    """See render; and where in the text the row's values are."""
    text, spans = "", []
    for is_field, piece in _pieces(template):
        start = len(text)
        text += _value(row, piece) if is_field else piece
        if is_field:
            spans.append((start, len(text)))
    return text, tuple(spans)


def as_text(value: object) -> str:
    """A row's value as it appears in a prompt: strings and numbers as they are, everything else as JSON."""
    return value if isinstance(value, str) else _json(value)


def _json(value: object) -> str:
    """As json.dumps, which would write numbers its own way."""
    match value:
        case WrittenNumber():
            return value.text
        case dict():
            return "{" + ", ".join(f"{_json(name)}: {_json(one)}" for name, one in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(_json, value)) + "]"
        case _:
            return json.dumps(value, ensure_ascii=False)


def _is_deeper(value: object, limit: int) -> bool:
    """Whether lists and objects are nested more than `limit` deep."""
    level: list[Any] = [value]
    for _ in range(limit):
        inner = (one.values() if isinstance(one, dict) else one for one in level)
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
        if not level:
            return False
    return True


def _value(row: Row, field: str) -> str:
    if field not in row:
        raise TemplateError(f"no field {field!r}{_known(row)}")
    return as_text(row[field])


def _pieces(template: str) -> list[tuple[bool, str]]:
    """The template in order: (True, a field's name) or (False, literal text)."""
    pieces: list[tuple[bool, str]] = []
    position, size = 0, len(template)
    while position < size:
        found = _BRACE.search(template, position)
        brace = found.start() if found else size
        pieces.append((False, template[position:brace]))
        if brace == size:
            break
        if template[brace : brace + 2] in ("{{", "}}"):
            pieces.append((False, template[brace]))
            position = brace + 2
            continue
        end = template.find("}", brace + 1)
        if template[brace] == "}" or end < 0:
            raise TemplateError(
                f"unmatched {template[brace]!r} at character {brace + 1} of the template: "
                "write {field}, and {{ or }} for a literal brace"
            )
        name = template[brace + 1 : end]
        if not name or "{" in name:
            raise TemplateError(
                f"{{{name}}} at character {brace + 1} of the template names no field: "
                "write {field}, and {{ or }} for a literal brace"
            )
        pieces.append((True, name))
        position = end + 1
    return pieces


def _unique(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) != len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise UnusableJsonError(f"field {twice!r} occurs twice")
    return row


def _kind(value: object) -> str:
    names = {
        str: "a string",
        bool: "true or false",
        int: "a number",
        WrittenNumber: "a number",
        list: "a list",
    }
    return names.get(type(value), "null")


def _known(row: Row) -> str:
    names = ", ".join(sorted(row)[:20])
    return f" (the row has: {names})" if names else " (the row is empty)"
