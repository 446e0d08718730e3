"""The command line as a person or a pipe meets it, in this process."""

import io
import re

import pytest
from typer.testing import CliRunner, Result

from powermean.cli.main import app


def powermean(*arguments: str, typed: str | None = None) -> Result:
    """Run a command whose output goes into a pipe; `typed` answers what it asks."""
    return CliRunner().invoke(app, arguments, input=typed)


class Terminal(io.StringIO):
    """A standard output that is a terminal; install it with `terminal(monkeypatch, columns)`."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    @property
    def text(self) -> str:
        """What it shows, without colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.getvalue())


def terminal(monkeypatch: pytest.MonkeyPatch, columns: int, **environment: str) -> Terminal:
    """Let standard output be a terminal."""
    made = Terminal()
    monkeypatch.setattr("sys.stdout", made)
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in {"COLUMNS": str(columns), "TERM": "xterm-256color", **environment}.items():
        monkeypatch.setenv(name, value)
    return made
