"""`powermean backup` and `powermean restore`: of a service that `powermean up` runs here.

They read and write its folder, so they start the server's own program for that: `python -m server.backup`.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from powermean.cli.embedded import server_settings
from powermean.cli.style import PLAIN
from powermean.cli.terminal import note, plain_failures
from powermean.discovery import running_homes
from powermean.home import Home, NoServerError

backup = typer.Typer(
    help="Back up the service that you run on this machine, while it runs.", no_args_is_help=True, **PLAIN
)
Backup = Annotated[Path, typer.Argument(metavar="BACKUP", help="The backup's folder.", show_default=False)]


@backup.command("create")
def create(
    target: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A folder that does not exist yet.", show_default=False)
    ],
    with_keys: Annotated[
        bool,
        typer.Option(
            "--with-keys",
            help="Add the keys that open secrets and sign in: the backup is then as secret as they are.",
        ),
    ] = False,
    link_to: Annotated[
        Path | None,
        typer.Option(
            "--link-to",
            metavar="BACKUP",
            help="An earlier backup on the same disk: what it has already takes no room again.",
        ),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read it once more when it is done.")] = False,
) -> None:
    """Save the database, and what it names in the artefact store. The service may run meanwhile.

    Example: powermean backup create /backups/monday --link-to /backups/sunday
    """
    with plain_failures():
        home = _home()
    arguments = ["create", str(target), "--home", str(home.folder)]
    arguments += ["--with-keys"] if with_keys else []
    arguments += ["--link-to", str(link_to)] if link_to is not None else []
    arguments += ["--verify"] if verify else []
    _run(arguments, server_settings(home))


@backup.command("verify")
def verify_backup(folder: Backup) -> None:
    """Read every file of a backup and name the first one that is not as it was saved.

    Example: powermean backup verify /backups/monday
    """
    _run(["verify", str(folder)], {})


def restore(
    folder: Backup,
    home: Annotated[
        Path | None,
        typer.Option(
            "--home", metavar="FOLDER", help="Where to; default: POWERMEAN_HOME, or .powermean here."
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Move aside what is there. Nothing is deleted.")
    ] = False,
) -> None:
    """Restore a backup into a service's folder; then start it with `powermean up`.

    Example: powermean restore /backups/monday --home restored
    """
    where = home if home is not None else Home.find().folder
    _run(["restore", str(folder), "--home", str(where), *(["--replace"] if replace else [])], {})


def _home() -> Home:
    """The service in POWERMEAN_HOME or in this folder, or the only one that runs here."""
    here = Home.find()
    if here.database.exists():
        return here
    others = [] if os.environ.get("POWERMEAN_HOME") else running_homes()
    if len(others) != 1:
        raise NoServerError(
            f"no service has run in {here.folder}", remedy="Set POWERMEAN_HOME to the folder of one."
        )
    note(f"Using the service in {others[0].folder}.")
    return others[0]


def _run(arguments: list[str], settings: dict[str, str]) -> None:
    command = [sys.executable, "-m", "server.backup", *arguments]
    raise typer.Exit(subprocess.run(command, env=dict(os.environ) | settings).returncode)
