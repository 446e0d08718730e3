"""What a job occupies while it runs."""

from typing import Annotated, Literal

from pydantic import Field, StrictFloat, StrictInt, StrictStr, model_validator

from powermean.contracts.base import Contract, Labels, conflict


class ResourceSpec(Contract):
    """What the job occupies while it runs."""

    nodes: StrictInt = Field(
        1, ge=1, le=1024, description="Nodes that train together; the job starts when all of them are free."
    )
    gpus: StrictInt = Field(
        0,
        ge=0,
        le=64,
        description="GPUs for the trainer on each node, one rank for each; 0 trains on a CPU slot.",
    )
    cpu_ranks: StrictInt = Field(
        1,
        ge=1,
        le=64,
        description="Ranks (training processes) on each node where gpus is 0; they share the CPU slot.",
    )
    placement: Literal["colocated", "split"] = Field(
        "colocated",
        description="colocated: trainer and engine share the GPUs; split: the engine has more GPUs of the "
        "same node for itself. A shared engine has its own in any case.",
    )

    gpu_type: Annotated[StrictStr, Field(min_length=1, max_length=64)] | None = Field(
        None, description="Part of the GPUs' name, e.g. H100, in capitals or not; null takes any."
    )
    gpu_memory_gib: StrictFloat | None = Field(
        None,
        gt=0,
        le=4096,
        description="Least memory of each GPU, in GiB as `powermean node show` has it: that of an 80 GB H100 "
        "is 79.6. null takes any.",
    )
    node_labels: Labels = Field({}, description="Labels that the node must have, e.g. {zone: a}.")

    @property
    def ranks(self) -> int:
        """Training processes on all nodes."""
        return self.nodes * self.ranks_per_node

    @property
    def ranks_per_node(self) -> int:
        return self.gpus or self.cpu_ranks

    @model_validator(mode="after")
    def _split_on_gpus(self) -> "ResourceSpec":
        if self.placement == "split" and self.gpus == 0:
            why = "split is for GPUs and gpus is 0: set gpus to at least 1, or leave placement at colocated"
            raise conflict(("placement",), why, self.placement)
        return self

    @model_validator(mode="after")
    def _a_rank_for_each_gpu(self) -> "ResourceSpec":
        if self.gpus and self.cpu_ranks > 1:
            why = f"is for CPUs, and gpus is {self.gpus}: each GPU has its rank, so leave it out"
            raise conflict(("cpu_ranks",), why, self.cpu_ranks)
        return self

    @model_validator(mode="after")
    def _gpus_of_a_kind(self) -> "ResourceSpec":
        for field in ("gpu_type", "gpu_memory_gib"):
            if (value := getattr(self, field)) is not None and self.gpus == 0:
                raise conflict((field,), "is for GPUs and gpus is 0: set gpus to 1, or leave it out", value)
        return self
