"""The sides that benchmarks/round.py compares: each in a process of its own, spoken to over a pipe.

A side is a function that gets its end of the pipe first. It sends its process ids once it is warm, and then a
Turn each time that it is `asked`, until it isn't any more. It goes by name: what one side imports must not
count as the other's memory.
"""

import multiprocessing
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

_LOOK_S = 0.02
_STOP_S = 60.0


@dataclass(frozen=True)
class Turn:
    """What a turn took; `facts` say what it worked on."""

    seconds: float
    cpu_seconds: float
    facts: dict[str, float]


@dataclass
class Side:
    """A process that takes turns. `peak`: most bytes that it and its engine had together so far."""

    pipe: Connection
    pids: tuple[int, ...] = ()
    peak: int = 0

    def turn(self) -> Turn:
        """Raises EOFError where the process has ended; its own words are on stderr."""
        self.pipe.send(True)
        found = self.answer()
        assert isinstance(found, Turn)
        return found

    def answer(self) -> object:
        """What it sends next; its memory is looked at meanwhile."""
        while not self.pipe.poll(_LOOK_S):
            self.peak = max(self.peak, resident(self.pids))
        return self.pipe.recv()


@contextmanager
def side(
    module: str, function: str, *given: Any, environment: Mapping[str, str] | None = None
) -> Iterator[Side]:
    """A side that is warm. It ends with the block. `environment` is what it has beside this process's."""
    spawn = multiprocessing.get_context("spawn")
    ours, its = spawn.Pipe()
    process = spawn.Process(target=_work, args=(its, module, function, *given))
    with patch.dict(os.environ, environment or {}):
        process.start()
    its.close()
    try:
        found = Side(ours)
        pids = found.answer()
        assert isinstance(pids, tuple)
        found.pids = pids
        yield found
    finally:
        ours.close()
        process.join(_STOP_S)
        if process.is_alive():
            process.kill()


def _work(pipe: Connection, module: str, function: str, *given: Any) -> None:
    getattr(import_module(module), function)(pipe, *given)


def asked(pipe: Connection) -> bool:
    """In a side: wait until it is asked for a turn. False: it is over."""
    try:
        return bool(pipe.recv())
    except EOFError:
        return False


def resident(pids: Iterable[int]) -> int:
    """Bytes that processes take together: what they share (files, shared memory) counts once.

    Not the proportional set size: that also divides by strangers who have the same libraries, and takes
    milliseconds of the kernel's time.
    """
    found = [_kinds(pid) for pid in pids]
    if not found:
        return 0
    own, files, shared = zip(*found, strict=True)
    return sum(own) + max(files) + max(shared)


def _kinds(pid: int) -> tuple[int, int, int]:
    """Resident bytes of its own, of files, and of shared memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    sizes = {line.split()[0]: int(line.split()[1]) << 10 for line in lines if line.startswith("Rss")}
    return sizes["RssAnon:"], sizes["RssFile:"], sizes["RssShmem:"]
