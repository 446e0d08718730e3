"""`python -m server` serves the REST API and the dashboard.

With `migrate` it only prepares the database; with `rotate-secrets` it encrypts all secrets with a new key.
`verify-audit` walks the audit log in the database, and names the first entry that is not as it was written;
`archive-audit` moves its oldest entries into a file.
"""

import argparse
import asyncio
import gc
import logging
import math
import socket
import sys
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path

from powermean.importing import uncollected

with uncollected():
    import uvicorn
    from fastapi import FastAPI
    from pydantic import ValidationError

    from powermean.audit_chain import is_signed
    from powermean.contracts.audit import AuditHead
    from powermean.errors import PowermeanError
    from powermean.tokens import PRIVATE_KEY_NAME, PUBLIC_KEY_NAME, ensure_key_pair
    from server.app import create_app
    from server.audit import reading
    from server.audit.archive import archive
    from server.audit.journal import HEAD_FILE, read_head
    from server.cluster.loops import stop_all
    from server.connections import Connection
    from server.db.migrate import migrate
    from server.request_log import configure_logging
    from server.settings import Settings
    from server.start import (
        BACKLOG,
        CannotStartError,
        allow_files,
        bind,
        database_failures,
        open_database,
        prepare,
    )
    from server.vault.key_file import KeyFile
    from server.vault.rotation import rotate


TICK_S = 0.1
GARBAGE_AFTER = 20_000  # new objects between searches for cycles; Python's 700 are less than a request makes


class Server(uvicorn.Server):
    """Leaves without dropping a request when it is told to stop.

    It hands the lead over and says on /readyz that it is not ready, but goes on serving until proxies have
    noticed. Then it ends the event streams, which never end by themselves, and what else is in progress has
    POWERMEAN_STOP_S to end. A second Ctrl-C skips all waits.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn.Server."""
        state = self._app.state
        state.connections.draining = True
        handover = asyncio.create_task(asyncio.to_thread(stop_all, state.loops))
        await self._linger(state.settings.drains_for_s, handover)
        state.events.retire()
        await super().shutdown(sockets)

    async def _linger(self, seconds: float, handover: asyncio.Task[None]) -> None:
        """Serve on for so long, and until the lead is handed over."""
        ends = time.monotonic() + seconds
        while not self.force_exit and (time.monotonic() < ends or not handover.done()):
            await self.on_tick(0)  # keeps the Date of answers right
            await asyncio.sleep(TICK_S)


def main(arguments: list[str]) -> int:
    """Serve, or migrate; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m server", description=__doc__)
    parser.add_argument(
        "command",
        nargs="?",
        choices=["serve", "verify-audit", "archive-audit", *OTHERS],
        default="serve",
        help="default: serve",
    )
    parser.add_argument("--head", type=Path, help="a signed head that was kept, for verify-audit")
    parser.add_argument("--archive", type=Path, action="append", default=[], help="what was archived before")
    parser.add_argument("--folder", type=Path, help="where archive-audit writes its files")
    parser.add_argument("--before", type=_day, help="archive-audit: what is older than this day (UTC)")
    given = parser.parse_args(arguments)
    if given.command == "archive-audit" and given.before is None:
        parser.error("archive-audit needs --before, such as 2026-01-01")
    if given.command == "archive-audit" and given.folder is None:
        parser.error("archive-audit needs --folder, a place that outlives the container")
    command = given.command
    configure_logging()
    try:
        settings = Settings()
        if command == "verify-audit":
            return verify_audit(settings, given.head, given.archive)
        if command == "archive-audit":
            return archive_audit(settings, given.folder, given.before, given.archive)
        OTHERS.get(command, serve)(settings)
    except ValidationError as error:
        for one in error.errors():
            name = "_".join(str(part) for part in one["loc"]).upper()
            print(f"setting POWERMEAN_{name}: {one['msg'].removeprefix('Value error, ')}", file=sys.stderr)
        return 2
    except PowermeanError as error:
        remedy = f" ({error.remedy})" if error.remedy else ""
        print(f"cannot start: {error}{remedy}", file=sys.stderr)
        return 1
    except OSError as error:  # of a file or folder in the settings
        print(f"cannot start: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def migrate_only(settings: Settings) -> None:
    """Bring the database to the newest revision."""
    database = open_database(settings)
    with database_failures(settings):
        migrate(database)
    database.close()


def verify_audit(settings: Settings, kept: Path | None, archives: Sequence[Path]) -> int:
    """Check the audit log against the head that the server keeps beside its key, or another one."""
    public_pem = _existing(settings, PUBLIC_KEY_NAME).read_text()
    head = _head(settings, public_pem, kept)
    database = open_database(settings)
    with database_failures(settings):
        verdict = reading.verify(database, head, archives, public_pem)
    database.close()
    print(verdict.said(head))
    return 0 if verdict.broken is None else 1


def archive_audit(settings: Settings, folder: Path, before: datetime, archives: Sequence[Path]) -> int:
    """Move the oldest entries of the audit log into a file; servers may run meanwhile."""
    _existing(settings, PRIVATE_KEY_NAME)  # servers would not believe what a new key signs
    keys = ensure_key_pair(settings.secrets_dir)
    head = _head(settings, keys.public_pem, None)
    database = open_database(settings)
    with database_failures(settings):
        done = archive(database, keys, head, folder, before, archives)
    database.close()
    if done is None:
        print(f"the audit log has no entry from before {before:%Y-%m-%d}")
        return 0
    print(f"{done.file}: entries {done.first} to {done.last}, which are no longer in the database")
    print(f"{done.head}: its signed end")
    return 0


def _existing(settings: Settings, name: str) -> Path:
    """A file of the server's key pair. Raises CannotStartError: a server makes it, and nobody else."""
    file = settings.secrets_dir / name
    if not file.is_file():
        raise CannotStartError(
            f"the folder {settings.secrets_dir} has no {name}",
            remedy="Set POWERMEAN_SECRETS_DIR to the server's.",
        )
    return file


def _head(settings: Settings, public_pem: str, kept: Path | None) -> AuditHead | None:
    """The signed head in this file, or in the server's own. Raises CannotStartError."""
    head = read_head(kept or settings.secrets_dir / HEAD_FILE)
    if kept is not None and head is None:
        raise CannotStartError(f"{kept} is not a head of the audit log")
    if head is not None and not is_signed(head, public_pem):
        raise CannotStartError("the head of the audit log is not signed by this server's key")
    return head


def _day(text: str) -> datetime:
    return datetime.combine(date.fromisoformat(text), datetime.min.time(), UTC)


def rotate_secrets(settings: Settings) -> None:
    """Encrypt all secrets with a new key; servers may run meanwhile."""
    database = open_database(settings)
    with database_failures(settings):
        keys = KeyFile.ensure(settings.secrets_dir)
        count = rotate(database, keys)
    database.close()
    print(f"secrets encrypted with a new key, {keys.ids()[-1]}: {count}")


def serve(settings: Settings) -> None:
    """Serve until told to stop by SIGINT or SIGTERM."""
    allow_files(settings.max_connections)
    listener = bind(settings)
    prepare(settings)
    app = create_app(settings)
    app.state.database.hold_ballast()
    config = uvicorn.Config(
        app,
        http=partial(Connection, app.state.connections),  # type: ignore[arg-type] # called, as the class is
        ws="none",
        backlog=BACKLOG,
        log_config=None,
        access_log=False,  # URLs may contain sign-in codes
        timeout_graceful_shutdown=math.ceil(settings.stop_s),
        timeout_keep_alive=75,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
    )
    keep_from_collector()
    logging.getLogger("server").info("listening on http://%s:%d", *listener.getsockname()[:2])
    Server(config, app).run(sockets=[listener])


def keep_from_collector() -> None:
    """Let the cycle collector leave alone what lives as long as the server.

    Otherwise each full collection walks through all of it while every thread waits.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_AFTER)


OTHERS = {"migrate": migrate_only, "rotate-secrets": rotate_secrets}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
