"""`python -m powermean` is the `powermean` command."""

from powermean.cli.main import app

app(prog_name="powermean")
