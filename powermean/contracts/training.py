"""How a job trains: updates, optimiser, evaluations, checkpoints, and what is recorded."""

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt, model_validator

from powermean.contracts.base import Contract


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
    parallel: Literal["auto", "replicate", "shard", "hybrid"] = Field(
        "auto",
        description="How ranks hold the model. replicate: each has all of it; shard: each has a part of its "
        "weights, gradients and optimiser state (FSDP2); hybrid: sharded within a node, replicated over "
        "nodes. auto: replicate where it fits, else hybrid over nodes, shard on one.",
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="torch.compile of the model's layers: updates are faster and take less memory, the first "
        "one waits for the compiler. auto: on GPUs, where the job may take 100 updates.",
    )
    gradient_checkpointing: StrictBool = Field(
        False, description="Trade compute for memory in the backward pass."
    )

    @property
    def updates_per_step(self) -> int:
        """Optimiser steps on a rollout batch, those included that are skipped for want of an advantage."""
        return self.epochs * self.minibatches

    @model_validator(mode="after")
    def _divides(self) -> "TrainingSpec":
        if self.prompts_per_step % self.minibatches:
            raise ValueError(
                f"prompts_per_step ({self.prompts_per_step}) must be a multiple of "
                f"minibatches ({self.minibatches})"
            )
        return self


class OptimizerSpec(Contract):
    """AdamW. The rate rises linearly in the warm-up, then follows the schedule."""

    learning_rate: StrictFloat = Field(1e-6, gt=0, le=1.0, description="Peak learning rate.")
    betas: tuple[Annotated[StrictFloat, Field(ge=0, lt=1)], Annotated[StrictFloat, Field(ge=0, lt=1)]] = (
        Field((0.9, 0.95), description="AdamW's betas.")
    )
    eps: StrictFloat = Field(1e-8, gt=0, le=1e-2, description="AdamW's epsilon.")
    weight_decay: StrictFloat = Field(0.0, ge=0, le=1.0, description="Decoupled weight decay.")
    warmup_updates: StrictInt = Field(
        3, ge=0, le=100_000, description="Updates over which the rate rises from 0."
    )
    warmup_ratio: StrictFloat | None = Field(
        None, ge=0, lt=1, description="The warm-up as a share of all updates, instead of warmup_updates."
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="How the rate goes on from its peak to the end of training.steps."
    )
    final_learning_rate_ratio: StrictFloat = Field(
        0.0, ge=0, le=1, description="Share of the peak at which a linear or cosine schedule ends."
    )
    max_grad_norm: StrictFloat = Field(
        1.0, gt=0, le=1000, description="Gradient norm above which gradients are scaled down."
    )
    state: Literal["float32", "8bit"] = Field(
        "float32",
        description="How AdamW's two moments are kept. 8bit: in a quarter of the memory, by torchao, which "
        "the node must have.",
    )

    def warmup(self, total: int) -> int:
        """Updates of the warm-up, of so many in all."""
        return self.warmup_updates if self.warmup_ratio is None else round(self.warmup_ratio * total)


class EvaluationSpec(Contract):
    """Held-out reward: the mean reward of one sampled completion per held-out problem."""

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
    best: Annotated[str, Field(min_length=1, max_length=80)] | None = Field(
        None,
        description="Metric of whole steps, e.g. eval/reward: the checkpoint with its best value is kept "
        "besides the newest, and model.from may name it as ID@best.",
    )
    best_is: Literal["highest", "lowest"] = Field("highest", description="Which value of it is the best.")


class RecordSpec(Contract):
    """What is kept of each trajectory beyond its scalars."""

    texts: StrictBool = Field(True, description="Keep prompt and completion texts of every trajectory.")
    tokens: Literal["all", "none"] | Annotated[StrictInt, Field(ge=1, le=1_000_000)] = Field(
        64,
        description="Trajectories per step whose tokens are kept (log-ratio, weight and clip of each token "
        "in each update): all, none, or a number, taken by whole groups.",
    )
