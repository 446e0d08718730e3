"""What the scripts of a job's charts are told: they fetch the numbers themselves."""

from typing import Any

from powermean.calls import ApiError, spec_of
from powermean.contracts.api import Job
from powermean.contracts.metrics import METRICS

_NEEDED = (
    "algorithm.name",  # and what js/exponent.js reads of it: any other field may be a newer version's
    "algorithm.p",
    "algorithm.ess_target",
    "algorithm.clip_fraction_full",
    "training.prompts_per_step",
    "training.minibatches",
    "training.epochs",
    "rollout.group_size",
    "rollout.max_staleness",
    "rollout.old_policy",
)


def chart_data(job: Job) -> dict[str, Any] | None:
    """Facts that decide which charts there are and how updates make up a step, and what metrics mean.

    None: they are in the spec, and the server can't read them.
    """
    try:
        spec = spec_of(job, *_NEEDED)
    except ApiError:
        return None
    training, rollout = spec.training, spec.rollout
    updates = training.minibatches * training.epochs
    return {
        "id": job.id,
        "final": job.state.final,
        "step": job.step,
        "algorithm": spec.algorithm.model_dump(mode="json"),
        "updates": updates,
        "minibatches": training.minibatches,
        "trajectories": training.prompts_per_step * rollout.group_size,
        "onPolicy": updates == 1 and not rollout.max_staleness and rollout.old_policy != "sampler",
        "metrics": {name: info.model_dump() for name, info in METRICS.items()},
    }
