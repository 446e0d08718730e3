"""What is read of Kubernetes' Jobs and pods, and what it says of a pilot. Fields have Kubernetes' names."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from server.pools.backend import PilotState, Seen

# Why a Job failed where Kubernetes wanted it so. PodFailurePolicy: as job_of says of disruptions.
REVOKED = ("DeadlineExceeded", "PodFailurePolicy")


class _Object(BaseModel):
    """A part of an answer: what is not read here may be anything."""

    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", frozen=True)


class Condition(_Object):
    type: str
    status: str
    reason: str = ""
    message: str = ""


class Metadata(_Object):
    name: str = Field(min_length=1)
    uid: str = Field(min_length=1)
    labels: dict[str, str] = {}
    deletion_timestamp: AwareDatetime | None = None


class ListMetadata(_Object):
    continue_: str = Field("", alias="continue")


class JobSpec(_Object):
    suspend: bool = False
    active_deadline_seconds: int | None = Field(None, ge=0, le=10**10)


class JobStatus(_Object):
    active: int = 0
    terminating: int = 0
    start_time: AwareDatetime | None = None
    conditions: tuple[Condition, ...] = ()


class Job(_Object):
    metadata: Metadata
    spec: JobSpec
    status: JobStatus = JobStatus()


class JobList(_Object):
    metadata: ListMetadata = ListMetadata()
    items: tuple[Job, ...]


class Waiting(_Object):
    reason: str = ""
    message: str = ""


class Terminated(_Object):
    reason: str = ""
    exit_code: int


class ContainerState(_Object):
    waiting: Waiting | None = None
    terminated: Terminated | None = None


class ContainerStatus(_Object):
    state: ContainerState = ContainerState()


class PodStatus(_Object):
    phase: str = ""
    reason: str = ""
    message: str = ""
    conditions: tuple[Condition, ...] = ()
    container_statuses: tuple[ContainerStatus, ...] = ()


class Pod(_Object):
    metadata: Metadata
    status: PodStatus = PodStatus()


class PodList(_Object):
    metadata: ListMetadata = ListMetadata()
    items: tuple[Pod, ...]


def seen(job: Job, pod: Pod | None, queue: str | None) -> Seen:
    """A pilot as its Job and pod show it. One whose processes may still be there has not ended."""
    state, reason, revoked = _judge(job, pod, queue)
    name = job.metadata.name
    return Seen(name, name, state, reason, _end(job) if state is PilotState.RUNNING else None, revoked)


def left_over(pilot_id: str, pod: Pod) -> Seen:
    """A pilot whose Job somebody has deleted: its pod goes, too, in its own time."""
    ended = pod.status.phase in ("Succeeded", "Failed")
    state = PilotState.ENDED if ended else PilotState.RUNNING
    return Seen(pilot_id, pilot_id, state, "its Job was deleted", revoked=True)


def is_staying(pod: Pod) -> bool:
    """Whether nobody has told the pod to end."""
    return pod.metadata.deletion_timestamp is None


def _judge(job: Job, pod: Pod | None, queue: str | None) -> tuple[PilotState, str, bool]:
    there = job.status.active > 0 or job.status.terminating > 0
    if job.metadata.deletion_timestamp is not None:
        words = ["its Job is being deleted", _disruption(pod)]
        return PilotState.RUNNING, "; ".join(filter(None, words)), True
    failed = _true(job.status.conditions, "Failed")
    if failed is not None:
        state = PilotState.RUNNING if there else PilotState.ENDED
        words = [_said(failed.reason, failed.message), _pod_end(pod)]
        return state, "; ".join(word for word in words if word), failed.reason in REVOKED
    if _true(job.status.conditions, "Complete") is not None:
        return PilotState.RUNNING if there else PilotState.ENDED, "Complete", False
    if pod is not None and pod.status.phase in ("Running", "Unknown") and (why := _disruption(pod)):
        return PilotState.RUNNING, why, True  # its Job may know less once the pod is gone
    if pod is not None and pod.status.phase in ("Running", "Succeeded", "Failed", "Unknown"):
        return PilotState.RUNNING, pod.status.reason or pod.status.phase, False
    if job.spec.suspend:
        waits = f"waits for quota in queue {queue}" if queue else "somebody suspended the Job"
        return PilotState.PENDING, _said("Suspended", waits), False
    return PilotState.PENDING, _pod_wait(pod), False


def _end(job: Job) -> datetime | None:
    """When its time is over: Kubernetes counts from the Job's start, not its pod's."""
    start, limit = job.status.start_time, job.spec.active_deadline_seconds
    if start is None or limit is None:
        return None
    try:
        return start + timedelta(seconds=limit)
    except OverflowError:
        return None


def _pod_wait(pod: Pod | None) -> str:
    """Why a pod does not run yet."""
    if pod is None:
        return "no pod yet"
    for condition in pod.status.conditions:
        if condition.type == "PodScheduled" and condition.status == "False":
            return _said(condition.reason, condition.message)
    for container in pod.status.container_statuses:
        if container.state.waiting is not None:
            return _said(container.state.waiting.reason, container.state.waiting.message)
    return pod.status.reason or "Pending"


def _pod_end(pod: Pod | None) -> str:
    """What ended a pod, as far as it is still known."""
    if pod is None:
        return ""
    if disruption := _disruption(pod):
        return disruption
    for container in pod.status.container_statuses:
        ended = container.state.terminated
        if ended is not None:
            return f"{ended.reason or 'Error'}, exit code {ended.exit_code}"
    return _said(pod.status.reason, pod.status.message)


def _disruption(pod: Pod | None) -> str:
    """Who or what takes a pod away: a preemption, an eviction, a taint, the kubelet."""
    found = _true(pod.status.conditions, "DisruptionTarget") if pod is not None else None
    return _said(found.reason, found.message) if found is not None else ""


def _true(conditions: Sequence[Condition], kind: str) -> Condition | None:
    return next((one for one in conditions if one.type == kind and one.status == "True"), None)


def _said(reason: str, message: str) -> str:
    return ": ".join(word for word in (reason, message) if word)
