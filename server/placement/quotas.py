"""Who has how much: guaranteed quotas, what is borrowed beyond them, limits, shares."""

from collections.abc import Mapping
from dataclasses import dataclass

from server.placement.state import ClusterState, RunningJob, Share, WaitingJob

_NONE = Share()


@dataclass(slots=True)
class Account:
    """A project's, of GPUs or of CPU slots."""

    quota: int
    limit: int | None
    used: int = 0
    leaving: int = 0  # held until a checkpoint is saved

    @property
    def borrowed(self) -> int:
        """What the project has beyond its quota."""
        return self.used - self.quota if self.used > self.quota else 0

    def over_limit(self, amount: int) -> int:
        """By how much so much more would take it over its limit, once those told to stop have left."""
        return 0 if self.limit is None else max(0, self.used + amount - self.limit)

    def waits_for_leavers(self, amount: int) -> bool:
        """Whether it would be over its limit with so much more until those told to stop have left."""
        return self.limit is not None and self.used + self.leaving + amount > self.limit


class _Accounts(dict[tuple[str, bool], Account]):
    """By project and resource: GPUs (True) or CPU slots (False)."""

    def __init__(self, shares: Mapping[str, Share]) -> None:
        super().__init__()
        self._shares = shares

    def __missing__(self, key: tuple[str, bool]) -> Account:
        share = self._shares.get(key[0], _NONE)
        account = self[key] = Account(share.quota(key[1]), share.limit(key[1]))
        return account


class Ledger:
    """What each project uses of GPUs and CPU slots, with what a plan has promised so far."""

    def __init__(self, state: ClusterState) -> None:
        self._shares = state.shares
        self._total = {True: sum(n.gpus for n in state.nodes), False: sum(n.cpu_slots for n in state.nodes)}
        self._accounts = _Accounts(state.shares)
        self._dominant: dict[str, float] = {}  # shares of projects whose use hasn't changed since
        for job in state.running:
            self.add(job)
            if job.stopping:
                self.leave(job)

    def of(self, job: RunningJob | WaitingJob) -> Account:
        """What the job counts against."""
        return self._accounts[job.project, job.uses_gpus]

    def add(self, job: RunningJob | WaitingJob) -> Account:
        account = self.of(job)
        account.used += job.amount
        self._dominant.pop(job.project, None)
        return account

    def leave(self, job: RunningJob) -> None:
        """The job is told to stop."""
        account = self.of(job)
        account.used -= job.amount
        account.leaving += job.amount
        self._dominant.pop(job.project, None)

    def used(self, project: str, gpus: bool) -> int:
        return self._accounts[project, gpus].used

    def share(self, project: str) -> Share:
        return self._shares.get(project, _NONE)

    def is_guaranteed(self, job: WaitingJob) -> bool:
        """Whether the project's quota still covers the job."""
        account = self.of(job)
        return account.used + job.amount <= account.quota

    def is_coverable(self, job: WaitingJob) -> bool:
        """Whether the project's quota covers the job once others have left."""
        return job.amount <= self.of(job).quota

    def quota_part(self, project: str) -> float:
        """How much of its quota it uses: of that of GPUs or of CPU slots, whichever is used more."""
        accounts = self._accounts[project, True], self._accounts[project, False]
        return max([one.used / one.quota for one in accounts if one.quota], default=0.0)

    def has_quota_left(self, project: str) -> bool:
        """Whether its quota covers anything more."""
        gpus, slots = self._accounts[project, True], self._accounts[project, False]
        return gpus.quota > gpus.used or slots.quota > slots.used

    def is_tight(self, job: WaitingJob) -> bool:
        """Whether the limit has room for the job, but not beside what the project may hold for long."""
        account = self.of(job)
        if account.limit is None or job.amount > account.limit:
            return False
        return account.limit - job.amount < max(account.quota, account.used)

    def borrowed_by_any(self, gpus: bool, others_than: str) -> bool:
        return any(
            account.borrowed
            for (project, of_gpus), account in self._accounts.items()
            if of_gpus == gpus and project != others_than
        )

    def dominant_share(self, project: str) -> float:
        """The larger of its borrowed parts of all GPUs and of all CPU slots, over its weight."""
        if project not in self._dominant:
            parts = [
                self._accounts[project, gpus].borrowed / total for gpus, total in self._total.items() if total
            ]
            weight = self.share(project).weight
            largest = max(parts, default=0.0)
            self._dominant[project] = largest / weight if weight > 0 else float("inf") if largest else 0.0
        return self._dominant[project]
