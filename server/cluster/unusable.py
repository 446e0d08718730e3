"""Which GPUs get no work, and why: those that are ill, and those that another node has, too."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime

from powermean.contracts.attempts import NodeReport
from server.db.models import Node

Reasons = dict[str, dict[str, str]]  # by node and GPU
LONG_AGO = datetime.min.replace(tzinfo=UTC)


def unusable(living: Iterable[Node]) -> Reasons:
    """The GPUs of living nodes that get no work.

    Of several nodes that report a GPU, the one that did so first has it: two workers on one host, or a node
    that reports what isn't its own, can't get it a second time.
    """
    found: Reasons = defaultdict(dict)
    owners: dict[str, str] = {}
    for node in sorted(living, key=lambda node: (node.gpus_since or LONG_AGO, node.id)):
        for gpu in NodeReport.model_validate(node.report).gpus:
            owner = owners.setdefault(gpu.uuid, node.id)
            if owner != node.id:
                found[node.id][gpu.uuid] = f"node {owner} reports it, too, and did so first"
            elif gpu.unhealthy is not None:
                found[node.id][gpu.uuid] = gpu.unhealthy
    return found
