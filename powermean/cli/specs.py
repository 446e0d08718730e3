"""Spec files: read and checked, with the line of every mistake."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from powermean.cli.terminal import note
from powermean.contracts.api import FieldError
from powermean.contracts.attempts import JobError
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


def check_model(file: Path, spec: JobSpec) -> None:
    """Look for the spec's model, as far as this machine can tell. Raises SpecFileError if there is none.

    A service elsewhere has models of its own: what is not here is then a note.
    """
    if importlib.util.find_spec("huggingface_hub") is None or importlib.util.find_spec("trainer") is None:
        note("The model is not looked for: the training extra is not installed here.")
        return
    if spec.model.from_ is not None:
        note("The job to train on from is not looked for: the server does that when it gets the spec.")
        return
    if spec.model.folder is not None and not os.environ.get("POWERMEAN_MODEL_ROOTS"):
        note("The model's folder is not looked for: POWERMEAN_MODEL_ROOTS is not set here.")
        return
    command = [sys.executable, "-m", "trainer.models", "--check"]
    given = spec.model.model_dump_json()
    looked = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if looked.returncode == 0:
        return
    try:
        wrong = JobError.model_validate_json(looked.stdout)
    except ValidationError:
        note(f"The model is not looked for: {(looked.stderr.splitlines() or ['no answer'])[-1]}")
        return
    if wrong.code == "model_refused":  # a job may have a token that this machine does not
        note(f"{file}: on this machine: {wrong.message}")
        return
    field = FieldError(path=wrong.path or "model", message=wrong.message, remedy=wrong.remedy)
    mistakes = located([field], read_file(file))
    if not os.environ.get("POWERMEAN_URL"):
        raise SpecFileError(file, mistakes)
    for line, text in mistakes:
        note(f"{file}:{line}: on this machine: {text}")
