"""`python -m worker.health`: whether the server hears this node's worker, for a container's health check.

With `--alive` it asks only whether the worker still turns, which it does without a server, too: restart it if
not. Exit status 1 and one line if something is wrong. It imports nothing beyond the standard library, because
it runs every few seconds.
"""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

TURNED, HEARD = "worker.turned", "worker.heard"  # in the data folder; their times count
TURNED_S, HEARD_S = (
    120.0,
    60.0,
)  # a turn waits for the driver and for an answer; there is one every few seconds


def note(data_dir: Path, name: str) -> None:
    """Say that it happened now. A disk that takes nothing is reported elsewhere."""
    with suppress(OSError):
        (data_dir / name).touch()


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    folder = os.environ.get("POWERMEAN_DATA_DIR")
    if not folder:
        print("POWERMEAN_DATA_DIR is not set: set it as for the worker")
        return 1
    alive = "--alive" in arguments
    name, most = (TURNED, TURNED_S) if alive else (HEARD, HEARD_S)
    what = "made its last turn" if alive else "was last heard by the server"
    try:
        age = time.time() - (Path(folder) / name).stat().st_mtime
    except OSError as error:
        print(f"the worker has not reported yet: {error.filename}: {error.strerror}")
        return 1
    print(f"the worker {what} {age:.0f} s ago")
    return 0 if age <= most else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
