"""Commands about the service's server processes."""

import typer

from powermean.cli.progress import local_time
from powermean.cli.style import PLAIN
from powermean.cli.terminal import AsJson, connected, say_json, say_table
from powermean.contracts.api import ServerView

server = typer.Typer(
    help="The service's server processes: which are there, and which one leads.",
    no_args_is_help=True,
    **PLAIN,
)


@server.callback()
def _group() -> None:
    """Otherwise typer takes a single command for the group itself."""


@server.command("list")
def list_servers(json_: AsJson = False) -> None:
    """List the server processes that share the database, and which one schedules; for administrators.

    Example: powermean server list
    """
    with connected() as client:
        found = client.servers()
    if json_:
        say_json(found)
        return
    say_table(
        ("name", "state", "version", "since", "last seen"),
        (
            (one.name, _state(one), one.version, local_time(one.started_at), local_time(one.seen_at))
            for one in found.items
        ),
    )


def _state(one: ServerView) -> str:
    """In words."""
    if not one.alive:
        return "dead"
    return "leads" if one.leads else "serves"
