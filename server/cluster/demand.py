"""What a job needs from the cluster, and which nodes could provide it."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from powermean.contracts.job import JobSpec
from server.cluster import engines, inventory
from server.cluster.planner import AdapterNeed, WaitingJob, could_run
from server.db.models import Job, Node
from server.jobs.views import job_spec


def waiting_job(job: Job, avoid: frozenset[str] = frozenset()) -> WaitingJob:
    """The job as the planner sees it; `avoid` are the nodes on which its last attempt lapsed."""
    spec = job_spec(job)
    return WaitingJob(
        job.id,
        gpus=spec.resources.gpus,
        rollout_gpus=spec.resources.rollout_gpus,
        avoid=avoid,
        vllm=spec.rollout.needs_vllm,
        adapter=_adapter_need(job, spec),
    )


def checkers(session: Session, job: Job, living: Sequence[Node]) -> list[str]:
    """The live nodes that may check the job: those that could run it, since nodes differ.

    None while all nodes that could run it are offline. If no node ever could, any live one may check it: its
    errors say what is missing.
    """
    asked = waiting_job(job)
    able = [node.id for node in living if could_run(asked, inventory.empty(node))]
    if able:
        return able
    known = session.execute(select(Node)).scalars().all()
    if any(could_run(asked, inventory.empty(node)) for node in known):
        return []
    return [node.id for node in living]


def _adapter_need(job: Job, spec: JobSpec) -> AdapterNeed | None:
    """What the job needs from a shared engine; None if it must not use one."""
    if spec.model.lora is None or spec.rollout.sharing == "own" or spec.rollout.engine == "transformers":
        return None
    return AdapterNeed(
        model=engines.model_key(spec.model.name, spec.model.folder),
        dtype=engines.resolved_dtype(spec.model.dtype, spec.resources.gpus),
        rank=spec.model.lora.rank,
        tokens=job.longest_sequence or spec.rollout.max_new_tokens + 1,
        required=spec.rollout.sharing == "shared",
        same_host=spec.rollout.publish == "shm",
    )
