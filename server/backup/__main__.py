"""`python -m server.backup`: what `powermean backup` and `powermean restore` start.

`create` works with the server's settings and needs no server; one may run. `hold` runs a command while no
server removes an object from the artefact store: for backups of Postgres, see docs/backup.md.
"""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy.exc import SQLAlchemyError

from powermean import __version__
from powermean.errors import PowermeanError
from powermean.home import Home
from powermean.sizes import size
from server.backup import restore as restoring
from server.backup.create import Progress as Tell
from server.backup.create import Wanted, create
from server.backup.manifest import BackupError, Manifest
from server.settings import Settings
from server.start import database_failures, open_database
from server.storage.holds import held


def main(arguments: list[str]) -> int:
    """The exit status: 1 for a failure, and for a backup of a store that had lost something."""
    os.umask(0o077)  # what is written is its owner's alone
    given = _parser().parse_args(arguments)
    try:
        return int(given.run(given))
    except ValidationError as error:
        names = ", ".join("POWERMEAN_" + "_".join(map(str, one["loc"])).upper() for one in error.errors())
        return _failed(f"wrong settings: {names}")
    except PowermeanError as error:
        return _failed(f"{error} ({error.remedy})" if error.remedy else str(error))
    except SQLAlchemyError as error:
        return _failed(f"the database failed: {getattr(error, 'orig', None) or type(error).__name__}")
    except OSError as error:
        return _failed(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        return 130


def _failed(text: str) -> int:
    print(f"powermean: {text}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m server.backup", description=__doc__)
    commands = parser.add_subparsers(required=True)
    made = commands.add_parser("create", help="make a backup")
    made.set_defaults(run=_create)
    made.add_argument("folder", type=Path)
    made.add_argument("--home", type=Path, help="the folder of a service that `powermean up` runs")
    made.add_argument("--with-keys", action="store_true")
    made.add_argument("--link-to", type=Path)
    made.add_argument("--verify", action="store_true")
    checked = commands.add_parser("verify", help="read a backup's every file")
    checked.set_defaults(run=_verify)
    checked.add_argument("folder", type=Path)
    restored = commands.add_parser("restore", help="restore a backup as a new service's folder")
    restored.set_defaults(run=_restore)
    restored.add_argument("folder", type=Path)
    restored.add_argument("--home", type=Path, required=True)
    restored.add_argument("--replace", action="store_true")
    hold = commands.add_parser("hold", help="run a command while nothing is removed from the store")
    hold.set_defaults(run=_hold)
    hold.add_argument("command", nargs=argparse.REMAINDER)
    return parser


def _create(given: argparse.Namespace) -> int:
    home = Home(given.home.absolute()) if given.home is not None else None
    target = given.folder.absolute()
    wanted = Wanted(target, given.with_keys, given.link_to and given.link_to.absolute(), home)
    with _bar() as tell:
        made = create(Settings(), wanted, tell)
    print(f"{target}: {_summary(made)}")
    if given.verify:
        _checked(given)
    if not made.with_keys:
        print(
            "It has no keys, so secrets can't be opened from it alone: keep a copy of secrets.keys "
            "elsewhere, or add --with-keys and keep the backup as secret as they are."
        )
    return _lost(made)


def _verify(given: argparse.Namespace) -> int:
    return _lost(_checked(given))


def _checked(given: argparse.Namespace) -> Manifest:
    with _bar() as tell:
        manifest = restoring.verify(given.folder.absolute(), tell)
    print(f"every file is as it was saved: {_summary(manifest)}")
    return manifest


def _restore(given: argparse.Namespace) -> int:
    home = Home(given.home.absolute())
    with _bar() as tell:
        done = restoring.restore(given.folder.absolute(), home, replace=given.replace, progress=tell)
    manifest = done.manifest
    print(f"restored in {home.folder}: {_summary(manifest)}")
    print(", ".join(f"{count:,} {name}" for name, count in done.counts.items()))
    if done.revision != manifest.revision:
        print(f"migrated from revision {manifest.revision} to {done.revision}")
    print(f"audit log: {done.audit}")
    if done.moved_to is not None:
        print(f"what was there before is in {done.moved_to}")
    if not manifest.with_keys:
        print(
            f"The backup has no keys. If you kept secrets.keys, copy it to {home.secrets} before the "
            "first start; without it, secrets have to be set again. The administrator gets a new key."
        )
    print(
        "Keys and sessions that were revoked after the backup are valid again. "
        f"Start it with: POWERMEAN_HOME={shlex.quote(str(home.folder))} powermean up"
    )
    return _lost(manifest)


def _lost(manifest: Manifest) -> int:
    """Name what the backup lacks; the exit status."""
    for key, why in manifest.lost.items():
        print(f"not saved: {key}: {why}", file=sys.stderr)
    return 1 if manifest.lost else 0


def _hold(given: argparse.Namespace) -> int:
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    if not command:
        raise BackupError("name the command to run meanwhile: hold -- pg_dump ...")
    settings = Settings()
    database = open_database(settings)
    try:
        with database_failures(settings), held(database) as hold:
            code = subprocess.run(command).returncode
            hold.check()
    finally:
        database.close()
    return code


def _summary(manifest: Manifest) -> str:
    made = f"{manifest.made_at.astimezone():%Y-%m-%d %H:%M:%S}"
    version = "" if manifest.version == __version__ else f", by powermean {manifest.version}"
    return f"{manifest.objects:,} objects and the database of {made}, {size(manifest.size)} in all{version}"


@contextmanager
def _bar() -> Iterator[Tell]:
    """A progress bar on a terminal's standard error; nothing elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
