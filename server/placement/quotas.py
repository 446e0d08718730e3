"""Who has how much: guaranteed quotas, what is borrowed beyond them, limits, shares."""

from collections import defaultdict

from server.placement.state import ClusterState, RunningJob, Share, WaitingJob

_NONE = Share()


class Ledger:
    """What each project uses of GPUs (True) and CPU slots (False), with what a plan has promised so far."""

    def __init__(self, state: ClusterState) -> None:
        self._shares = state.shares
        self._total = {True: sum(n.gpus for n in state.nodes), False: sum(n.cpu_slots for n in state.nodes)}
        self._used: dict[tuple[str, bool], int] = defaultdict(int)
        self._leaving: dict[tuple[str, bool], int] = defaultdict(int)  # held until a checkpoint is saved
        for job in state.running:
            self.add(job)
            if job.stopping:
                self.leave(job)

    def add(self, job: RunningJob | WaitingJob) -> None:
        self._used[job.project, job.uses_gpus] += job.amount

    def leave(self, job: RunningJob) -> None:
        """The job is told to stop."""
        self._used[job.project, job.uses_gpus] -= job.amount
        self._leaving[job.project, job.uses_gpus] += job.amount

    def used(self, project: str, gpus: bool) -> int:
        return self._used.get((project, gpus), 0)

    def share(self, project: str) -> Share:
        return self._shares.get(project, _NONE)

    def is_guaranteed(self, job: WaitingJob) -> bool:
        """Whether the project's quota still covers the job."""
        quota = self.share(job.project).quota(job.uses_gpus)
        return self.used(job.project, job.uses_gpus) + job.amount <= quota

    def is_coverable(self, job: WaitingJob) -> bool:
        """Whether the project's quota covers the job once others have left."""
        return job.amount <= self.share(job.project).quota(job.uses_gpus)

    def quota_part(self, project: str) -> float:
        """How much of its quota it uses: of that of GPUs or of CPU slots, whichever is used more."""
        share = self.share(project)
        parts = (self.used(project, gpus) / quota for gpus in (True, False) if (quota := share.quota(gpus)))
        return max(parts, default=0.0)

    def has_quota_left(self, project: str) -> bool:
        """Whether its quota covers anything more."""
        share = self.share(project)
        return any(share.quota(gpus) > self.used(project, gpus) for gpus in (True, False))

    def over_limit(self, job: WaitingJob) -> int:
        """By how much the job would take its project over its limit, once those told to stop have left."""
        limit = self.share(job.project).limit(job.uses_gpus)
        return 0 if limit is None else max(0, self.used(job.project, job.uses_gpus) + job.amount - limit)

    def waits_for_leavers(self, job: WaitingJob) -> bool:
        """Whether the job's project would be over its limit until those told to stop have left."""
        limit, key = self.share(job.project).limit(job.uses_gpus), (job.project, job.uses_gpus)
        return limit is not None and self.used(*key) + self._leaving.get(key, 0) + job.amount > limit

    def exceeds_any(self, job: WaitingJob) -> bool:
        """Whether the job alone is more than its project's limit."""
        limit = self.share(job.project).limit(job.uses_gpus)
        return limit is not None and job.amount > limit

    def is_tight(self, job: WaitingJob) -> bool:
        """Whether the limit has room for the job, but not beside what the project may hold for long."""
        share = self.share(job.project)
        limit = share.limit(job.uses_gpus)
        if limit is None or job.amount > limit:
            return False
        return limit - job.amount < max(share.quota(job.uses_gpus), self.used(job.project, job.uses_gpus))

    def borrowed(self, project: str, gpus: bool) -> int:
        """What the project has beyond its quota."""
        return max(0, self.used(project, gpus) - self.share(project).quota(gpus))

    def borrowed_by_any(self, gpus: bool, others_than: str) -> bool:
        projects = {project for project, of_gpus in self._used if of_gpus == gpus}
        return any(self.borrowed(project, gpus) for project in projects - {others_than})

    def dominant_share(self, project: str) -> float:
        """The larger of its borrowed parts of all GPUs and of all CPU slots, over its weight."""
        parts = (self.borrowed(project, gpus) / total for gpus, total in self._total.items() if total)
        weight = self.share(project).weight
        largest = max(parts, default=0.0)
        return largest / weight if weight > 0 else float("inf") if largest else 0.0
