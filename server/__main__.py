"""`python -m server` serves the REST API and the dashboard; with `migrate` it only prepares the database."""

import argparse
import gc
import logging
import socket
import sys
from functools import partial

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from powermean.errors import PowermeanError
from server.app import create_app
from server.connections import Connection
from server.db.migrate import migrate
from server.request_log import configure_logging
from server.settings import Settings
from server.start import BACKLOG, allow_files, bind, database_failures, open_database, prepare

GRACE_S = 5  # for requests in progress when the server is told to stop
GARBAGE_AFTER = 20_000  # new objects between searches for cycles; Python's 700 are less than a request makes


class Server(uvicorn.Server):
    """Ends the event streams when told to stop; they never end by themselves."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn.Server."""
        self._app.state.events.end_streams()
        await super().shutdown(sockets)


def main(arguments: list[str]) -> int:
    """Serve, or migrate; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m server", description=__doc__)
    parser.add_argument(
        "command", nargs="?", choices=["serve", "migrate"], default="serve", help="default: serve"
    )
    command = parser.parse_args(arguments).command
    configure_logging()
    try:
        settings = Settings()
        if command == "migrate":
            migrate_only(settings)
        else:
            serve(settings)
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
        timeout_graceful_shutdown=GRACE_S,
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
