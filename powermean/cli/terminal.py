"""How commands talk to people: results on stdout, failures on stderr, and exit statuses."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from powermean.cli.signals import EndedBySignalError
from powermean.client import Client
from powermean.errors import PowermeanError
from powermean.rest import ServerUnreachableError

FAILED = 1
INTERRUPTED = 130

console = Console(highlight=False)


def complain(text: str) -> None:
    print(f"powermean: {text}", file=sys.stderr, flush=True)


@contextmanager
def plain_failures() -> Iterator[None]:
    """Turn expected failures into one clear message and an exit status."""
    try:
        yield
    except ServerUnreachableError as error:
        complain(f"{error}\nIs the service running? Start it with `powermean up`, or set POWERMEAN_URL.")
        raise typer.Exit(FAILED) from error
    except PowermeanError as error:
        complain(str(error))
        raise typer.Exit(FAILED) from error
    except OSError as error:  # of a file or folder that a command reads or writes
        complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        raise typer.Exit(FAILED) from error
    except EndedBySignalError as error:
        raise typer.Exit(128 + error.number) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(INTERRUPTED) from error


@contextmanager
def connected() -> Iterator[Client]:
    """A client for the service that the environment or the current folder points to."""
    with plain_failures(), Client() as client:
        yield client
