"""Job specs in YAML (or JSON, which is YAML): read and checked, with the line of every mistake."""

import sys
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from powermean.contracts.api import FieldError
from powermean.contracts.job import JobSpec
from powermean.contracts.renaming import old_names_used
from powermean.errors import PowermeanError
from powermean.spec_yaml import SpecLoader

MOST_BYTES = 1_000_000
Path_ = tuple[str | int, ...]


class SpecFileError(PowermeanError):
    """The file is not a valid spec; `str` names file, line, field and what is wrong, one line a mistake."""

    def __init__(self, file: Path, mistakes: Sequence[tuple[int | None, str]]) -> None:
        lines = [f"{file}:{line}: {text}" if line else f"{file}: {text}" for line, text in mistakes]
        super().__init__("\n".join(lines))


def read_spec(file: Path) -> tuple[dict[str, Any], dict[Path_, int]]:
    """The file's mapping and the line of each of its fields. Raises SpecFileError."""
    try:
        if file.stat().st_size > MOST_BYTES:
            raise SpecFileError(file, [(None, f"larger than {MOST_BYTES} bytes: that is no job spec")])
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecFileError(
            file, [(None, f"can't be read: {getattr(error, 'strerror', None) or error}")]
        ) from error
    try:
        root = yaml.compose(text, Loader=SpecLoader)
        lines: dict[Path_, int] = {}
        if root is not None:
            _note_lines(file, root, (), lines)
        data = yaml.load(text, Loader=SpecLoader)  # noqa: S506 (derived from SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise SpecFileError(file, [(line, f"not YAML: {error.problem or error.context}")]) from error
    except yaml.YAMLError as error:
        raise SpecFileError(file, [(None, f"not YAML: {error}")]) from error
    if not isinstance(data, dict):
        raise SpecFileError(file, [(1, "a spec is a mapping of fields, such as `name: my-job`")])
    return data, lines


def _note_lines(file: Path, node: yaml.Node, path: Path_, lines: dict[Path_, int]) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[Hashable] = set()
        for key, value in node.value:
            if key.value in seen:
                at = key.start_mark.line + 1
                raise SpecFileError(file, [(at, f"{dotted((*path, key.value))}: given twice")])
            seen.add(key.value)
            lines[(*path, key.value)] = key.start_mark.line + 1
            _note_lines(file, value, (*path, key.value), lines)
    elif isinstance(node, yaml.SequenceNode):
        for place, value in enumerate(node.value):
            _note_lines(file, value, (*path, place), lines)


def load_spec(file: Path, overrides: Mapping[Path_, Any] | None = None) -> JobSpec:
    """The spec in the file, with some fields replaced; old names are told on standard error.

    Raises SpecFileError.
    """
    data, lines = read_spec(file)
    for path, value in (overrides or {}).items():
        inner: Any = data
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
        inner[path[-1]] = value
    try:
        spec = JobSpec.model_validate(data)
    except ValidationError as error:
        mistakes = [(line_of(path, lines), f"{dotted(path)}: {text}") for path, text in faults(error, data)]
        raise SpecFileError(file, mistakes) from error
    for used in old_names_used(spec, data):
        line = line_of(tuple(used.path.split(".")), lines)
        print(f"{file}:{line}: {used.message}", file=sys.stderr)
    return spec


def faults(error: ValidationError, data: Mapping[str, Any]) -> list[tuple[Path_, str]]:
    """Field and message of each error."""
    return [(_field(found, data), _message(found)) for found in error.errors()]


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


def dotted(path: Path_) -> str:
    return ".".join(map(str, path)) or "spec"


def line_of(path: Path_, lines: Mapping[Path_, int]) -> int | None:
    """The field's line, or its nearest parent's."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path)


def located(fields: Sequence[FieldError], lines: Mapping[Path_, int]) -> list[tuple[int | None, str]]:
    """The server's field errors with the file's lines."""
    found = []
    for wrong in fields:
        path = tuple(int(part) if part.isdigit() else part for part in wrong.path.split("."))
        text = f"{wrong.path}: {wrong.message}" + (f" ({wrong.remedy})" if wrong.remedy else "")
        found.append((line_of(path, lines), text))
    return found
