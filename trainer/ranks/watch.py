"""Notices that another rank is gone, even while this one waits for it in a call that can't be broken off.

Each rank leaves a sign of life in the store, beat by beat, and looks for the others'. A rank that fails says
why there. Beats are counted, not seconds: a machine that slept has missed none.
"""

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from powermean.contracts.attempts import JobError
from powermean.contracts.names import RANK_LOST
from trainer.failures import TrainingError
from trainer.ranks.world import World

BEAT_S = 1.0
LOST_BEATS = 30  # without a sign of life: a rank is lost
NOTICE_BEATS = 5  # after which others have read why a rank ends
_FAILED, _LEFT = "failed", "left"


class Watch:
    """Two threads: one asks the store, one looks at whether that still gets answers."""

    def __init__(
        self,
        world: World,
        store: TCPStore,
        end: Callable[[TrainingError], None],
        beat_s: float = BEAT_S,
        lost_beats: int = LOST_BEATS,
    ) -> None:
        """`store` has a connection of its own. `end` is called once, from a thread, and ends the process."""
        self._world, self._store, self._end = world, store, end
        self._beat_s, self._lost_beats = beat_s, lost_beats
        self._stopped = threading.Event()
        self._ending = threading.Lock()
        self._rounds = 0
        self._threads = [threading.Thread(target=t, daemon=True) for t in (self._listen, self._look)]

    def start(self) -> None:
        """Begin once all ranks have left their first sign."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """The ranks part in peace."""
        self._stopped.set()
        self._threads[0].join(self._beat_s * 2)

    def takes_over(self) -> bool:
        """Whether the caller is the one that ends this process; the first to ask is."""
        return self._ending.acquire(blocking=False)

    def _listen(self) -> None:
        others = [rank for rank in range(self._world.size) if rank != self._world.rank]
        known = dict.fromkeys(others, (b"", 0))  # sign of life, and the round in which it was new
        while not self._stopped.wait(self._beat_s):
            try:
                self._store.set(sign(self._world.rank), str(self._rounds))
                if self._store.check([_FAILED]):
                    self._lose(_failure(self._store.get(_FAILED)))
                signs = self._store.multi_get([sign(rank) for rank in others])
            except RuntimeError:  # the store is rank 0's
                self._lose(rank_lost(0), told=False)
                return
            self._rounds += 1
            for rank, found in zip(others, signs, strict=True):
                if found != known[rank][0]:
                    known[rank] = (found, self._rounds)
                elif self._rounds - known[rank][1] >= self._lost_beats:
                    self._lose(rank_lost(rank))

    def _look(self) -> None:
        """The store's calls have no deadline of their own where rank 0 is frozen."""
        rounds, beats = 0, 0
        while not self._stopped.wait(self._beat_s):
            beats = beats + 1 if rounds == self._rounds else 0
            rounds = self._rounds
            if beats >= self._lost_beats:
                self._lose(rank_lost(0), told=False)

    def _lose(self, error: TrainingError, told: bool = True) -> None:
        """End this process. Others hear why first, where the store can still be `told`."""
        if self._stopped.is_set() or not self.takes_over():
            return
        if told:
            with suppress(RuntimeError):
                tell_failure(self._store, error.error, retryable=error.retryable)
            self.let_others_hear()
        self._stopped.set()
        self._end(error)

    def let_others_hear(self) -> None:
        """The store ends with rank 0."""
        if self._world.leads:
            time.sleep(NOTICE_BEATS * self._beat_s)


def sign(rank: int) -> str:
    """The key of a rank's sign of life."""
    return f"alive/{rank}"


def tell_failure(store: TCPStore, error: JobError, *, retryable: bool) -> None:
    """Say why the ranks end, unless another one has said so before."""
    note = {"error": error.model_dump(), "retryable": retryable}
    store.compare_set(_FAILED, "", json.dumps(note))


def rank_lost(rank: int) -> TrainingError:
    """The error of a rank that died or froze."""
    return TrainingError(
        RANK_LOST,
        f"rank {rank} gives no sign of life",
        remedy="see its node's log: the process was killed, or its machine hangs",
        retryable=True,
    )


def _failure(note: bytes) -> TrainingError:
    told = json.loads(note)
    why = JobError.model_validate(told["error"])
    return TrainingError(
        why.code,
        why.message,
        path=why.path,
        remedy=why.remedy,
        retryable=told["retryable"],
    )
