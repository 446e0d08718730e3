"""A cluster as a file describes it, to check jobs against nodes that are not connected."""

from typing import Annotated, Literal

from pydantic import Field, StrictFloat, StrictInt, StrictStr

from powermean.contracts.base import Contract, Labels
from powermean.contracts.job import JobSpec


class DescribedNode(Contract):
    """Nodes of one kind."""

    count: StrictInt = Field(1, ge=1, le=1024, description="How many of them there are.")
    gpus: StrictInt = Field(ge=0, le=64, description="GPUs of each.")
    gpu_type: Annotated[StrictStr, Field(max_length=200)] = Field(
        "", description="The GPUs' name, as `powermean node show` has it."
    )
    gpu_memory_gib: StrictFloat = Field(
        0.0, ge=0, le=4096, description="Memory of each GPU; that of an 80 GB H100 is 79.6."
    )
    memory_gib: StrictFloat = Field(
        0.0, ge=0, le=65536, description="Memory of each host; 0 where that is not to be checked."
    )
    cpu_slots: StrictInt = Field(1, ge=0, le=1024, description="CPU jobs that each may run at once.")
    engines: tuple[Literal["transformers", "vllm"], ...] = Field(
        ("transformers", "vllm"), description="Rollout engines that are installed."
    )
    labels: Labels = Field({}, description="Labels that jobs may ask for.")


class DescribedCluster(Contract):
    """Nodes by kind."""

    nodes: tuple[DescribedNode, ...] = Field(min_length=1, max_length=64)


class DescribedTask(Contract):
    """A job to check against a described cluster."""

    spec: JobSpec
    cluster: DescribedCluster
    prompt_tokens: StrictInt = Field(1024, ge=1, description="Of the longest prompt of an uploaded dataset.")
