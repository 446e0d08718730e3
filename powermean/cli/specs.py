"""Spec files: read and checked, with the line of every mistake."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from powermean.cli.terminal import note
from powermean.contracts.api import FieldError
from powermean.contracts.job import JobSpec
from powermean.contracts.renaming import old_names_used
from powermean.field_errors import field_errors
from powermean.spec_files import SpecFileError, read_file
from powermean.spec_yaml import SpecText

Path_ = tuple[str | int, ...]


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
        wrong = field_errors(error.errors(include_url=False), data, JobSpec)
        raise SpecFileError(file, located(wrong, text)) from error
    for used in old_names_used(spec, data):
        note(f"{file}:{text.line_of(used.path)}: {used.message}")
    return spec


def located(fields: Sequence[FieldError], text: SpecText) -> list[tuple[int | None, str]]:
    """Field errors with the file's lines."""
    return [
        (
            text.line_of(wrong.path),
            f"{wrong.path or 'spec'}: {wrong.message}" + (f" ({wrong.remedy})" if wrong.remedy else ""),
        )
        for wrong in fields
    ]
