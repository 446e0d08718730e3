"""Revisions of what servers and workers say to each other, for the time when they are of two versions.

A worker refuses a field that it doesn't know. So fields that came later are left out of answers to workers
while they have their defaults, and a job that sets one of them runs only on nodes that know it.
"""

from collections.abc import Iterable
from typing import Any

from powermean.contracts.attempts import ClaimWithSecrets, HeartbeatReply, ValidationWithSecrets
from powermean.contracts.base import Contract
from powermean.contracts.job import JobSpec
from powermean.contracts.replays import ReplayTask

FIRST = 1  # of workers that report none
NEWEST = 2  # of this version

OF_OBJECTIVES = {"entropy_coefficient": 2, "kl_horizon": 2, "kl_target": 2}
# Fields of a spec, each with the revision that brought it. A new field goes here, with a new revision if the
# newest one has been released.
OF_SPECS = {f"algorithm.{name}": revision for name, revision in OF_OBJECTIVES.items()} | {
    "checkpoints.best": 2,
    "checkpoints.best_is": 2,
    "model.from": 2,
    "optimizer.final_learning_rate_ratio": 2,
    "optimizer.schedule": 2,
    "optimizer.state": 2,
    "optimizer.warmup_ratio": 2,
    "resources.cpu_ranks": 2,
    "resources.nodes": 2,
    "rollout.gpus_per_replica": 2,
    "rollout.replicas": 2,
    "training.parallel": 2,
}
_LATER: dict[type[Contract], tuple[str, ...]] = {  # by answer
    HeartbeatReply: ("members",),
    ClaimWithSecrets: ("claim.node_rank", "claim.origin", *(f"claim.spec.{path}" for path in OF_SPECS)),
    ValidationWithSecrets: ("task.origin", *(f"task.spec.{path}" for path in OF_SPECS)),
    ReplayTask: tuple(f"{part}.{name}" for part in ("recorded", "algorithm") for name in OF_OBJECTIVES),
}


def needed(spec: JobSpec) -> int:
    """The revision that a worker must know to run the job."""
    given = spec.model_dump(mode="json", exclude_defaults=True)
    return max((revision for path, revision in OF_SPECS.items() if _has(given, path)), default=FIRST)


def for_workers(answer: Contract) -> dict[str, Any]:
    """The answer as JSON, without later fields that have their defaults."""
    return without_later(answer, _LATER[type(answer)])


def without_later(whole: Contract, later: Iterable[str]) -> dict[str, Any]:
    """As JSON, as versions before these fields have it: without those that have their defaults."""
    said = whole.model_dump(mode="json")
    given = whole.model_dump(mode="json", exclude_defaults=True)
    for path in later:
        *parents, name = path.split(".")
        part = said
        for parent in parents:
            part = part[parent]
        if name in part and not _has(given, path):
            del part[name]
    return said


def _has(given: dict[str, Any], path: str) -> bool:
    part: Any = given
    for name in path.split("."):
        if not isinstance(part, dict) or name not in part:
            return False
        part = part[name]
    return True
