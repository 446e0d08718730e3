"""`powermean demo` as a person runs it, in a folder of its own."""

import os
import sys
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parent.parent.parent
POWERMEAN = Path(sys.executable).with_name("powermean")


def environment(home: Path) -> dict[str, str]:
    """As a person's shell has it: no thread limits of the test run."""
    kept = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS" and not k.startswith("POWERMEAN_")}
    return kept | {"POWERMEAN_HOME": str(home)}


def processes_of(home: Path) -> list[psutil.Process]:
    """Processes that were started for this home, by their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            mine = str(home) in " ".join(process.environ().values()) + " ".join(process.cmdline())
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if mine and process.pid != os.getpid():
            found.append(process)
    return found
