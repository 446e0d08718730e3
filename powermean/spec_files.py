"""Spec files, for the command line and the clients."""

from collections.abc import Sequence
from pathlib import Path

from powermean.errors import PowermeanError
from powermean.spec_yaml import MAX_CHARACTERS, SpecText, SpecTextError, read_spec


class SpecFileError(PowermeanError):
    """The file is not a valid spec; `str` names file, line, field and what is wrong, one line a mistake."""

    code = "invalid_spec_file"

    def __init__(self, file: Path, mistakes: Sequence[tuple[object, str]]) -> None:
        lines = [f"{file}:{place}: {text}" if place else f"{file}: {text}" for place, text in mistakes]
        super().__init__("\n".join(lines))


def read_file(file: Path) -> SpecText:
    """Raises SpecFileError."""
    try:
        with file.open(encoding="utf-8") as opened:
            text = opened.read(MAX_CHARACTERS + 1)
    except UnicodeDecodeError as error:
        raise SpecFileError(file, [(None, "is not text in UTF-8: a spec is a YAML or JSON file")]) from error
    except OSError as error:
        raise SpecFileError(file, [(None, f"can't be read: {error.strerror or error}")]) from error
    try:
        return read_spec(text)
    except SpecTextError as error:
        place = f"{error.line}:{error.column}" if error.line else None
        raise SpecFileError(file, [(place, f"{error.problem} ({error.remedy})")]) from error
