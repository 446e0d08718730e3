"""The job spec: everything that decides what a run does."""

from typing import Annotated, Literal

from pydantic import Field, StrictFloat, StrictInt, model_validator

from powermean.contracts.algorithms import AlgorithmSpec, Dapo, Pmpo
from powermean.contracts.base import Contract, Name, conflict
from powermean.contracts.data import DataSpec
from powermean.contracts.identity import ProjectName
from powermean.contracts.limits import LimitSpec, metric_objection
from powermean.contracts.models import ModelSpec
from powermean.contracts.priorities import DEFAULT_PRIORITY, PriorityName
from powermean.contracts.resources import ResourceSpec
from powermean.contracts.rewards import ExactMatch, RewardSpec
from powermean.contracts.secrets import MOST_OF_A_JOB, SecretReference, VariableName
from powermean.contracts.training import (
    CheckpointSpec,
    EvaluationSpec,
    OptimizerSpec,
    RecordSpec,
    TrainingSpec,
)


class RolloutSpec(Contract):
    """How completions are sampled. top_p and top_k are off in training by definition."""

    engine: Literal["auto", "transformers", "vllm"] = Field(
        "auto",
        description="Rollout engine; auto takes vllm where the node has it and it serves the model, "
        "else transformers.",
    )
    replicas: StrictInt = Field(
        1,
        ge=1,
        le=64,
        description="Copies of the job's own engine on each of its nodes; prompts go to the least loaded.",
    )
    gpus_per_replica: StrictInt = Field(
        1, ge=1, le=64, description="GPUs of one copy (tensor parallel); must divide the attention heads."
    )
    group_size: StrictInt = Field(
        8, ge=2, le=1024, description="Completions per prompt (G); a group of 1 has no advantage."
    )
    temperature: StrictFloat = Field(
        1.0,
        ge=0.05,
        le=5.0,
        description="Sampling temperature; log-probs are of this distribution. Greedy sampling would give "
        "equal completions, which teach nothing; evaluation.temperature may be 0.",
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
    def gpus(self) -> int:
        """Of all replicas on a node."""
        return self.replicas * self.gpus_per_replica

    @property
    def needs_vllm(self) -> bool:
        """Whether no other engine would do: it is asked for, or what only vLLM has."""
        only_vllm = self.publish in ("gloo", "nccl", "ipc") or self.gpus_per_replica > 1
        return self.engine == "vllm" or only_vllm


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
    def rollout_gpus(self) -> int:
        """GPUs of the engine's own on each node, beside the trainer's."""
        own = self.resources.placement == "split"
        return self.rollout.gpus if own else 0

    @property
    def engine_sleeps(self) -> bool:
        """Whether vLLM frees the trainer's GPUs while that uses them: it then has nothing to sample."""
        colocated = self.resources.gpus > 0 and self.resources.placement == "colocated"
        return colocated and self.model.lora is None and self.rollout.max_staleness == 0

    @property
    def in_place_objection(self) -> str | None:
        """Why the engine can't sample from the trainer's own weights; None where the spec allows it."""
        served = "bfloat16" if self.model.dtype == "bfloat16" else "float32"
        trained = self.training.weights
        if self.rollout.engine == "vllm":
            return "in_place is for the transformers engine, and rollout.engine is vllm"
        if self.resources.gpus > 0:
            return "in_place is for CPUs, and resources.gpus is above 0"
        if self.resources.ranks > 1 and self.training.parallel in ("shard", "hybrid"):
            return f"in_place needs whole weights, and training.parallel is {self.training.parallel}"
        if self.model.lora is not None:
            return "in_place is for training all weights, and model.lora trains an adapter"
        if self.rollout.replicas * self.resources.nodes > 1:
            return "in_place is for one engine; the job has several: rollout.replicas times resources.nodes"
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
    def _a_trajectory_for_each_rank(self) -> "JobSpec":
        ranks = self.resources.ranks
        trained = self.training.prompts_per_step // self.training.minibatches * self.rollout.group_size
        if trained < ranks:
            why = (
                f"{ranks} ranks share the {trained} trajectories of a minibatch: ask for fewer, or raise "
                "training.prompts_per_step or rollout.group_size"
            )
            raise conflict(("resources",), why, ranks)
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
        several = method == "shm" and self.resources.nodes > 1 and self.rollout.sharing != "shared"
        if method not in ("gloo", "nccl", "ipc") and not several:
            return self
        why = None
        if several:
            why = "shm stays within a host, and resources.nodes is above 1: use auto or store"
        elif self.rollout.engine == "transformers":
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
        elif method == "ipc" and self.resources.nodes * self.rollout.gpus > 1:
            why = "ipc stays within a GPU, and the engines have several: use auto, shm or store"
        elif method != "gloo" and self.resources.ranks > 1 and self.training.parallel in ("shard", "hybrid"):
            why = (
                f"{method} takes a whole copy of the weights on one GPU, and training.parallel is "
                f"{self.training.parallel}: use auto, shm or store"
            )
        if why is not None:
            raise conflict(("rollout", "publish"), why, method)
        return self

    @model_validator(mode="after")
    def _engines_fit(self) -> "JobSpec":
        """Each replica has its GPUs: those that are split off, else the trainer's, dealt out."""
        replicas, size, gpus = self.rollout.replicas, self.rollout.gpus_per_replica, self.resources.gpus
        if self.rollout.sharing == "shared" and replicas > 1:
            why = "is for engines of the job's own, and rollout.sharing is shared: set it to 1"
            raise conflict(("rollout", "replicas"), why, replicas)
        if size > 1 and gpus == 0:
            why = "is for GPUs and resources.gpus is 0: set it to 1"
            raise conflict(("rollout", "gpus_per_replica"), why, size)
        if size > 1 and self.rollout.engine == "transformers":
            why = "is for vLLM; rollout.engine is transformers, which has one GPU: set it to 1"
            raise conflict(("rollout", "gpus_per_replica"), why, size)
        if gpus and self.resources.placement == "colocated" and self.rollout.gpus > gpus:
            field, value = ("gpus_per_replica", size) if size > gpus else ("replicas", replicas)
            why = (
                f"{replicas} replica{'s' * (replicas > 1)} of {size} GPU{'s' * (size > 1)} need more than "
                "the trainer's, which they share: "
                f"resources.gpus is {gpus}; lower it, or set resources.placement to split"
            )
            raise conflict(("rollout", field), why, value)
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
    def _schedule_has_room(self) -> "JobSpec":
        total = self.training.steps * self.training.updates_per_step
        warmup = self.optimizer.warmup(total)
        if self.optimizer.schedule != "constant" and warmup >= total:
            field = "warmup_updates" if self.optimizer.warmup_ratio is None else "warmup_ratio"
            why = (
                f"the warm-up of {warmup} updates leaves none of the job's {total} for the schedule: "
                "lower it, or raise training.steps"
            )
            raise conflict(("optimizer", field), why, getattr(self.optimizer, field))
        if self.optimizer.schedule == "constant" and self.optimizer.final_learning_rate_ratio > 0:
            field = "final_learning_rate_ratio"
            why = (
                "the rate stays at its peak, as optimizer.schedule is constant: set that to linear or cosine"
            )
            raise conflict(("optimizer", field), why, getattr(self.optimizer, field))
        return self

    @model_validator(mode="after")
    def _best_is_measured(self) -> "JobSpec":
        metric = self.checkpoints.best
        if metric is None and self.checkpoints.best_is == "lowest":
            lacks = (
                "says which value of checkpoints.best is the best, and that is missing: name a metric there"
            )
            raise conflict(("checkpoints", "best_is"), lacks, "lowest")
        if metric is None:
            return self
        why = metric_objection(metric)
        every, steps = self.evaluation.every, self.training.steps
        if why is None and metric.startswith("eval/") and not 0 < every < steps:
            why = (
                f"{metric} is only measured before the first step and after the last, and no checkpoint is "
                f"saved after the last: set evaluation.every above 0 and below training.steps ({steps})"
            )
        if why is not None:
            raise conflict(("checkpoints", "best"), why, metric)
        if self.checkpoints.every >= steps:
            why = f"no checkpoint is saved before the last step ({steps}), so none is the best: set it lower"
            raise conflict(("checkpoints", "every"), why, self.checkpoints.every)
        return self

    @model_validator(mode="after")
    def _penalty_leaves_room(self) -> "JobSpec":
        if isinstance(self.algorithm, Dapo):
            buffer, most = self.algorithm.overlong_buffer, self.rollout.max_new_tokens
            if buffer >= most:
                why = f"must stay below rollout.max_new_tokens ({most}), or every completion is overlong"
                raise conflict(("algorithm", "overlong_buffer"), why, buffer)
        return self
