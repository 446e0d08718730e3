"""Notices that another rank is gone, even while this one waits for it in a call that can't be broken off.

Each rank leaves a sign of life in the store, beat by beat, and looks for the others'. A rank that fails says
why there. Signs say how far a rank has come: one that hangs while others wait in a call is named. Beats are
counted, not seconds: a machine that slept has missed none.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from powermean.contracts.attempts import JobError
from powermean.contracts.names import RANK_LOST
from trainer.failures import TrainingError
from trainer.ranks.exchange import Place
from trainer.ranks.world import World

BEAT_S = 1.0
LOST_BEATS = 30  # without a sign of life: a rank is lost
CALL_BEATS = 1800  # in which nobody moves while a rank is behind, which may still load its model
NOTICE_BEATS = 5  # after which others have read why a rank ends
EXCHANGE_FAILED = "exchange_failed"
_FAILED = "failed"


class Watch:
    """Two threads: one asks the store, one looks at whether that still gets answers."""

    def __init__(
        self,
        world: World,
        store: TCPStore,
        end: Callable[[TrainingError], None],
        beat_s: float = BEAT_S,
        lost_beats: int = LOST_BEATS,
        call_beats: int = CALL_BEATS,
        place: Place | None = None,
    ) -> None:
        """`store` has a connection of its own. `end` is called once, from a thread, and ends the process."""
        self._world, self._store, self._end = world, store, end
        self._beat_s, self._lost_beats, self._call_beats = beat_s, lost_beats, call_beats
        self._place = place or Place()
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
        places, moved = dict[int, tuple[int, int]](), 0  # of all ranks, and the round in which one was new
        while not self._stopped.wait(self._beat_s):
            try:
                own = (self._place.calls, self._place.passes)
                self._store.set(sign(self._world.rank), json.dumps([self._rounds, *own]))
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
            now = {rank: _place(found) for rank, found in zip(others, signs, strict=True)}
            now[self._world.rank] = own
            if now != places:
                places, moved = now, self._rounds
            elif len(set(now.values())) > 1 and self._rounds - moved >= self._call_beats:
                self._lose(ranks_behind(now, self._call_beats * self._beat_s))

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


def ranks_behind(places: Mapping[int, tuple[int, int]], waited_s: float) -> TrainingError:
    """The error of ranks that live and don't come to what the others wait in; `places`: calls and passes."""
    least = min(places.values())
    behind = [rank for rank, place in places.items() if place == least]
    return TrainingError(
        EXCHANGE_FAILED,
        f"{named(behind)} of {len(places)} did not join a call among the ranks within {waited_s:.0f} s",
        remedy="see the log of its node: the process hangs, or it waits for a disk or a GPU",
        retryable=True,
    )


def named(ranks: Sequence[int]) -> str:
    """Ranks, in words."""
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, sorted(ranks)))}"


def _place(found: bytes) -> tuple[int, int]:
    """Calls and passes of a sign of life; the first sign has none."""
    _, calls, passes = json.loads(found or b"[0, 0, 0]")
    return calls, passes


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
