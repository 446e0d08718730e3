"""Commands about API keys."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from powermean.cli.progress import local_time
from powermean.cli.style import PLAIN
from powermean.cli.terminal import AsJson, checked, connected, note, say, say_json, say_table
from powermean.client import Client
from powermean.contracts.identity import KeyRequest, KeyView
from powermean.errors import PowermeanError

key = typer.Typer(help="API keys, for scripts and other machines.", no_args_is_help=True, **PLAIN)


@key.command("list")
def list_keys(json_: AsJson = False) -> None:
    """List your keys, newest first; administrators see everybody's.

    Example: powermean key list
    """
    with connected() as client:
        found = client.keys()
    if json_:
        say_json(found)
        return
    say_table(
        ("id", "name", "of", "allows", "project", "made with", "created", "used", "ends", "state"),
        (
            (
                one.id,
                one.name,
                one.owner or "a node",
                one.role,
                one.project or "all",
                one.made_by or "",
                local_time(one.created_at),
                local_time(one.used_at) if one.used_at else "never",
                local_time(one.expires_at) if one.expires_at else "",
                _state(one),
            )
            for one in found.items
        ),
        wrap=("name", "of"),
        spare=("made with", "created", "project", "used"),
    )


def _state(one: KeyView) -> str:
    if one.revoked_at:
        return "revoked"
    return "ended" if one.expires_at and one.expires_at <= datetime.now(UTC) else "works"


@key.command("create")
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is for, such as a machine.")],
    role: Annotated[
        str,
        typer.Option(
            help="The most that it allows: viewer, member, maintainer, auditor or admin; "
            "node: a token for a node's worker."
        ),
    ] = "member",
    project: Annotated[
        str | None, typer.Option(help="The only project that it allows; default: all.")
    ] = None,
    owner: Annotated[
        str | None,
        typer.Option("--for", metavar="PERSON", help="Id or e-mail address of whose it is; default: yours."),
    ] = None,
    days: Annotated[
        int | None, typer.Option(metavar="DAYS", help="How long it works; default: until it is revoked.")
    ] = None,
    node: Annotated[
        str | None, typer.Option(metavar="NAME", help="With role node: the only node that may use it.")
    ] = None,
    json_: AsJson = False,
) -> None:
    """Create a key; prints it, this once.

    Example: powermean key create laptop --role member --project team-a --days 90
    """
    given = {"name": name, "role": role, "project": project, "person_id": owner, "days": days, "node": node}
    with connected() as client:
        made = client.create_key(checked(KeyRequest, given))
    if json_:
        say_json(made)
        return
    say(made.key)
    note("Keep it now: it is never shown again.")
    where, what = ("SERVER_URL", "NODE_TOKEN") if made.role == "node" else ("URL", "API_KEY")
    note(f"Use it by setting POWERMEAN_{where}={client.url} and POWERMEAN_{what}.")
    if made.expires_at is not None:
        note(f"It works until {local_time(made.expires_at)}.")
    note(f"`powermean key revoke {made.id}` ends it.")


@key.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="Its id in the list of keys.")],
    cascade: Annotated[
        bool, typer.Option("--cascade", help="For a leaked key: revoke those that were made with it, too.")
    ] = False,
) -> None:
    """Revoke a key: it ends at once, and so do the browser sessions that were opened with it.

    Example: powermean key revoke key-0123456789abcdef
    """
    with connected() as client:
        # before, because the command may use this key
        keys, unlisted = ((), None) if cascade else _listed(client)
        client.revoke_key(key_id, cascade=cascade)
    say(f"{key_id} is revoked" + (" with all that were made with it" if cascade else ""))
    if unlisted is not None:
        note(f"Keys that it made may still work; they could not be listed: {unlisted}")
    if made := [one.id for one in keys if one.made_by == key_id and _state(one) == "works"]:
        note(f"It made keys that still work: {', '.join(made)}.")
        note(f"`powermean key revoke {key_id} --cascade` revokes them and what they made.")


def _listed(client: Client) -> tuple[tuple[KeyView, ...], PowermeanError | None]:
    """The keys, or why there is no list: a leaked key must end all the same."""
    try:
        return client.keys().items, None
    except PowermeanError as error:
        return (), error
