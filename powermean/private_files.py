"""Files that only their owner may read, written whole or not at all."""

import os
import secrets
from pathlib import Path


def write_new(path: Path, text: str) -> None:
    """A second writer keeps the first one's file."""
    temporary = _write_temporary(path, text)
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()


def replace(path: Path, text: str) -> None:
    """Readers see the old or the new text."""
    _write_temporary(path, text).replace(path)


def _write_temporary(beside: Path, text: str) -> Path:
    path = beside.with_name(f".{beside.name}.{secrets.token_hex(8)}")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return path
