"""Which rank of a node is to blame when the attempt ends, and what it says of that itself."""

from collections.abc import Iterable, Mapping

from powermean.contracts.attempts import EngineStart, Finish
from worker.attempt.outcome import Ended, finish, only_lost_a_peer
from worker.attempt_dir import AttemptDir


def to_blame(attempt: AttemptDir, failed: Mapping[int, int]) -> int | None:
    """Of the ranks that failed, with their exit statuses: one that was killed, before those that failed for
    want of it.
    """

    def weight(rank: int) -> tuple[bool, bool, int]:
        said = _said(attempt, rank)
        return failed[rank] > 0, said is not None and only_lost_a_peer(said), rank

    return min(failed, key=weight, default=None)


def own_cause(
    attempt: AttemptDir, ranks: Iterable[int], failed: Mapping[int, int], start: EngineStart | None
) -> Finish | None:
    """What went wrong on this node of an attempt that has ended on another one; None: nothing that is known.

    `failed`: exit statuses from before the node's processes were ended. `start`: of an engine that failed.
    """
    for rank in ranks:
        said = _said(attempt, rank)
        if said is not None and said.outcome == "failed" and not only_lost_a_peer(said):
            return finish(Ended(rank=rank, rank_record=said))
    killed = next((rank for rank, code in failed.items() if code < 0), None)
    if killed is not None:
        return finish(Ended(rank=killed, trainer_code=failed[killed]))
    return finish(Ended(engine_start=start)) if start is not None else None


def _said(attempt: AttemptDir, rank: int) -> Finish | None:
    return attempt.rank_end(rank) if rank else attempt.end()
