"""The embedded service's folder: POWERMEAN_HOME, by default .powermean in the current folder."""

import os
from dataclasses import dataclass
from pathlib import Path

from powermean.errors import PowermeanError


class NoServerError(PowermeanError):
    """Neither the environment nor a file says where the server is or which key to use."""

    code = "no_server"


@dataclass(frozen=True)
class Home:
    """Where the embedded service keeps things."""

    folder: Path

    @classmethod
    def find(cls) -> "Home":
        return cls(Path(os.environ.get("POWERMEAN_HOME") or ".powermean").absolute())

    @property
    def secrets(self) -> Path:
        return self.folder / "secrets"

    @property
    def admin_key(self) -> Path:
        return self.secrets / "admin.key"

    @property
    def address(self) -> Path:
        """The file with the server's URL while it runs."""
        return self.folder / "server.url"

    @property
    def url(self) -> str | None:
        """The server's URL while it runs."""
        try:
            return self.address.read_text().strip()
        except FileNotFoundError:
            return None

    def key(self) -> str:
        """The administrator's key. Raises NoServerError."""
        try:
            return self.admin_key.read_text().strip()
        except FileNotFoundError as error:
            raise NoServerError(
                f"no service has run in {self.folder}: {self.admin_key} does not exist",
                remedy="Start one with `powermean up`, or set POWERMEAN_URL and POWERMEAN_API_KEY.",
            ) from error
        except OSError as error:
            raise NoServerError(
                f"{self.admin_key} can't be read: {error.strerror}",
                remedy="Set POWERMEAN_API_KEY to a key of your own.",
            ) from error

    @property
    def lock(self) -> Path:
        return self.folder / "lock"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def artefacts(self) -> Path:
        return self.folder / "artefacts"

    @property
    def models(self) -> Path:
        """Downloaded final models, one folder per job."""
        return self.folder / "models"
