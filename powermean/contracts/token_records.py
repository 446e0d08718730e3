"""What is recorded of a trajectory's tokens, and what a replay needs to compute its objective again."""

from pydantic import Field

from powermean.contracts.base import Contract


class UpdateFacts(Contract):
    """One optimiser step of a rollout batch, as its objective saw it."""

    update: int = Field(ge=0, description="epoch * minibatches + minibatch")
    epoch: int = Field(ge=0, description="Pass over the rollout batch, from 0.")
    minibatch: int = Field(ge=0, description="Minibatch within the epoch, from 0.")
    trajectories: int = Field(ge=0, description="Trajectories with tokens in the minibatch (B).")
    tokens: int = Field(ge=0, description="Completion tokens in the minibatch.")


class StepFacts(Contract):
    """What the objectives of a step share: the first line of a token segment."""

    step: int = Field(ge=0, description="Step of the run.")
    progress: float = Field(ge=0, le=1, description="Share of the training done before the step.")
    mean_reward: float = Field(description="Of the rollout batch, as graded.")
    reward_std: float = Field(description="Standard deviation of the batch's rewards (ddof 1).")
    max_new_tokens: int = Field(ge=1, description="From the spec: L_max of dr_grpo and of dapo's penalty.")
    updates: tuple[UpdateFacts, ...] = Field(description="The step's optimiser steps.")


class UpdateTokens(Contract):
    """What one optimiser step saw of each completion token."""

    update: int = Field(ge=0, description="epoch * minibatches + minibatch")
    log_ratio: tuple[float, ...] = Field(description="log pi_theta - log pi_old, nats; not clipped.")
    weight: tuple[float, ...] = Field(description="W_t(p), the token's share of the gradient; sums to 1.")
    clipped: tuple[bool, ...] = Field(description="The clip, or the limit of 20, removed the gradient.")


class TrajectoryTokens(Contract):
    """A trajectory's tokens. Updates that did not train on it (advantage 0, dropped) are missing."""

    index: int = Field(ge=0, description="Place in the rollout batch.")
    token_ids: tuple[int, ...] = Field(description="Completion tokens, including the terminating one.")
    pieces: tuple[str, ...] = Field(description="Text of each token; joined, they are the completion.")
    sampler_log_probs: tuple[float, ...] = Field(description="Log-probs of the rollout engine, nats.")
    old_log_probs: tuple[float, ...] | None = Field(
        None,
        description="pi_old, nats: of the trainer at the start of the step, or with `old_policy: sampler` "
        "the engine's; null where not computed.",
    )
    updates: tuple[UpdateTokens, ...] = Field((), description="What each update saw of them.")


class RecordedTokens(Contract):
    """Answer to GET /v1/jobs/{id}/trajectories/{step}/{index}/tokens."""

    facts: StepFacts
    tokens: TrajectoryTokens
