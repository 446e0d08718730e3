"""What the scripts of a job's charts are told: they fetch the numbers themselves."""

from typing import Any

from powermean.contracts.api import Job
from powermean.contracts.metrics import METRICS


def chart_data(job: Job) -> dict[str, Any] | None:
    """Facts that decide which charts there are and how updates make up a step, and what metrics mean.

    None: they are in the spec, which the server can't read.
    """
    if job.spec is None:
        return None
    training, rollout = job.spec.training, job.spec.rollout
    updates = training.minibatches * training.epochs
    return {
        "id": job.id,
        "final": job.state.final,
        "step": job.step,
        "algorithm": job.spec.algorithm.model_dump(mode="json"),
        "updates": updates,
        "minibatches": training.minibatches,
        "trajectories": training.prompts_per_step * rollout.group_size,
        "onPolicy": updates == 1 and not rollout.max_staleness and rollout.old_policy != "sampler",
        "metrics": {name: info.model_dump() for name, info in METRICS.items()},
    }
