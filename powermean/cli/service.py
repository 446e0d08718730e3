"""`powermean up`: runs the service on this machine."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from powermean.calls import ServerUnreachableError
from powermean.cli.embedded import DEFAULT_PORT, Embedded
from powermean.cli.signals import raise_on_signals
from powermean.cli.terminal import plain_failures, say
from powermean.client import Client
from powermean.discovery import registered
from powermean.home import Home

Port = Annotated[int, typer.Option(min=1, max=65535, help="Port on loopback for REST API and dashboard.")]


@contextmanager
def running(port: int, next_port: bool) -> Iterator[tuple[Embedded, Client]]:
    """The embedded service and an administrator's client for it; stopped at the end in any case."""
    raise_on_signals()
    os.umask(0o077)  # what the service keeps is its owner's alone
    service = Embedded(Home.find(), port, next_port, tell=say)
    with registered(service.home):
        try:
            service.start()
            with Client(service.url, service.home.key()) as client:
                yield service, client
        finally:
            service.stop()


def up(port: Port = DEFAULT_PORT) -> None:
    """Start the service on this machine and keep it running until Ctrl-C.

    Example: powermean up --port 9000
    """
    with plain_failures():
        say("Starting the service ...")
        with running(port, next_port=False) as (service, client):
            say(f"Dashboard: {dashboard_link(client)}")
            say(f"Files: {service.home.folder}. Stop it with Ctrl-C.")
            stay()


def dashboard_link(client: Client) -> str:
    """A link that signs the browser in once. A server that is just restarting does not end the service."""
    try:
        return client.login_code().url
    except ServerUnreachableError:
        return f"{client.url} (powermean login prints a link that signs you in)"


def stay() -> None:
    """Wait until a signal ends the process."""
    while True:
        time.sleep(3600)
