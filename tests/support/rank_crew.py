"""Real ranks on this machine: processes that have joined one group and do what a test asks of them.

They are forked from a server that has imported everything once (an import of torch takes seconds).
"""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from trainer.failures import TrainingError
from trainer.ranks.meeting import STORE_FD, Deadlines, joined
from trainer.ranks.world import World

Job = Callable[..., Any]  # of a module in tests/support, with Ranks as its first argument
LIMIT_S = 60.0  # of a job; machines may be slow

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.support.rank_crew", "tests.support.rank_jobs"])


@dataclass(frozen=True)
class Failed:
    """A job raised this; the rank has left."""

    kind: str
    text: str
    code: str | None
    retryable: bool


@dataclass
class Crew:
    """The processes that were started, in order of rank."""

    processes: list[Any]
    pipes: list[Connection]
    port: int

    def have(self, job: Job, *given: object) -> list[Any]:
        """Every rank does it; what each returns. Raises AssertionError where one fails."""
        self.ask(job, *given)
        found = [self.answer(rank) for rank in range(len(self.pipes))]
        for rank, one in enumerate(found):
            assert not isinstance(one, Failed), f"rank {rank}: {one.kind}: {one.text}"
        return found

    def ask(self, job: Job, *given: object, ranks: Iterable[int] | None = None) -> None:
        """Have these ranks, or all, do it."""
        for rank in range(len(self.pipes)) if ranks is None else ranks:
            self.pipes[rank].send((job, given))

    def answer(self, rank: int) -> Any:
        """What a rank has to say next, a result or a Failed."""
        if not self.pipes[rank].poll(LIMIT_S):
            raise TimeoutError(f"rank {rank} says nothing")
        return self.pipes[rank].recv()

    def exits(self, rank: int) -> int | None:
        """The exit status of its process."""
        self.processes[rank].join(LIMIT_S)
        return self.processes[rank].exitcode

    def close(self) -> None:
        """Let all ranks part, or end them where they don't."""
        for pipe in self.pipes:
            with suppress(OSError):
                pipe.send(None)
        for process in self.processes:
            process.join(20)
            if process.is_alive():
                process.kill()
                process.join()


Main = Callable[..., None]  # of a module in tests/support: World, Connection, and what else it is given


def start(size: int, main: Main, *given: object, absent: Collection[int] = ()) -> Crew:
    """Start processes with torchrun's variables, all but those that are `absent`; each runs `main`."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        processes, pipes = [], []
        for rank in range(size):
            ours, theirs = _forks.Pipe()
            if rank not in absent:
                own = listening if rank == 0 else None
                process = _forks.Process(
                    target=_begin,
                    args=(World(rank, size, rank, size), own, port, theirs, main, given),
                    daemon=True,
                )
                process.start()
                processes.append(process)
                pipes.append(ours)
            theirs.close()
    return Crew(processes, pipes, port)


def crew(size: int, deadlines: Deadlines = Deadlines(), absent: Collection[int] = ()) -> Crew:
    """Ranks that have joined, or try to, and then do what they are asked."""
    return start(size, serve, deadlines, absent=absent)


def _begin(
    world: World,
    listening: socket.socket | None,
    port: int,
    pipe: Connection,
    main: Main,
    given: tuple[object, ...],
) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(world.rank),
        "WORLD_SIZE": str(world.size),
        "LOCAL_RANK": str(world.local_rank),
        "LOCAL_WORLD_SIZE": str(world.local_size),
    }
    if listening is not None:
        os.environ[STORE_FD] = str(listening.detach())
    main(world, pipe, *given)


def serve(world: World, pipe: Connection, deadlines: Deadlines) -> None:
    """Join, and do jobs until there are no more."""

    def end(error: TrainingError) -> None:
        pipe.send(_failed(error))
        os._exit(3)

    try:
        with joined(world, end, cuda=False, deadlines=deadlines) as ranks:
            while (asked := pipe.recv()) is not None:
                job, given = asked
                pipe.send(job(ranks, *given))
    except Exception as error:  # noqa: BLE001 (the test sees it)
        traceback.print_exc()
        pipe.send(_failed(error))
        os._exit(1)


def _failed(error: Exception) -> Failed:
    code = error.error.code if isinstance(error, TrainingError) else None
    return Failed(
        type(error).__name__, str(error), code, isinstance(error, TrainingError) and error.retryable
    )
