"""A temporary folder that is removed even if its owner is killed: by the next owner of one.

The owner holds a lock on a file in it, which the kernel releases when the owner ends in any way.
"""

import fcntl
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

FOLDER_PREFIX = "powermean-rollout-"
_LOCK = "owner.lock"
_MOST_CHARACTERS = 42  # a socket path has at most 107 characters: this, the folder's name and vLLM's 36


class OwnFolder:
    """A new folder of mode 0700 in the temporary folder."""

    def __init__(self) -> None:
        remove_abandoned()
        self.path = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=_root()))
        made = self.path / "new.lock"
        self._lock = made.open("xb")  # not inherited by programs that the owner starts
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        made.rename(self.path / _LOCK)  # locked from the moment others can see it

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove the folder; may be called again."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _root() -> Path:
    """The temporary folder, unless its path leaves no room for a socket's."""
    folder = Path(tempfile.gettempdir())
    return folder if len(str(folder)) <= _MOST_CHARACTERS else Path("/tmp")  # noqa: S108 (mkdtemp's are private)


def remove_abandoned() -> None:
    """Remove the folders of owners that ended without removing them."""
    for lock_file in _root().glob(f"{FOLDER_PREFIX}*/{_LOCK}"):
        # It may belong to another user, be locked, or just have been removed.
        with suppress(OSError), lock_file.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock_file.parent, ignore_errors=True)
