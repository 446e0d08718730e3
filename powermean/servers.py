"""The servers that this user's command line is signed in to: a file with their keys, mode 0600.

`$XDG_CONFIG_HOME/powermean/servers.json`, by default `~/.config/powermean/servers.json`. It is always
replaced as a whole, so that no reader ever sees half of it or a key with a wider mode.
"""

import json
import os
import secrets
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from powermean.errors import PowermeanError


class ServersFileError(PowermeanError):
    """The file of servers can't be read or written, or lacks the server that was named."""

    code = "servers_file"


class SavedServer(BaseModel):
    """A server, and the key that it gave this machine."""

    model_config = ConfigDict(frozen=True)

    url: str
    key: str = Field(repr=False)
    key_id: str
    person: str  # whose key it is, for people to read
    expires_at: datetime | None = None


class SavedServers(BaseModel):
    """The file's content. `default` is the server that was signed in to last."""

    model_config = ConfigDict(frozen=True)

    default: str | None = None
    servers: dict[str, SavedServer] = {}

    def chosen(self) -> str | None:
        """The server to talk to: the one in POWERMEAN_SERVER, or the default one."""
        return os.environ.get("POWERMEAN_SERVER", "").strip() or self.default

    def named(self, name: str) -> SavedServer:
        """Raises ServersFileError if there is none of this name."""
        if name not in self.servers:
            known = ", ".join(sorted(self.servers)) or "none"
            raise ServersFileError(
                f"no server is called {name!r} (known: {known})",
                remedy=f"Sign in with `powermean login --server URL --name {name}`.",
            )
        return self.servers[name]

    def at(self, url: str) -> SavedServer | None:
        """The server with this address."""
        return next((one for one in self.servers.values() if one.url == url), None)

    def adding(self, name: str, server: SavedServer) -> "SavedServers":
        """With this server as the default one."""
        return SavedServers(default=name, servers={**self.servers, name: server})

    def without(self, name: str) -> "SavedServers":
        left = {other: server for other, server in self.servers.items() if other != name}
        return SavedServers(
            default=self.default if self.default in left else next(iter(left), None), servers=left
        )


def servers_file() -> Path:
    """Where the file is, or would be."""
    folder = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(folder) / "powermean" / "servers.json"


def read_servers() -> SavedServers:
    """The file's content; empty where there is no file.

    Raises:
        ServersFileError: it can't be read, or is no such file.
    """
    path = servers_file()
    try:
        return SavedServers.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return SavedServers()
    except OSError as error:
        raise ServersFileError(f"{path} can't be read: {error.strerror}") from error
    except ValidationError:
        raise ServersFileError(  # without the error's text, which would quote keys
            f"{path} is damaged", remedy="Remove it, and sign in again with `powermean login --server URL`."
        ) from None


def write_servers(servers: SavedServers) -> None:
    """Replace the file. Raises ServersFileError."""
    path = servers_file()
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(servers.model_dump(mode="json"), file, indent=2)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise ServersFileError(f"{path} can't be written: {error.strerror}") from error
