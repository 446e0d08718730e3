"""Engine services: rollout engines that an administrator declares, for LoRA jobs on one base model."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StrictInt, StringConstraints, model_validator

from powermean.contracts.attempts import EngineReport, JobError, NameRival
from powermean.contracts.base import Contract
from powermean.contracts.identity import ProjectName
from powermean.contracts.names import ENGINE_NAME

EngineName = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=ENGINE_NAME)]
EngineServiceState = Literal["waiting", "starting", "ready", "failed", "stopping"]


class EngineModel(Contract):
    """The base model, as in a job's spec."""

    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[\w.-]+(/[\w.-]+)?$")] | None = Field(
        None, description="Registry name, e.g. HuggingFaceTB/SmolLM2-135M-Instruct."
    )
    folder: Annotated[str, Field(min_length=1, max_length=500)] | None = Field(
        None, description="Folder of a model, relative to one of the node's declared model roots."
    )

    @model_validator(mode="after")
    def _one_source(self) -> "EngineModel":
        if (self.name is None) == (self.folder is None):
            raise ValueError("give exactly one of name and folder")
        return self


class EngineSpec(Contract):
    """An engine service as an administrator declares it (POST /v1/engines). It runs vLLM."""

    name: EngineName = Field(description="What people call it; unique.")
    model: EngineModel
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Type of the base weights; auto is float32 on a CPU and bfloat16 on CUDA."
    )
    gpus: StrictInt = Field(
        0, ge=0, le=1, description="GPUs reserved for it; 0 serves on the CPU and takes no slot."
    )
    max_adapters: StrictInt = Field(4, ge=1, le=64, description="LoRA jobs that it serves at once.")
    max_lora_rank: StrictInt = Field(16, ge=1, le=512, description="Largest rank of their adapters.")
    max_model_len: StrictInt | None = Field(
        None,
        ge=2,
        le=10_000_000,
        description="Most tokens of prompt and completion together; null is the model's own limit.",
    )
    node: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\w.-]+$")] | None = Field(
        None, description="The only node that may run it; null means any node with vLLM."
    )
    projects: tuple[ProjectName, ...] = Field(
        (), max_length=100, description="Projects whose jobs may use it; empty means all."
    )


class EngineOrder(Contract):
    """An engine service that a node should run, and for which jobs."""

    id: str
    generation: int = Field(ge=1, description="Generation of its placement; a new one means a new start.")
    spec: EngineSpec
    gpu_uuids: tuple[str, ...] = ()
    jobs: tuple[str, ...] = Field((), description="Jobs that it serves now.")
    token: str = Field(description="Token with which the node asks the engine for its state.")


class NodeOrders(Contract):
    """What a node should keep running (the answer to its report); it ends everything else."""

    engines: tuple[EngineOrder, ...] = ()
    rival: NameRival | None = Field(
        None, description="Another worker that tried to use the node's name within a day."
    )


class EngineService(Contract):
    """An engine service: what was declared, where it runs, and what it does."""

    id: str
    spec: EngineSpec
    state: EngineServiceState = Field(
        description="waiting for a node, starting or restarting, ready, failed, or stopping (no new jobs)."
    )
    node: str | None = None
    gpu_uuids: tuple[str, ...] = ()
    url: str | None = None
    generation: int
    error: JobError | None = None
    why: str | None = Field(None, description="What it waits for, for people.")
    report: EngineReport | None = Field(None, description="Its node's last report.")
    jobs: tuple[str, ...] = Field((), description="Jobs that sample from it.")
    created_at: datetime
    seen_at: datetime | None = None


class EngineServiceList(Contract):
    """Engine services, by name."""

    items: tuple[EngineService, ...]
