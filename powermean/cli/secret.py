"""Commands about secrets: keys for other services that jobs get in their environment."""

from typing import Annotated

import typer

from powermean.cli.progress import local_time
from powermean.cli.style import PLAIN
from powermean.cli.terminal import FAILED, AsJson, complain, connected, say, say_json, say_table

secret = typer.Typer(
    help="Secrets for jobs, such as tokens of model hubs; their values are never shown.",
    no_args_is_help=True,
    **PLAIN,
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="Small letters, digits, dots, hyphens.")]
OfProject = Annotated[
    str | None, typer.Option("--project", help="The project that has it; without this, it is your own.")
]


@secret.command("set")
def set_secret(name: Name, project: OfProject = None, json_: AsJson = False) -> None:
    """Set a secret: asks for the value, or reads it from standard input.

    A spec names it by environment variable: `secrets: {HF_TOKEN: NAME}`, or me/NAME for one of your own.

    Example: powermean secret set hf-team-a --project team-a < token.txt
    """
    value = read_value()
    if not value:
        complain("The value is empty.")
        raise typer.Exit(FAILED)
    with connected() as client:
        made = client.set_secret(name, value, project)
    if json_:
        say_json(made)
    else:
        say(f"{name} is set; a spec names it as {name if project else f'me/{name}'}")


@secret.command("list")
def list_secrets(project: OfProject = None, json_: AsJson = False) -> None:
    """List secrets: who set them, and when a job last got them.

    Example: powermean secret list --project team-a
    """
    with connected() as client:
        found = client.secrets(project)
    if json_:
        say_json(found)
        return
    say_table(
        ("name", "set by", "set", "last used"),
        (
            (
                one.name,
                one.set_by,
                local_time(one.set_at),
                local_time(one.used_at) if one.used_at else "never",
            )
            for one in found.items
        ),
        wrap=("set by",),
    )


@secret.command("remove")
def remove_secret(name: Name, project: OfProject = None) -> None:
    """Remove a secret; refused while a job that has not ended names it.

    Example: powermean secret remove hf-team-a --project team-a
    """
    with connected() as client:
        client.remove_secret(name, project)
    say(f"{name} is removed")


def read_value() -> str:
    """From a prompt that does not show it, or all of standard input but the line's end."""
    given = typer.get_text_stream("stdin")
    if given.isatty():
        return str(typer.prompt("Value", hide_input=True)).strip()
    return given.read().rstrip("\r\n")
