"""What orders an attempt to end: the server, signals, the end of its allocation, a cut lifeline."""

import signal
import time
from types import FrameType

from powermean.contracts.attempts import Claim
from powermean.processes import Lifeline
from worker.attempt.heartbeat import Heartbeat
from worker.attempt.limits import AbandonedError, Limits, StopError
from worker.attempt.progress import Progress


class Orders:
    """Look at it again and again: it raises when the attempt has to end."""

    def __init__(
        self,
        claim: Claim,
        heartbeat: Heartbeat,
        progress: Progress,
        limits: Limits,
        lifeline: Lifeline | None,
    ) -> None:
        several = claim.spec.resources.nodes > 1
        self._alone, self._leads_others = not several, several and claim.node_rank == 0
        self._heartbeat = heartbeat
        self._progress = progress
        self._limits = limits
        self._lifeline = lifeline
        self.training = False  # the supervisor says so; before that there is nothing to save
        self._stopping = False
        self._ordered_at: float | None = None
        self._taken_at: float | None = None  # when the trainer was told that its allocation is being ended

    def heed_signals(self) -> None:
        """Stop on SIGTERM, also if it has come already: the worker starts this process with it blocked."""
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    @property
    def taken(self) -> str | None:
        """The allocation that this node runs in, once it is being ended."""
        return self._limits.pilot if self._stopping else None

    def check(self) -> None:
        """Raises AbandonedError or StopError when the attempt has to end."""
        self.check_ours()
        if time.monotonic() - self._heartbeat.answered > self._limits.partition_s:
            raise AbandonedError(f"the server could not be reached for {self._limits.partition_s:.0f} s")
        if self._stopping and self._limits.pilot is None:
            raise StopError("node_stopping")
        if self._heartbeat.order == "cancel":
            raise StopError("cancel")
        if self._stopping:
            self._leave_allocation()
        if self._heartbeat.order == "checkpoint_and_exit" and not self._may_save():
            raise StopError("not_begun")
        finishing = self._heartbeat.order == "finish"
        if self._heartbeat.order != "continue" and (not finishing or self._has_begun()):
            self._ordered_at = self._ordered_at or time.monotonic()
            if time.monotonic() - self._ordered_at > self._limits.order_s:
                raise StopError("finish_ignored" if finishing else "order_ignored")

    def check_ours(self) -> None:
        """Raises AbandonedError when the attempt may be somebody else's by now."""
        if self._heartbeat.refused:
            raise AbandonedError(str(self._heartbeat.refused))
        if self._lifeline and self._lifeline.cut:
            raise AbandonedError("the service that this node belongs to is gone")

    def _leave_allocation(self) -> None:
        """Have the trainer save; on several nodes the server tells all of them, for it drains this one."""
        self._taken_at = self._taken_at or time.monotonic()
        if self._alone:
            self._heartbeat.leave()
        if time.monotonic() - self._taken_at > self._limits.taken_s:
            raise StopError("taken")

    def _may_save(self) -> bool:
        """Whether there may be something to save. Before the steps begin, other nodes may be gone already."""
        return self._has_begun() if self._leads_others else self.training

    def _has_begun(self) -> bool:
        return self.training and self._progress.in_steps()
