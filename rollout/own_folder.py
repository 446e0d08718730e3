"""A temporary folder that is removed even when its owner is killed: by the next that makes one.

The owner holds a lock on a file in it. The kernel lets go of that when the owner ends, in whatever way.
"""

import fcntl
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

FOLDER_PREFIX = "powermean-rollout-"
_LOCK = "owner.lock"
_MOST_CHARACTERS = 42  # a socket's path has 107 at most: this, the folder's name and vLLM's, of 36


class OwnFolder:
    """A new folder of mode 0700 in the temporary folder."""

    def __init__(self) -> None:
        remove_abandoned()
        self.path = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=_root()))
        made = self.path / "new.lock"
        self._lock = made.open("xb")  # programs that the owner starts do not inherit it
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        made.rename(self.path / _LOCK)  # locked from the moment that others see it

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """May be called again."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _root() -> Path:
    """The temporary folder, unless its own name leaves no room for that of a socket."""
    folder = Path(tempfile.gettempdir())
    return folder if len(str(folder)) <= _MOST_CHARACTERS else Path("/tmp")  # noqa: S108 (mkdtemp's are private)


def remove_abandoned() -> None:
    """Remove the folders of owners that ended without removing them."""
    for lock_file in _root().glob(f"{FOLDER_PREFIX}*/{_LOCK}"):
        # It may be another user's, locked, or just removed.
        with suppress(OSError), lock_file.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock_file.parent, ignore_errors=True)
