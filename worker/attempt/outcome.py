"""How an attempt ended, judging by what its processes left: a pure function."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from powermean.contracts.attempts import EngineStart, Finish, JobError
from powermean.contracts.names import RANK_LOST
from powermean.contracts.pools import BEING_ENDED
from powermean.disk import is_full
from powermean.processes import exit_text

Stop = Literal[
    "cancel", "node_stopping", "taken", "not_begun", "order_ignored", "finish_ignored", "stalled", "frozen"
]
STOPPED: dict[Stop, str] = {
    "node_stopping": "the service on its node was stopped",
    "taken": "there was no time to end its step",
    "not_begun": "its training had not begun",
    "order_ignored": "it did not stop in time when it was ordered to",
}


@dataclass(frozen=True)
class Ended:
    """What is known when all processes are gone."""

    record: Finish | None = None  # as reported by the trainer itself
    refused: JobError | None = None  # why the server refused one of its records
    stop: Stop | None = None  # why the supervisor stopped it, if it did
    model_code: int | None = None  # exit status of preparing the model, if that failed
    model_error: JobError | None = None  # and its output
    engine_code: int | None = None  # exit status of an engine that ended before the trainer
    engine_start: EngineStart | None = None  # its report on its start
    trainer_code: int | None = None
    rank: int | None = None  # whose exit status that is, or which was frozen, where a job has several
    rank_record: Finish | None = None  # as reported by that rank itself, if it is not rank 0
    follows: bool = False  # rank 0, which reports, is on another node
    out_of_memory: bool = False  # the kernel has killed something for lack of memory
    unmet: Finish | None = None  # why the ranks could not meet
    broken: OSError | None = None  # why the supervisor itself could not go on
    full_disk: Path | None = None  # the folder whose disk had no room at the end
    taken: str | None = None  # the allocation of a pool that was being ended meanwhile
    last_words: str = ""  # the log's last line


def only_lost_a_peer(end: Finish) -> bool:
    """Whether a rank failed because another one had gone: that one's node knows why."""
    return end.outcome == "failed" and end.error is not None and end.error.code == RANK_LOST


def finish(ended: Ended) -> Finish:
    """The attempt's end, for the server. What failed for good on a full disk may succeed on another try."""
    end = _finish(ended)
    unexplained = ended.record is None and ended.refused is None
    if ended.full_disk and unexplained and end.outcome == "failed" and not end.retryable:
        end = Finish(outcome="failed", error=disk_full(ended.full_disk), retryable=True)
    return _taken(end, ended.taken) if ended.taken else end


def _taken(end: Finish, pilot: str) -> Finish:
    """An end that may be due to its allocation's: the job goes on elsewhere, at the cost of no restart."""
    fell = end.outcome == "failed" and end.retryable
    if end.outcome != "checkpointed" and not fell:
        return end
    how = end.error.message if end.error else end.reason
    said = "; ".join(filter(None, (f"allocation {pilot} was {BEING_ENDED}", how)))
    return Finish(outcome="checkpointed", reason=said[:300])


def _finish(ended: Ended) -> Finish:
    record = ended.record
    if record and record.outcome == "failed" and ended.rank:
        record = None  # rank 0 failed for want of that rank
    if ended.refused:
        return Finish(outcome="failed", error=ended.refused)
    if record and record.outcome == "finished":
        return record
    if ended.stop == "cancel":
        return Finish(outcome="cancelled")
    if ended.stop in STOPPED:
        return Finish(outcome="checkpointed", reason=STOPPED[ended.stop])  # resumes from its last commit
    if record and record.outcome == "checkpointed":
        return record
    if ended.stop == "finish_ignored":
        return _failed(
            "finish_timed_out",
            "The job reached a limit, and its trainer did not finish in time.",
            retry=False,
            remedy="Its last checkpoint is kept; POWERMEAN_STOP_GRACE_S of the node is the time it had.",
        )
    if ended.stop == "stalled":
        return _failed(
            "trainer_stalled", "The trainer made no progress for too long and was stopped.", retry=True
        )
    if ended.stop == "frozen":
        return _failed("trainer_frozen", f"{_who(ended)} was frozen by a signal.", retry=True)
    if ended.engine_start and ended.engine_start.error:
        why = ended.engine_start
        return Finish(outcome="failed", error=why.error, retryable=why.retryable)
    if ended.engine_code is not None:
        how = _how(ended.engine_code, ended)
        return _failed(
            "engine_died", f"The rollout engine {how} during the run. {ended.last_words}".strip(), retry=True
        )
    if record:
        return record
    if ended.rank_record and ended.rank_record.error:
        error = ended.rank_record.error
        told = error.model_copy(update={"message": f"{_who(ended)}: {error.message}"})
        return ended.rank_record.model_copy(update={"error": told})
    if ended.unmet:
        return ended.unmet
    if ended.broken and is_full(ended.broken) and ended.full_disk:
        return Finish(outcome="failed", error=disk_full(ended.full_disk), retryable=True)
    if ended.broken is not None:
        return _failed("supervisor_error", f"The node could not run the attempt: {ended.broken}", retry=True)
    if ended.model_code is not None:
        return _without_record("model", "Preparing the model", ended.model_code, ended)
    if ended.trainer_code == 0 and ended.follows:
        return Finish(outcome="finished")  # in order: rank 0 says how the attempt ended
    if ended.trainer_code is not None:
        return _without_record("trainer", _who(ended), ended.trainer_code, ended)
    return _failed("trainer_lost", "The trainer was never started.", retry=True)


def ended_elsewhere() -> Finish:
    """The end of a node's part in an attempt that another node has ended, where nothing else is known."""
    return _failed(RANK_LOST, "The attempt ended on another node.", retry=True)


def disk_full(folder: Path) -> JobError:
    """The error of an attempt that needs room on its node's disk."""
    return JobError(
        code="disk_full",
        message=f"The disk of {folder} on the node is full.",
        remedy="Make room there: the job goes on from its last checkpoint by itself.",
    )


def _who(ended: Ended) -> str:
    return "The trainer" if ended.rank is None else f"Rank {ended.rank} of the trainer"


def _how(code: int, ended: Ended) -> str:
    """How a program ended, in words."""
    if code == -9 and ended.out_of_memory:
        return "was killed by the kernel, since the node or its container had no memory left"
    return exit_text(code)


def _without_record(what: str, who: str, code: int, ended: Ended) -> Finish:
    how = _how(code, ended)
    if code < 0:
        remedy = (
            "If it was the kernel's out-of-memory killer, lower training.micro_batch_tokens."
            if code == -9
            else None
        )
        return _failed(f"{what}_killed", f"{who} {how}.", retry=True, remedy=remedy)
    if code == 0:
        return _failed(f"{what}_silent", f"{who} ended without reporting how.", retry=False)
    message = f"{who} {how}. {ended.last_words}".strip()
    return _failed(f"{what}_error", message, retry=False, remedy="See the attempt's log.")


def _failed(code: str, message: str, retry: bool, remedy: str | None = None) -> Finish:
    error = JobError(code=code, message=message, remedy=remedy)
    return Finish(outcome="failed", error=error, retryable=retry)
