"""Signing in: a browser by a one-time link, or this command line at a server, with a key of its own."""

import time
from datetime import UTC, datetime
from typing import Annotated

import typer

from powermean.calls import ApiError
from powermean.cli.progress import local_time
from powermean.cli.terminal import AsJson, connected, note, plain_failures, say, say_json, say_table
from powermean.client import Client, Stranger
from powermean.contracts.signin import DeviceCode, DeviceRequest, SignedInDevice
from powermean.discovery import this_host
from powermean.errors import PowermeanError
from powermean.servers import SavedServer, read_servers, servers_file, write_servers

DEFAULT_NAME = "default"
_GONE = (401, 404)  # of a key that the server no longer knows


class NotConfirmedError(PowermeanError):
    """Nobody confirmed the code in time, or somebody refused it."""

    code = "not_confirmed"


def login(
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="Sign this command line in at a server.")
    ] = None,
    name: Annotated[
        str, typer.Option(help="What to call that server, for `powermean --server NAME`.")
    ] = DEFAULT_NAME,
    json_: AsJson = False,
) -> None:
    """Print a one-time link that opens the dashboard, or sign in at a server.

    Example: powermean login

    Example: powermean login --server https://powermean.example.org --name lab
    """
    if server is not None:
        _sign_in(server, name, json_)
        return
    with connected() as client:
        code = client.login_code()
    if json_:
        say_json(code)
        return
    say(code.url)
    say(f"It works once, until {code.expires_at.astimezone().strftime('%H:%M')}.")


def _sign_in(url: str, name: str, json_: bool) -> None:
    with plain_failures():
        with Stranger(url) as stranger:
            started = stranger.start_device(DeviceRequest(client=f"powermean on {this_host()}"))
            note(f"Open {stranger.url}/device and enter this code: {started.user_code}")
            note(f"It works until {started.expires_at.astimezone().strftime('%H:%M')}.")
            device = _confirmed(stranger, started)
        servers = read_servers()
        previous = servers.servers.get(name)
        made = SavedServer(
            url=stranger.url,
            key=device.key.key,
            key_id=device.key.id,
            person=device.person,
            expires_at=device.key.expires_at,
        )
        write_servers(servers.adding(name, made))
        if previous is not None:
            _revoke(previous)
        if json_:
            say_json({"name": name, "url": made.url, "person": made.person, "expires_at": made.expires_at})
        else:
            say(f"Signed in to {made.url} as {made.person}; the key is in {servers_file()}.")
            if made.expires_at is not None:
                say(f"It works until {local_time(made.expires_at)}.")


def _confirmed(stranger: Stranger, started: DeviceCode) -> SignedInDevice:
    """Ask until the person has decided. Raises NotConfirmedError."""
    while datetime.now(UTC) < started.expires_at:
        time.sleep(started.interval_s)
        answer = stranger.claim_device(started.device_code)
        if answer.signed_in is not None:
            return answer.signed_in
        if answer.state == "denied":
            raise NotConfirmedError("the code was refused", remedy="Run the command again for a new one.")
    raise NotConfirmedError(
        "nobody confirmed the code in time", remedy="Run the command again for a new one."
    )


def logout(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Which server; default: the one in use.")
    ] = None,
) -> None:
    """Sign this command line out of a server: its key is revoked and forgotten.

    Example: powermean logout lab
    """
    with plain_failures():
        servers = read_servers()
        chosen = name or servers.chosen()
        if chosen is None:
            raise PowermeanError("this command line is signed in nowhere")
        server = servers.named(chosen)
        try:
            _revoke(server)
        except PowermeanError as error:
            note(f"The key could not be revoked ({error}): revoke {server.key_id} on the page Account.")
        write_servers(servers.without(chosen))
        say(f"Signed out of {server.url}.")


def servers(json_: AsJson = False) -> None:
    """List the servers that this command line is signed in to.

    Example: powermean servers
    """
    with plain_failures():
        known = read_servers()
        in_use = known.chosen()
    if json_:
        say_json(
            [
                {"name": name, "default": name == in_use, **one.model_dump(mode="json", exclude={"key"})}
                for name, one in known.servers.items()
            ]
        )
        return
    say_table(
        ("name", "in use", "address", "signed in as", "until"),
        (
            (
                name,
                "yes" if name == in_use else "",
                one.url,
                one.person,
                local_time(one.expires_at) if one.expires_at else "",
            )
            for name, one in known.servers.items()
        ),
        wrap=("address", "signed in as"),
    )


def _revoke(server: SavedServer) -> None:
    """End a key of ours, unless it has ended already."""
    with Client(server.url, server.key) as client:
        try:
            client.revoke_key(server.key_id)
        except ApiError as error:
            if error.status not in _GONE:
                raise
