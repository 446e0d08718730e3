"""Pools: where nodes come from when there is work."""

from pydantic import Field

from powermean.contracts.attempts import MOST_MEMORY_MB
from powermean.contracts.base import Contract, Labels


class Shape(Contract):
    """A node as a pool starts it."""

    gpus: int = Field(0, ge=0, le=256)
    gpu_type: str = Field("", max_length=100, description="Part of what its GPUs are called, such as H100.")
    gpu_memory_mb: int = Field(0, ge=0, le=MOST_MEMORY_MB, description="Of each GPU, in MiB; 0: not known.")
    cpu_slots: int = Field(1, ge=0, le=1024, description="CPU jobs that it runs at once.")
    labels: Labels = Field({}, description="What specs may ask for by `resources.node_labels`.")
