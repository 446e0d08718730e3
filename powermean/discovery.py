"""Which service a client talks to.

Address and key come from POWERMEAN_URL and POWERMEAN_API_KEY, from the servers that
`powermean login --server` signed in to (POWERMEAN_SERVER names one), or from the folder of a service that
`powermean up` or `powermean demo` runs. An entry in the user's state folder (XDG_STATE_HOME) leads there from
any other folder.
"""

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from powermean.home import Home, NoServerError
from powermean.keys import clean_key
from powermean.servers import SavedServers, read_servers

log = logging.getLogger(__name__)

DEFAULT_URL = "http://127.0.0.1:8700"


class ServiceStartingError(NoServerError):
    """The service is just starting: it has no address yet."""

    code = "service_starting"
    retryable = True

    def __init__(self, home: Home) -> None:
        super().__init__(
            f"the service in {home.folder} is starting",
            remedy=f"Try again in a few seconds. Its logs are in {home.logs}.",
        )


@dataclass(frozen=True)
class FoundService:
    """A server and the key for it.

    `elsewhere` is the service's folder if the caller is not in it. `name` is that of a server signed in to,
    and `chosen_from_several` says that nobody named it and there are more.
    """

    url: str
    key: str
    elsewhere: Path | None = None
    name: str | None = None
    chosen_from_several: bool = False


def find_service(url: str | None = None, key: str | None = None) -> FoundService:
    """The service to talk to; `url` and `key` default to POWERMEAN_URL and POWERMEAN_API_KEY.

    POWERMEAN_SERVER comes before POWERMEAN_URL. Without either it is the one in POWERMEAN_HOME, or that runs
    in this folder, or the one signed in to last, or the only one that this user runs on this machine. A
    server's own key is used for that server alone.

    Raises:
        NoServerError: there is none, there are several, or its key is not known.
        ServiceStartingError: it is just starting.
        MalformedKeyError: POWERMEAN_API_KEY can't be a key.
        ServersFileError: there is no server of that name, or the file of servers is damaged.
    """
    name = os.environ.get("POWERMEAN_SERVER", "").strip()
    if name and url is None:
        return _saved(read_servers(), name)
    url = (url or os.environ.get("POWERMEAN_URL", "")).strip().rstrip("/")
    key = key or clean_key(os.environ.get("POWERMEAN_API_KEY", ""), "POWERMEAN_API_KEY")
    if url:
        return FoundService(url, key or _key_for(url))
    here = Home.find()
    if here.url:
        return FoundService(here.url, key or here.key())
    if here.locked:  # nobody who has just started it means another one
        raise ServiceStartingError(here)
    saved = read_servers()
    if saved.default is not None and not key and not os.environ.get("POWERMEAN_HOME"):
        return _saved(saved, saved.default, unnamed=True)
    registered_here = [] if os.environ.get("POWERMEAN_HOME") else _registered_homes()
    others = [home for home in registered_here if home.url]
    if len(others) == 1:
        (home,) = others
        return FoundService(home.url or DEFAULT_URL, key or home.key(), elsewhere=home.folder)
    if others:
        folders = "\n".join(f"  {home.folder} ({home.url})" for home in others)
        raise NoServerError(
            f"several services run on this machine:\n{folders}", remedy="Set POWERMEAN_HOME to one's folder."
        )
    if starting := [home for home in registered_here if home.locked]:
        raise ServiceStartingError(starting[0])
    if key:
        return FoundService(DEFAULT_URL, key)
    raise _nothing_found(here)


def _saved(servers: SavedServers, name: str, *, unnamed: bool = False) -> FoundService:
    server = servers.named(name)
    several = unnamed and len(servers.servers) > 1
    return FoundService(server.url, server.key, name=name, chosen_from_several=several)


def _key_for(url: str) -> str:
    """The key of a service of this user's, or that they are signed in to, at the address."""
    for home in (Home.find(), *running_homes()):
        if home.url == url:
            return home.key()
    if saved := read_servers().at(url):
        return saved.key
    raise NoServerError(
        f"{url} needs a key",
        remedy=f"Sign in with `powermean login --server {url}`, or set POWERMEAN_API_KEY.",
    )


def _nothing_found(here: Home) -> NoServerError:
    remedy = (
        "Start one with `powermean up`, sign in to one with `powermean login --server URL`, "
        "or set POWERMEAN_URL and POWERMEAN_API_KEY."
    )
    if here.admin_key.exists():
        return NoServerError(f"the service in {here.folder} is not running", remedy=remedy)
    if os.environ.get("POWERMEAN_HOME"):
        return NoServerError(f"no service has run in {here.folder}", remedy=remedy)
    if _listens(DEFAULT_URL):
        return NoServerError(
            f"something answers at {DEFAULT_URL}, but this user has started no service",
            remedy="Set POWERMEAN_API_KEY, or POWERMEAN_HOME to the service's folder.",
        )
    return NoServerError("this user runs no service on this machine", remedy=remedy)


def this_host() -> str:
    """This machine's name, for people to tell it from others."""
    return socket.gethostname()[:64] or "a machine without a name"


def _listens(url: str) -> bool:
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname, parts.port), timeout=1):
            return True
    except OSError:
        return False


def _register() -> Path:
    """The folder with a file for each service that this user runs."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state) / "powermean" / "services"


@contextmanager
def registered(home: Home) -> Iterator[None]:
    """While it is open, commands in other folders find the service that this process starts or runs."""
    entry = _register() / f"{os.getpid()}.json"
    try:
        if not entry.is_absolute():
            raise FileNotFoundError("this user has no home folder")
        entry.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        entry.write_text(json.dumps({"folder": str(home.folder)}))
    except OSError as error:  # such as a read-only home folder: commands find it in its own folder then
        log.warning("%s can't be written, other folders won't find the service: %s", entry, error)
    try:
        yield
    finally:
        with suppress(OSError):
            entry.unlink(missing_ok=True)


def running_homes() -> list[Home]:
    """The services that this user runs here and that have an address, the newest first."""
    return [home for home in _registered_homes() if home.url]


def _registered_homes() -> list[Home]:
    """Those that this user runs here or is starting, the newest first. Entries of dead ones are removed."""
    found: list[tuple[float, Home]] = []
    for entry in _register().glob("*.json"):
        try:
            if not Path(f"/proc/{int(entry.stem)}").exists():
                entry.unlink(missing_ok=True)
                continue
            home = Home(Path(json.loads(entry.read_text())["folder"]))
            if home.url or home.locked:
                found.append((entry.stat().st_mtime, home))
        except (OSError, ValueError, KeyError, TypeError, NoServerError):
            continue  # half-written, or not ours
    return [home for _, home in sorted(found, key=lambda one: -one[0])]
