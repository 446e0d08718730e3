"""Spec files: read and checked, with the line of every mistake."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from powermean.cli.terminal import note
from powermean.contracts.api import FieldError
from powermean.contracts.job import JobSpec
from powermean.contracts.renaming import old_names_used
from powermean.errors import PowermeanError
from powermean.spec_yaml import MAX_CHARACTERS, SpecText, SpecTextError, read_spec

Path_ = tuple[str | int, ...]


class SpecFileError(PowermeanError):
    """The file is not a valid spec; `str` names file, line, field and what is wrong, one line a mistake."""

    def __init__(self, file: Path, mistakes: Sequence[tuple[object, str]]) -> None:
        lines = [f"{file}:{place}: {text}" if place else f"{file}: {text}" for place, text in mistakes]
        super().__init__("\n".join(lines))


def read_file(file: Path) -> SpecText:
    """Raises SpecFileError."""
    try:
        with file.open(encoding="utf-8") as opened:
            text = opened.read(MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise SpecFileError(
            file, [(None, f"can't be read: {getattr(error, 'strerror', None) or error}")]
        ) from error
    try:
        return read_spec(text)
    except SpecTextError as error:
        place = f"{error.line}:{error.column}" if error.line else None
        raise SpecFileError(file, [(place, f"{error.problem} ({error.remedy})")]) from error


def load_spec(file: Path, overrides: Mapping[Path_, Any] | None = None) -> JobSpec:
    """The spec in the file, with some fields replaced; old names are told on standard error.

    Raises SpecFileError.
    """
    text = read_file(file)
    data = text.fields
    for path, value in (overrides or {}).items():
        inner: Any = data
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
        inner[path[-1]] = value
    try:
        spec = JobSpec.model_validate(data)
    except ValidationError as error:
        mistakes = [
            (text.line_of(path), f"{path or 'spec'}: {message}") for path, message in faults(error, data)
        ]
        raise SpecFileError(file, mistakes) from error
    for used in old_names_used(spec, data):
        note(f"{file}:{text.line_of(used.path)}: {used.message}")
    return spec


def faults(error: ValidationError, data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Dotted field and message of each error."""
    return [(".".join(map(str, _field(found, data))), _message(found)) for found in error.errors()]


def _field(found: ErrorDetails, data: Any) -> Path_:
    """The error's location as the file has it: without the names of union members that pydantic adds."""
    path: list[str | int] = []
    parts = list(found["loc"])
    for place, part in enumerate(parts):
        last = place == len(parts) - 1
        known = isinstance(part, int) or (isinstance(data, Mapping) and part in data)
        if known or (last and found["type"] in ("missing", "extra_forbidden")):
            path.append(part)
            if isinstance(data, Mapping):
                data = data.get(str(part))
            elif isinstance(data, list) and isinstance(part, int) and part < len(data):
                data = data[part]
    return tuple(path)


def _message(found: ErrorDetails) -> str:
    if found["type"] == "extra_forbidden":
        return "there is no such field"
    if found["type"] == "missing":
        return "is missing"
    message = found["msg"].removeprefix("Value error, ")
    shown = found.get("input")
    given = f" (given: {shown!r})" if isinstance(shown, str | int | float | bool) else ""
    return message + given


def located(fields: Sequence[FieldError], text: SpecText) -> list[tuple[int | None, str]]:
    """The server's field errors with the file's lines."""
    return [
        (
            text.line_of(wrong.path),
            f"{wrong.path}: {wrong.message}" + (f" ({wrong.remedy})" if wrong.remedy else ""),
        )
        for wrong in fields
    ]
