"""What the supervisor says of itself."""

import time


def say(text: str) -> None:
    """Into supervisor.log, which the worker opened for us."""
    print(time.strftime("%Y-%m-%d %H:%M:%S"), text, flush=True)
