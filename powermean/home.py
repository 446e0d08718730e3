"""The embedded service's folder: POWERMEAN_HOME, by default .powermean in the current folder."""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from powermean.errors import PowermeanError
from powermean.keys import clean_key


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
        return _read(self.address)

    def key(self) -> str:
        """The administrator's key.

        Raises:
            NoServerError: there is none, or its file is somebody else's.
            MalformedKeyError: it can't be a key.
        """
        key = _read(self.admin_key)
        if key is None:
            raise NoServerError(
                f"no service has run in {self.folder}: {self.admin_key} does not exist",
                remedy="Start one with `powermean up`, or set POWERMEAN_URL and POWERMEAN_API_KEY.",
            )
        return clean_key(key, str(self.admin_key))

    @property
    def lock(self) -> Path:
        return self.folder / "lock"

    @property
    def locked(self) -> bool:
        """Whether a service has the folder: it starts, runs or stops."""
        try:
            with self.lock.open("rb") as held:
                fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # there is no such file, or it is somebody else's
            return False
        return False

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def artefacts(self) -> Path:
        return self.folder / "artefacts"

    @property
    def database(self) -> Path:
        return self.folder / "server.db"

    @property
    def redis(self) -> Path:
        """Redis's working folder."""
        return self.folder / "redis"

    @property
    def models(self) -> Path:
        """Downloaded final models, one folder per job."""
        return self.folder / "models"


def _read(path: Path) -> str | None:
    """The file's text; None where there is no such file. Raises NoServerError for one that can't be read."""
    try:
        return path.read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise NoServerError(
            f"{path} can't be read: {error.strerror}",
            remedy="Set POWERMEAN_URL and POWERMEAN_API_KEY, or POWERMEAN_HOME to your own service's folder.",
        ) from error
