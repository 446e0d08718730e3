"""What docs/operations.md promises: servers of the version before go on while the database is migrated.

That holds as long as migrations only add. One that does not says so, and so does CHANGELOG.md.
"""

import ast
from pathlib import Path

import pytest

from server.db import migrations

SINCE = "0027"
ADDS = {"create_table", "create_index", "add_column"}
STOPS_SERVERS = "stops_servers"  # a module's own word: `stops_servers = True`
FILES = sorted(Path(migrations.__file__).parent.glob("versions/[0-9]*.py"))


def breaks(source: str) -> list[str]:
    """What in the way up an older server could not live with."""
    module = ast.parse(source)
    if any(STOPS_SERVERS in ast.unparse(node) for node in module.body if isinstance(node, ast.Assign)):
        return []
    (up,) = (node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "upgrade")
    found = []
    for call in (node for node in ast.walk(up) if isinstance(node, ast.Call)):
        called = ast.unparse(call.func)
        text = ast.unparse(call)
        if called.startswith("op.") and called.removeprefix("op.") not in ADDS:
            found.append(text)
        if called == "op.add_column" and "nullable=True" not in text and "server_default" not in text:
            found.append(text)
        if called == "op.create_index" and "unique=True" in text:
            found.append(text)
    return found


@pytest.mark.parametrize("file", [one for one in FILES if one.name >= SINCE], ids=lambda one: one.stem)
def test_servers_of_the_version_before_go_on(file: Path) -> None:
    assert breaks(file.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "op.drop_column('jobs', 'name')",
        "op.execute('UPDATE jobs SET name = NULL')",
        "op.add_column('jobs', sa.Column('x', sa.Integer(), nullable=False))",
        "op.create_index('uq', 'jobs', ['name'], unique=True)",
    ],
)
def test_what_stops_them_has_to_say_so(line: str) -> None:
    source = f"def upgrade():\n    {line}\n"
    assert breaks(source)
    assert breaks(f"stops_servers = True\n{source}") == []
