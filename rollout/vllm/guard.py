"""Runs vLLM and ends all of its processes when the rollout service is gone.

vLLM is several processes, and its engine outlives a killed API server. The guard runs between vLLM and the
service: it adopts orphans, watches both sides, ends what is left and removes vLLM's shared memory.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from powermean.children import end
from powermean.processes import Lifeline, descendants, end_all
from powermean.tether import adopt_orphans, ending_signal, tethered
from rollout.vllm.shared_memory import remove, used_by

_POLL_S = 0.2
_GRACE_S = 5.0
_LOOK_S = 1.0  # between checks of the shared memory in use, since killed processes leave no list


def guarded(command: Sequence[str]) -> list[str]:
    """The command line that runs `command` under a guard for this process."""
    return [sys.executable, "-m", "rollout.vllm.guard", str(os.getpid()), *command]


def main(arguments: Sequence[str]) -> int:
    """`PARENT_PID PROGRAM ARGUMENT...`: the program's exit status, or 1 if it was ended."""
    parent, command = Lifeline(int(arguments[0])), arguments[1:]
    asked = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the service decides
    signal.signal(ending_signal(), lambda *_: asked.set())
    adopt_orphans()
    with subprocess.Popen(tethered(command)) as program:
        memory: set[Path] = set()
        look_again = 0.0
        while program.poll() is None and not parent.cut and not asked.is_set():
            if time.monotonic() > look_again:
                memory |= used_by(descendants(os.getpid()))
                look_again = time.monotonic() + _LOOK_S
            asked.wait(_POLL_S)
        memory |= used_by(descendants(os.getpid()))
        if asked.is_set() and not parent.cut:
            end(program, _GRACE_S)  # the API server alone: it ends the others in order
        end_all(lambda: descendants(os.getpid()), 0.0)
        remove(memory)
        return program.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
