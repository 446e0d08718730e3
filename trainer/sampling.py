"""Completions from the rollout service."""

from collections.abc import Callable, Sequence
from typing import Protocol

from powermean.contracts.rollout import GenerateRequest, GenerateResponse, PublishRequest, Sampling
from trainer.batching import Rollouts, collate
from trainer.failures import TrainingError


class Engine(Protocol):
    """What the trainer asks of a rollout service (rollout.client.RolloutClient is one)."""

    def generate(self, request: GenerateRequest, timeout_s: float) -> GenerateResponse: ...

    def publish(self, request: PublishRequest, timeout_s: float) -> object: ...


def time_limit(request: GenerateRequest) -> float:
    """Seconds after which no answer is expected any more: a minute, and 20 ms a token."""
    return 60.0 + 0.02 * len(request.prompts) * request.n * request.sampling.max_new_tokens


def sample(
    engine: Engine,
    prompts: Sequence[tuple[int, ...]],
    *,
    count: int,
    sampling: Sampling,
    pad_token_id: int,
) -> Rollouts:
    """`count` completions of each prompt. Raises TrainingError (engine_answer) if the answer doesn't fit."""
    request = GenerateRequest(prompts=tuple(prompts), n=count, sampling=sampling)
    response = engine.generate(request, time_limit(request))
    shapes = {len(group) for group in response.completions}
    if len(response.completions) != len(prompts) or shapes != {count}:
        raise TrainingError(
            "engine_answer",
            f"the rollout service gave {len(response.completions)} groups of {sorted(shapes)} completions, "
            f"{len(prompts)} of {count} were asked for",
            retryable=True,
        )
    return collate(prompts, response.completions, pad_token_id)


Decode = Callable[[Sequence[int]], str]


def texts(rollouts: Rollouts, decode: Decode) -> list[str]:
    """Text of each completion, in order of row."""
    return [decode(row[kept].tolist()) for row, kept in zip(rollouts.tokens, rollouts.mask, strict=True)]
