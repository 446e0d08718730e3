"""Notices that another rank is gone, even while this one waits for it in a call that can't be broken off.

Each rank leaves a sign of life in the store, beat by beat, and looks for the others'. A rank that fails says
why there. Signs say how far a rank has come, and where: one that hangs while others wait for it is named.
Beats are counted, not seconds: a machine that slept has missed none.
"""

import faulthandler
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from powermean.contracts.attempts import JobError
from powermean.contracts.names import RANK_LOST
from trainer.failures import TrainingError
from trainer.ranks.exchange import Place
from trainer.ranks.world import World

log = logging.getLogger(__name__)

BEAT_S = 1.0
LOST_BEATS = 30  # without a sign of life: a rank is lost
CALL_BEATS = 1800  # in which nobody moves while a rank is behind, which may still load its model
MOST_SHOWN = 3  # ranks behind whose place an error shows
NOTICE_BEATS = 5  # after which others have read why a rank ends
EXCHANGE_FAILED = "exchange_failed"
WATCH_FAILED = "watch_failed"
_FAILED = "failed"
_ROOT = Path(__file__).parents[2]
_TRAINER = str(Path(__file__).parents[1])


@dataclass(frozen=True, order=True)
class Standing:
    """How far a rank has come; those that have come as far as each other are equal."""

    calls: int = 0
    passes: int = 0
    collectives: int = 0
    doing: str = field(default="", compare=False)
    line: str = field(default="", compare=False)  # of the trainer's code

    def __str__(self) -> str:
        doing = f"{self.doing}, " if self.doing else ""
        return f"{doing}pass {self.passes}, collective {self.collectives}, {self.line}"


def standing(place: Place) -> Standing:
    """This rank's."""
    return Standing(place.calls, place.passes, place.collectives(), place.doing, _line())


def _line() -> str:
    """Where the main thread is in the trainer's code."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and not frame.f_code.co_filename.startswith(_TRAINER):
        frame = frame.f_back
    if frame is None:
        return "outside of the trainer"
    path = Path(frame.f_code.co_filename).relative_to(_ROOT)
    return f"{path}:{frame.f_lineno} in {frame.f_code.co_name}"


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
        try:
            self._follow()
        except Exception as error:  # else it would end as if rank 0 were gone
            log.exception("can't watch the other ranks any more")
            self._lose(watch_failed(error))

    def _follow(self) -> None:
        others = [rank for rank in range(self._world.size) if rank != self._world.rank]
        known = dict.fromkeys(others, (b"", 0))  # sign of life, and the round in which it was new
        places, moved = dict[int, Standing](), 0  # of all ranks, and the round in which one was new
        while not self._stopped.wait(self._beat_s):
            own = standing(self._place)
            try:
                self._store.set(sign(self._world.rank), written(self._rounds, own))
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
            now = {rank: read(found) for rank, found in zip(others, signs, strict=True)}
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
        if error.error.code == EXCHANGE_FAILED:  # the log of the rank that hangs says where
            faulthandler.dump_traceback(sys.__stderr__ or sys.stderr)
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


def written(rounds: int, own: Standing) -> str:
    """A sign of life. Trainers of the version before take three parts, and look at the last two alone."""
    return json.dumps([asdict(own) | {"rounds": rounds}, own.calls, own.passes])


def read(found: bytes) -> Standing:
    """What a sign of life says; the first sign says nothing, and one of the version before no more than how
    many calls and passes.
    """
    if not found:
        return Standing()
    more, calls, passes = json.loads(found)
    told = more if isinstance(more, dict) else {}
    return Standing(calls, passes, told.get("collectives", 0), told.get("doing", ""), told.get("line", ""))


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


def ranks_behind(places: Mapping[int, Standing], waited_s: float) -> TrainingError:
    """The error of ranks that live and don't come to what the others wait in."""
    least, first = min(places.values()), max(places, key=lambda rank: places[rank])
    behind = [rank for rank, place in places.items() if place == least]
    where = [f"rank {rank}: {places[rank]}" for rank in (*sorted(behind)[:MOST_SHOWN], first)]
    return TrainingError(
        EXCHANGE_FAILED,
        f"{named(behind)} of {len(places)} did not join a call among the ranks within {waited_s:.0f} s"
        f" ({'; '.join(where)})",
        remedy="see the log of its node: the process hangs at the line named, or waits for a disk or a GPU",
        retryable=True,
    )


def watch_failed(error: Exception) -> TrainingError:
    """The error of a rank that can't notice any more whether others are gone."""
    return TrainingError(
        WATCH_FAILED,
        f"it can't watch the other ranks: {type(error).__name__}: {error}",
        remedy="see its log; do all nodes of the job have the same version of powermean?",
        retryable=True,
    )


def named(ranks: Sequence[int]) -> str:
    """Ranks, in words."""
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, sorted(ranks)))}"


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
