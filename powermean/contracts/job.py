"""The job spec: everything that decides what a run does."""

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from powermean.contracts.algorithms import AlgorithmSpec, Dapo, Pmpo
from powermean.contracts.base import Contract, Labels, Name, conflict
from powermean.contracts.data import DataSpec
from powermean.contracts.identity import ProjectName
from powermean.contracts.limits import LimitSpec
from powermean.contracts.priorities import DEFAULT_PRIORITY, PriorityName
from powermean.contracts.rewards import ExactMatch, RewardSpec
from powermean.contracts.secrets import MOST_OF_A_JOB, SecretReference, VariableName


class LoraSpec(Contract):
    """Train a low-rank adapter and leave the model's own weights as they are (arXiv 2106.09685)."""

    rank: StrictInt = Field(16, ge=1, le=512, description="Rank r of the update of each weight.")
    alpha: StrictFloat = Field(32.0, gt=0, le=4096, description="The update is scaled by alpha / rank.")
    target_modules: tuple[Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[\w-]+$")], ...] = (
        Field(
            (),
            max_length=64,
            fail_fast=True,
            description="Linear layers to adapt, e.g. q_proj; empty is all but the output layer.",
        )
    )
    dropout: StrictFloat = Field(
        0.0,
        ge=0,
        lt=1,
        description="Dropout before the adapter, in update passes only; it adds noise to ratios.",
    )


class ModelSpec(Contract):
    """A Hugging Face causal language model: by registry name, or a folder under a declared root."""

    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[\w.-]+(/[\w.-]+)?$")] | None = Field(
        None,
        description="Registry name, e.g. HuggingFaceTB/SmolLM2-135M-Instruct. Packaged ones need no network.",
    )
    folder: Annotated[str, Field(min_length=1, max_length=500)] | None = Field(
        None, description="Folder of a model, relative to one of the node's declared model roots."
    )
    lora: LoraSpec | None = Field(None, description="Train an adapter; null trains all weights.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Weights' type; auto is float32 on a CPU and bfloat16 on CUDA."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where to train; auto takes CUDA where allocated."
    )

    @model_validator(mode="after")
    def _one_source(self) -> "ModelSpec":
        if (self.name is None) == (self.folder is None):
            raise ValueError("give exactly one of name and folder")
        return self


class RolloutSpec(Contract):
    """How completions are sampled. top_p and top_k are off in training by definition."""

    engine: Literal["auto", "transformers", "vllm"] = Field(
        "auto",
        description="Rollout engine; auto takes vllm where the node has it and it serves the model, "
        "else transformers.",
    )
    group_size: StrictInt = Field(
        8, ge=2, le=1024, description="Completions per prompt (G); a group of 1 has no advantage."
    )
    temperature: StrictFloat = Field(
        1.0, ge=0.05, le=5.0, description="Sampling temperature; log-probs are of this distribution."
    )
    max_new_tokens: StrictInt = Field(64, ge=1, le=32768, description="Most tokens a completion may have.")
    stop: tuple[Annotated[str, Field(min_length=1, max_length=50)], ...] = Field(
        (),
        max_length=8,
        fail_fast=True,  # 150,000 wrong items fit into a body, and each would cost an error of its own
        description="Stop strings; the token that completes one is the completion's last.",
    )
    publish: Literal["auto", "in_place", "store", "shm", "gloo", "nccl", "ipc"] = Field(
        "auto",
        description="How new weights reach the engine: store through the artefact store, shm through the "
        "host's shared memory, gloo (CPUs), nccl and ipc (GPUs) straight into vLLM. With in_place they have "
        "no way to go: on one CPU host, the transformers engine samples from the trainer's own. auto is "
        "in_place where that works, else shm on one host with room, else store.",
    )
    sharing: Literal["auto", "own", "shared"] = Field(
        "auto",
        description="Whether a LoRA job uses an engine that the administrator declared for its base model: "
        "auto where one has a free slot, shared waits for one, own never.",
    )
    max_staleness: StrictInt = Field(
        0,
        ge=0,
        le=64,
        description="Weight versions by which sampling may run ahead of training, below training.steps; 0 is "
        "strictly on-policy. Above 0 equal seeds do not give equal runs.",
    )
    old_policy: Literal["trainer", "sampler"] = Field(
        "trainer",
        description="pi_old of the importance ratio: the trainer's own log-probs at the start of the update, "
        "or those of the weights that sampled each token, so that staleness shows in ratios, p and ESS "
        "(algorithm.importance_sampling_correction is then off: pi_old and pi_rollout are the same).",
    )
    logprob_tolerance: StrictFloat = Field(
        1e-3,
        gt=0,
        le=1.0,
        description="Largest log-prob difference between engine and trainer that a publish may show.",
    )

    @property
    def needs_vllm(self) -> bool:
        """Whether no other engine would do: it is asked for, or a way of publishing that only vLLM has."""
        return self.engine == "vllm" or self.publish in ("gloo", "nccl", "ipc")


class TrainingSpec(Contract):
    """How many rollout batches, and how each is turned into optimiser steps."""

    steps: StrictInt = Field(ge=1, le=1_000_000, description="Rollout batches to train on.")
    prompts_per_step: StrictInt = Field(8, ge=1, le=65536, description="Prompts (groups) in a rollout batch.")
    minibatches: StrictInt = Field(
        2, ge=1, le=1024, description="Optimiser steps per pass over the rollout batch."
    )
    epochs: StrictInt = Field(2, ge=1, le=64, description="Passes over the rollout batch.")
    micro_batch_tokens: Literal["auto"] | Annotated[StrictInt, Field(ge=1, le=16_777_216)] = Field(
        "auto",
        description="Tokens in one forward and backward pass, those that completions share counted once; "
        "bounds memory. auto: what the node's memory holds.",
    )
    micro_batch_groups: Annotated[StrictInt, Field(ge=1, le=4096)] | None = Field(
        None, description="Most groups in one forward and backward pass, beside micro_batch_tokens."
    )
    weights: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="What the trainer's passes run on. bfloat16: weights rounded from float32 masters after "
        "each update, for model.dtype bfloat16; faster than autocast where layers are not compiled.",
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="torch.compile of the model's layers: updates are faster and take less memory, the first "
        "one waits for the compiler. auto: on GPUs, where the job may take 100 updates.",
    )
    gradient_checkpointing: StrictBool = Field(
        False, description="Trade compute for memory in the backward pass."
    )

    @model_validator(mode="after")
    def _divides(self) -> "TrainingSpec":
        if self.prompts_per_step % self.minibatches:
            raise ValueError(
                f"prompts_per_step ({self.prompts_per_step}) must be a multiple of "
                f"minibatches ({self.minibatches})"
            )
        return self


class OptimizerSpec(Contract):
    """AdamW with linear warm-up, then constant."""

    learning_rate: StrictFloat = Field(1e-6, gt=0, le=1.0, description="Peak learning rate.")
    betas: tuple[Annotated[StrictFloat, Field(ge=0, lt=1)], Annotated[StrictFloat, Field(ge=0, lt=1)]] = (
        Field((0.9, 0.95), description="AdamW's betas.")
    )
    eps: StrictFloat = Field(1e-8, gt=0, le=1e-2, description="AdamW's epsilon.")
    weight_decay: StrictFloat = Field(0.0, ge=0, le=1.0, description="Decoupled weight decay.")
    warmup_updates: StrictInt = Field(
        3, ge=0, le=100_000, description="Updates over which the rate rises from 0."
    )
    max_grad_norm: StrictFloat = Field(
        1.0, gt=0, le=1000, description="Gradient norm above which gradients are scaled down."
    )


class EvaluationSpec(Contract):
    """Held-out accuracy: the mean reward of one sampled completion per held-out problem."""

    every: StrictInt = Field(
        10, ge=0, le=1_000_000, description="Steps between evaluations; 0 only before and after."
    )
    problems: StrictInt = Field(
        128, ge=1, le=100_000, description="Held-out problems (or all there are, if fewer)."
    )
    temperature: StrictFloat | None = Field(
        None, ge=0, le=5.0, description="Sampling temperature; null is the rollouts', 0 greedy."
    )


class CheckpointSpec(Contract):
    """When the run is saved so that another attempt can go on from there."""

    every: StrictInt = Field(10, ge=1, le=1_000_000, description="Steps between checkpoints.")
    keep: StrictInt = Field(2, ge=1, le=100, description="Newest checkpoints to keep.")


class ResourceSpec(Contract):
    """What the job occupies while it runs."""

    gpus: StrictInt = Field(
        0,
        ge=0,
        le=1,
        description="GPUs for the trainer: 1, or 0 to train on a CPU slot. It can't use more yet.",
    )
    placement: Literal["colocated", "split"] = Field(
        "colocated",
        description="colocated: trainer and engine share the GPU; split: the engine has one more GPU of "
        "the same node for itself. A shared engine has its own in any case.",
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
    def rollout_gpus(self) -> int:
        """GPUs of the engine's own, beside the trainer's."""
        return 1 if self.placement == "split" else 0

    @model_validator(mode="after")
    def _split_on_gpus(self) -> "ResourceSpec":
        if self.placement == "split" and self.gpus == 0:
            why = "split is for GPUs and gpus is 0: set gpus to 1, or leave placement at colocated"
            raise conflict(("placement",), why, self.placement)
        return self

    @model_validator(mode="after")
    def _gpus_of_a_kind(self) -> "ResourceSpec":
        for field in ("gpu_type", "gpu_memory_gib"):
            if (value := getattr(self, field)) is not None and self.gpus == 0:
                raise conflict((field,), "is for GPUs and gpus is 0: set gpus to 1, or leave it out", value)
        return self


class RecordSpec(Contract):
    """What is kept of each trajectory beyond its scalars."""

    texts: StrictBool = Field(True, description="Keep prompt and completion texts of every trajectory.")
    tokens: Literal["all", "none"] | Annotated[StrictInt, Field(ge=1, le=1_000_000)] = Field(
        64,
        description="Trajectories per step whose tokens are kept (log-ratio, weight and clip of each token "
        "in each update): all, none, or a number, taken by whole groups.",
    )


class JobSpec(Contract):
    """A training job. Submit it as JSON to POST /v1/jobs, or as YAML with `powermean submit FILE`."""

    name: Name = Field(description="What people call the job.")
    project: ProjectName | None = Field(
        None, description="The project that it belongs to; null is your key's or account's default one."
    )
    model: ModelSpec
    priority: PriorityName = Field(
        DEFAULT_PRIORITY, description="Class of its priority: GET /v1/priorities lists them."
    )
    algorithm: AlgorithmSpec = Field(default_factory=Pmpo, description="The policy objective.")
    data: DataSpec
    reward: RewardSpec = Field(default_factory=ExactMatch)
    rollout: RolloutSpec = Field(default_factory=RolloutSpec)
    training: TrainingSpec
    optimizer: OptimizerSpec = Field(default_factory=OptimizerSpec)
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)
    checkpoints: CheckpointSpec = Field(default_factory=CheckpointSpec)
    resources: ResourceSpec = Field(default_factory=ResourceSpec)
    limits: LimitSpec = Field(default_factory=LimitSpec, description="Rules that end the job early.")
    record: RecordSpec = Field(default_factory=RecordSpec)
    secrets: dict[VariableName, SecretReference] = Field(
        default_factory=dict,
        max_length=MOST_OF_A_JOB,
        description="Secrets that the job's programs get, by environment variable: the name of one of the "
        "project's, e.g. HF_TOKEN: hf-team-a, or me/NAME for one of the submitter's own.",
    )
    seed: StrictInt = Field(0, ge=0, lt=2**31, description="Seed of everything random in the run.")
    max_restarts: StrictInt = Field(
        3, ge=0, le=100, description="New attempts allowed in a row without a new checkpoint."
    )

    @property
    def in_place_objection(self) -> str | None:
        """Why the engine can't sample from the trainer's own weights; None where the spec allows it."""
        served = "bfloat16" if self.model.dtype == "bfloat16" else "float32"
        trained = self.training.weights
        if self.rollout.engine == "vllm":
            return "in_place is for the transformers engine, and rollout.engine is vllm"
        if self.resources.gpus > 0:
            return "in_place is for CPUs, and resources.gpus is above 0"
        if self.model.lora is not None:
            return "in_place is for training all weights, and model.lora trains an adapter"
        if self.rollout.max_staleness > 0:
            return "in_place stops sampling during updates, and rollout.max_staleness is above 0"
        if served != trained:
            return f"in_place is for one type, and the engine's is {served}, training.weights {trained}"
        return None

    @model_validator(mode="after")
    def _hours_of_gpus(self) -> "JobSpec":
        if self.limits.gpu_hours is not None and self.resources.gpus == 0:
            why = "resources.gpus is 0, so it holds none: use wall_hours"
            raise conflict(("limits", "gpu_hours"), why, self.limits.gpu_hours)
        return self

    @model_validator(mode="after")
    def _device_matches(self) -> "JobSpec":
        gpus = self.resources.gpus
        if self.model.device == "cuda" and gpus == 0:
            why = "model.device is cuda but resources.gpus is 0: ask for at least 1 GPU"
            raise conflict(("resources", "gpus"), why, gpus)
        if self.model.device == "cpu" and gpus > 0:
            why = "model.device is cpu but resources.gpus is above 0: set it to 0"
            raise conflict(("resources", "gpus"), why, gpus)
        return self

    @model_validator(mode="after")
    def _one_correction(self) -> "JobSpec":
        given = self.algorithm.importance_sampling_correction
        if self.rollout.old_policy == "sampler" and given != "off":
            why = (
                "rollout.old_policy is sampler: the ratio holds the difference between engine and trainer "
                "already, and every importance-sampling ratio would be 1; set one of the two back to its "
                "default"
            )
            raise conflict(("algorithm", "importance_sampling_correction"), why, given)
        return self

    @model_validator(mode="after")
    def _shared_engines_serve_adapters(self) -> "JobSpec":
        rollout = self.rollout
        if rollout.sharing == "shared":
            if self.model.lora is None:
                why = "only LoRA jobs share an engine: give model.lora, or set it to auto or own"
                raise conflict(("rollout", "sharing"), why, rollout.sharing)
            if rollout.engine == "transformers":
                why = "shared engines run vLLM, but rollout.engine is transformers: set that to auto or vllm"
                raise conflict(("rollout", "sharing"), why, rollout.sharing)
        return self

    @model_validator(mode="after")
    def _channel_fits(self) -> "JobSpec":
        """gloo, nccl and ipc send whole weights into the memory of vLLM, between devices of one kind."""
        method, gpus = self.rollout.publish, self.resources.gpus
        if method not in ("gloo", "nccl", "ipc"):
            return self
        why = None
        if self.rollout.engine == "transformers":
            why = f"{method} sends into vLLM, and rollout.engine is transformers: use auto, shm or store"
        elif self.model.lora is not None:
            why = f"{method} sends whole weights, and model.lora trains an adapter: use auto, shm or store"
        elif method == "gloo" and gpus > 0:
            why = "gloo is for CPUs and resources.gpus is above 0: use auto, shm, store or ipc"
        elif method != "gloo" and gpus == 0:
            why = f"{method} is for GPUs and resources.gpus is 0: use auto, shm, store or gloo"
        elif method == "nccl" and self.resources.placement == "colocated":
            why = "nccl needs a GPU of the engine's own: set resources.placement to split, or use ipc"
        elif method == "ipc" and self.resources.placement == "split":
            why = "ipc stays within a GPU, and resources.placement is split: use nccl"
        if why is not None:
            raise conflict(("rollout", "publish"), why, method)
        return self

    @model_validator(mode="after")
    def _weights_in_place(self) -> "JobSpec":
        if self.rollout.publish != "in_place":
            return self
        why, remedy = self.in_place_objection, "use auto, shm or store"
        if why is None and self.rollout.engine == "auto":
            why = "in_place is for the transformers engine, and rollout.engine is auto"
            remedy = "set it to transformers"
        if why is not None:
            raise conflict(("rollout", "publish"), f"{why}: {remedy}", self.rollout.publish)
        return self

    @model_validator(mode="after")
    def _batches_to_run_ahead(self) -> "JobSpec":
        staleness, steps = self.rollout.max_staleness, self.training.steps
        if staleness >= steps:
            why = f"must stay below training.steps ({steps}): there are no more batches to sample ahead"
            raise conflict(("rollout", "max_staleness"), why, staleness)
        return self

    @model_validator(mode="after")
    def _penalty_leaves_room(self) -> "JobSpec":
        if isinstance(self.algorithm, Dapo):
            buffer, most = self.algorithm.overlong_buffer, self.rollout.max_new_tokens
            if buffer >= most:
                why = f"must stay below rollout.max_new_tokens ({most}), or every completion is overlong"
                raise conflict(("algorithm", "overlong_buffer"), why, buffer)
        return self
