"""Each command teaches by its help, in one style."""

import subprocess
import sys

import pytest

from powermean.cli.main import COMMANDS
from tests.support.terminal import powermean

SUBCOMMANDS = {
    "backup": ("create", "verify"),
    "checkpoints": ("list", "delete", "pin", "unpin"),
    "datasets": ("upload", "list", "remove"),
    "node": ("remove",),
    "pool": ("list", "show"),
    "server": ("list",),
    "priorities": ("list", "set", "remove"),
    "engine": ("add", "list", "remove"),
    "audit": ("list", "head", "verify"),
    "secret": ("set", "list", "remove"),
    "project": ("list", "create", "show", "members", "add-member", "remove-member"),
    "person": ("list", "add", "invite", "deactivate", "activate"),
    "key": ("list", "create", "revoke"),
}
EVERY = [
    *[(c,) for c in COMMANDS if c not in SUBCOMMANDS],
    *[(group, c) for group, commands in SUBCOMMANDS.items() for c in commands],
]
WITHOUT_DATA = (
    ("up",),
    ("demo",),
    *[("backup", c) for c in ("create", "verify")],
    ("restore",),
    ("node", "remove"),
    ("priorities", "remove"),
    ("datasets", "remove"),
    ("audit", "head"),  # is JSON
    ("audit", "verify"),
    ("project", "remove-member"),
    ("key", "revoke"),
    ("delete",),
    *[("checkpoints", c) for c in ("delete", "pin", "unpin")],
    ("secret", "remove"),
    ("logout",),
)


@pytest.mark.parametrize("command", EVERY)
def test_help_teaches_by_example(command: tuple[str, ...]) -> None:
    result = powermean(*command, "--help")
    assert result.exit_code == 0
    assert f"Example: powermean {' '.join(command)}" in result.output
    starts = [line for line in result.output.splitlines() if "Example: " in line]
    assert all(line.startswith("  Example: ") and line.count("Example: ") == 1 for line in starts)


@pytest.mark.parametrize("command", [(), *[(group,) for group in SUBCOMMANDS], *EVERY])
def test_help_has_one_style(command: tuple[str, ...]) -> None:
    said = powermean(*command, "--help").output
    assert said.startswith(" ".join(("Usage: powermean", *command)))
    assert not set("│╭╰─") & set(said)
    assert "--install-completion" not in said


@pytest.mark.parametrize("command", [c for c in EVERY if c not in WITHOUT_DATA])
def test_whatever_prints_data_prints_json_too(command: tuple[str, ...]) -> None:
    assert "--json" in powermean(*command, "--help").output


@pytest.mark.parametrize("typo", ["lst", "shwo", "dataset"])
def test_a_typo_is_told_the_command(typo: str) -> None:
    assert "Did you mean" in powermean(typo).stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_the_list_of_commands_says_what_their_own_help_says(command: str) -> None:
    assert " ".join(COMMANDS[command][1].split()) in " ".join(powermean(command, "--help").output.split())


@pytest.mark.slow
def test_help_imports_neither_http_nor_contracts_nor_a_room() -> None:
    """It answers at once; and no room is ever imported here, they are started as processes."""
    script = (
        "import sys; sys.argv = ['powermean', '--help']\n"
        "from powermean.cli.main import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "heavy = {'httpx', 'pydantic', 'server', 'trainer', 'rollout', 'dashboard', 'torch'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "from powermean.cli import demo, jobs, nodes, service\n"
        "assert not (heavy - {'httpx', 'pydantic'}) & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout
