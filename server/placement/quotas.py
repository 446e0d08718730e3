"""Who has how much: guaranteed quotas, what is borrowed beyond them, limits, shares."""

from dataclasses import dataclass

from server.placement.state import ClusterState, RunningJob, Share, WaitingJob

_NONE = Share()


@dataclass(slots=True)
class _Account:
    """A project's, of GPUs or of CPU slots."""

    quota: int
    limit: int | None
    used: int = 0
    leaving: int = 0  # held until a checkpoint is saved

    @property
    def borrowed(self) -> int:
        return max(0, self.used - self.quota)


class Ledger:
    """What each project uses of GPUs (True) and CPU slots (False), with what a plan has promised so far."""

    def __init__(self, state: ClusterState) -> None:
        self._shares = state.shares
        self._total = {True: sum(n.gpus for n in state.nodes), False: sum(n.cpu_slots for n in state.nodes)}
        self._accounts: dict[tuple[str, bool], _Account] = {}
        self._dominant: dict[str, float] = {}  # shares of projects whose use hasn't changed since
        for job in state.running:
            self.add(job)
            if job.stopping:
                self.leave(job)

    def _account(self, project: str, gpus: bool) -> _Account:
        account = self._accounts.get((project, gpus))
        if account is None:
            share = self.share(project)
            account = self._accounts[project, gpus] = _Account(share.quota(gpus), share.limit(gpus))
        return account

    def _of(self, job: RunningJob | WaitingJob) -> _Account:
        return self._account(job.project, job.uses_gpus)

    def add(self, job: RunningJob | WaitingJob) -> None:
        self._of(job).used += job.amount
        self._dominant.pop(job.project, None)

    def leave(self, job: RunningJob) -> None:
        """The job is told to stop."""
        account = self._of(job)
        account.used -= job.amount
        account.leaving += job.amount
        self._dominant.pop(job.project, None)

    def used(self, project: str, gpus: bool) -> int:
        return self._account(project, gpus).used

    def share(self, project: str) -> Share:
        return self._shares.get(project, _NONE)

    def is_guaranteed(self, job: WaitingJob) -> bool:
        """Whether the project's quota still covers the job."""
        account = self._of(job)
        return account.used + job.amount <= account.quota

    def is_coverable(self, job: WaitingJob) -> bool:
        """Whether the project's quota covers the job once others have left."""
        return job.amount <= self._of(job).quota

    def quota_part(self, project: str) -> float:
        """How much of its quota it uses: of that of GPUs or of CPU slots, whichever is used more."""
        accounts = (self._account(project, gpus) for gpus in (True, False))
        return max((one.used / one.quota for one in accounts if one.quota), default=0.0)

    def has_quota_left(self, project: str) -> bool:
        """Whether its quota covers anything more."""
        accounts = (self._account(project, gpus) for gpus in (True, False))
        return any(one.quota > one.used for one in accounts)

    def over_limit(self, job: WaitingJob) -> int:
        """By how much the job would take its project over its limit, once those told to stop have left."""
        account = self._of(job)
        return 0 if account.limit is None else max(0, account.used + job.amount - account.limit)

    def waits_for_leavers(self, job: WaitingJob) -> bool:
        """Whether the job's project would be over its limit until those told to stop have left."""
        account = self._of(job)
        return account.limit is not None and account.used + account.leaving + job.amount > account.limit

    def exceeds_any(self, job: WaitingJob) -> bool:
        """Whether the job alone is more than its project's limit."""
        limit = self._of(job).limit
        return limit is not None and job.amount > limit

    def is_tight(self, job: WaitingJob) -> bool:
        """Whether the limit has room for the job, but not beside what the project may hold for long."""
        account = self._of(job)
        if account.limit is None or job.amount > account.limit:
            return False
        return account.limit - job.amount < max(account.quota, account.used)

    def borrowed(self, project: str, gpus: bool) -> int:
        """What the project has beyond its quota."""
        return self._account(project, gpus).borrowed

    def borrowed_by_any(self, gpus: bool, others_than: str) -> bool:
        return any(
            account.borrowed
            for (project, of_gpus), account in self._accounts.items()
            if of_gpus == gpus and project != others_than
        )

    def dominant_share(self, project: str) -> float:
        """The larger of its borrowed parts of all GPUs and of all CPU slots, over its weight."""
        if project not in self._dominant:
            parts = (self.borrowed(project, gpus) / total for gpus, total in self._total.items() if total)
            weight = self.share(project).weight
            largest = max(parts, default=0.0)
            self._dominant[project] = largest / weight if weight > 0 else float("inf") if largest else 0.0
        return self._dominant[project]
