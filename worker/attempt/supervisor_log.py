"""The supervisor's own log."""

import time


def say(text: str) -> None:
    """Write to supervisor.log, which the worker opened for us."""
    print(time.strftime("%Y-%m-%d %H:%M:%S"), text, flush=True)
