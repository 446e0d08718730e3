"""`python -m server.doctor`: what is wrong with this server, from its own settings.

`powermean doctor` starts it. It needs no running server, and disturbs none: it reads the database, and writes
one small object to the store.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from stat import S_IRWXO

import httpx
from pydantic import ValidationError
from sqlalchemy import make_url, text
from sqlalchemy.exc import SQLAlchemyError

from powermean.checks import (
    Look,
    artefact_store,
    certificate,
    clock,
    disk,
    failed,
    ok,
    open_files,
    packages,
    port_holder,
    python,
    redis_server,
    tell,
    warning,
)
from powermean.connection import through_proxy
from powermean.contracts.api import ErrorResponse, Readiness
from powermean.contracts.checks import Check
from powermean.errors import PowermeanError
from powermean.setting_files import SettingFileError
from powermean.tokens import PRIVATE_KEY_NAME
from server.db.migrate import current_revision, pending_revision
from server.db.session import Database, database_now
from server.settings import Settings, is_loopback
from server.start import OWN_FILES, check_exposure
from server.vault.key_file import FILE_NAME as SECRETS_KEYS
from server.vault.key_file import KeyFile

NEEDED = ("powermean", "alembic", "celery", "fastapi", "pydantic", "redis", "sqlalchemy", "uvicorn")
ANSWER_S = 5.0
READY_S = 10.0  # longer than the server's own checks


def main(arguments: list[str]) -> int:
    """Print what was found; 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m server.doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--idle", action="store_true", help="the service is not meant to run now")
    given = parser.parse_args(arguments)
    return tell("server", looks(given.idle), given.json, {})


def looks(idle: bool) -> Iterator[tuple[str, Look]]:
    """What to look at, in this order: the machine, the settings, what they lead to."""
    yield "python", python
    yield "packages", lambda: packages(NEEDED)
    try:
        settings = Settings()
    except ValidationError as error:
        wrong = [_wrong(one["loc"], one["msg"]) for one in error.errors()]
        yield "settings", lambda: wrong
        return
    except SettingFileError as error:
        unusable = failed("settings", str(error), "docs/settings.md describes it.")
        yield "settings", lambda: [unusable]
        return
    yield "settings", lambda: contradictions(settings)
    yield "open files", lambda: open_files(settings.max_connections + OWN_FILES)
    yield "database", lambda: database(settings)
    yield "secrets", lambda: secrets_folder(settings)
    yield "artefact store", lambda: artefact_store(settings.artefacts_url, existing=False)
    if not idle:
        yield "redis", lambda: redis_server(settings.redis_url)
    yield "port", lambda: port(settings)
    if settings.public_url is not None:
        yield "certificate", lambda: certificate(settings.public_url or "")
        yield "public address", lambda: public_address(settings.public_url or "")


def _wrong(place: tuple[int | str, ...], said: str) -> Check:
    name = "POWERMEAN_" + "_".join(map(str, place)).upper() if place else "the settings"
    return failed(
        "settings", f"{name}: {said.removeprefix('Value error, ')}", "docs/settings.md describes it."
    )


def contradictions(settings: Settings) -> Iterable[Check]:
    """Settings that can't be right together, though each one could be."""
    found = []
    https = (settings.public_url or "").startswith("https://")
    if https and not settings.trusted_proxies:
        said = "POWERMEAN_PUBLIC_URL is a proxy's, but POWERMEAN_TRUSTED_PROXIES is empty"
        found.append(
            warning("settings", f"{said}: strangers share its address", "Set it to the proxy's address.")
        )
    if not is_loopback(settings.host) and settings.public_url and not https:
        said = "people's keys cross the network unencrypted: POWERMEAN_PUBLIC_URL is no https address"
        found.append(warning("settings", said, "Put a proxy with TLS in front: docs/operations.md."))
    if settings.node_timeout_s > settings.lease_s:
        said = "POWERMEAN_NODE_TIMEOUT_S is above POWERMEAN_LEASE_S: jobs wait for nodes that are gone"
        found.append(warning("settings", said, "Make it smaller."))
    return found or [ok("settings", f"for {settings.host}:{settings.port}")]


def database(settings: Settings) -> Iterator[Check]:
    """Whether the database answers, has this version's tables, room, and our clock."""
    url = make_url(settings.database_url)
    shown = url.render_as_string(hide_password=True)
    on_sqlite = url.get_backend_name() == "sqlite"
    file = Path(url.database or "")
    if on_sqlite and not file.exists():
        yield from disk("database folder", file.parent)
        yield warning(
            "database", f"{file} does not exist yet", "The server makes it: python -m server migrate."
        )
        return
    opened = Database(settings.database_url)
    try:
        asked = time.time()
        with opened.read() as session:
            version = session.scalar(text("SELECT sqlite_version()" if on_sqlite else "SHOW server_version"))
            now = database_now(session)
        yield ok("database", f"{'SQLite' if on_sqlite else 'Postgres'} {version} at {shown}")
        if not on_sqlite:
            yield from clock("the database", now, asked)
        yield _revision(opened)
        check_exposure(settings, opened)
    except SQLAlchemyError as error:
        said = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        yield failed("database", f"{shown}: {said}", "Is it running, and POWERMEAN_DATABASE_URL right?")
    except PowermeanError as error:
        yield failed("database", str(error), error.remedy)
    finally:
        opened.close()
    if on_sqlite:
        yield from disk("database folder", file.parent)


def _revision(opened: Database) -> Check:
    """Raises NewerDatabaseError, whose message says what to do."""
    current, newest = current_revision(opened), pending_revision(opened)
    if newest is None:
        return ok("revision", str(current))
    remedy = "Run `python -m server migrate`, or start the server with POWERMEAN_MIGRATE=1."
    return failed("revision", f"the database is at {current}, this version needs {newest}", remedy)


def secrets_folder(settings: Settings) -> Iterator[Check]:
    """Whether the keys are there, and closed to others; a group may read them, as with an fsGroup."""
    folder = settings.secrets_dir
    if not folder.exists():
        yield warning("secrets", f"{folder} does not exist yet", "The server makes it at its first start.")
        return
    open_ones = [path for path in folder.glob("*.key*") if path.is_file() and path.stat().st_mode & S_IRWXO]
    for path in open_ones:
        yield failed("secrets", f"others can read {path}", f"chmod 600 {path}")
    lacking = [name for name in (PRIVATE_KEY_NAME, SECRETS_KEYS) if not (folder / name).is_file()]
    if lacking:
        yield warning(
            "secrets", f"{folder} lacks {', '.join(lacking)}", "The server makes new ones: is it right?"
        )
    elif not open_ones:
        yield ok("secrets", f"{len(KeyFile(folder).ids())} key(s) in {folder}")


def port(settings: Settings) -> Iterator[Check]:
    """Whether we could listen, or a server of ours does already."""
    where = f"{settings.host}:{settings.port}"
    holder = port_holder(settings.host, settings.port)
    if holder is None:
        yield ok("port", f"{where} is free")
        return
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104  # compared
    url = f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
    if _answers(url):
        yield ok("port", f"a powermean server listens on {where}: {holder}")
        yield from readiness(url)
    else:
        yield failed("port", f"{where} is taken: {holder}", "Stop it, or set POWERMEAN_PORT to another port.")


def readiness(url: str) -> Iterator[Check]:
    """What the running server finds, such as that nobody leads."""
    try:
        answer = httpx.get(f"{url}/readyz", timeout=READY_S, trust_env=through_proxy(url))
        if answer.is_success:
            found = Readiness.model_validate_json(answer.content)
            status, wrong = str(found.status), found.wrong
        else:
            status, wrong = "not ready", ErrorResponse.model_validate_json(answer.content).error.fields
    except (httpx.HTTPError, ValidationError) as error:
        said = f"no answer to /readyz that this version reads: {type(error).__name__}"
        yield failed("running server", said, "Is it of this version? Its log says more.")
        return
    if not wrong:
        yield ok("running server", status)
    for one in wrong:
        yield failed("running server", f"{status}: {one.path} {one.message}", one.remedy)


def public_address(url: str) -> Iterator[Check]:
    """Whether the address that people use leads here."""
    if _answers(url):
        yield ok("public address", f"{url} leads to a powermean server")
    else:
        yield failed("public address", f"{url} does not lead to a powermean server", "Check name and proxy.")


def _answers(url: str) -> bool:
    """Whether a powermean server answers at the address."""
    try:
        answer = httpx.get(f"{url}/healthz", timeout=ANSWER_S, trust_env=through_proxy(url))
        return answer.is_success and answer.json().get("status") == "ok"
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, AttributeError):
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
