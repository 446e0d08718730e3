"""Completions from the rollout service."""

from collections.abc import Callable, Sequence
from typing import Protocol

from powermean.contracts.job import JobSpec
from powermean.contracts.rollout import GenerateRequest, GenerateResponse, PublishRequest, Sampling
from trainer.failures import TrainingError
from trainer.rollouts.batching import Rollouts, collate

PUBLISH_TIMEOUT_S = 300.0
HOLD_TIMEOUT_S = 60.0  # the engine ends what it completes for nobody; nothing else is under way
MOST_SHARING_S = 1800.0  # well below what the supervisor takes for a stall


class Completes(Protocol):
    """What sampling asks of a rollout service."""

    def generate(self, request: GenerateRequest, timeout_s: float) -> GenerateResponse: ...


class Engine(Completes, Protocol):
    """What the trainer asks of a rollout service (rollout.client.RolloutClient is one), from any thread."""

    def publish(self, request: PublishRequest, timeout_s: float) -> object: ...

    def close(self) -> None:
        """Break off the calls that are in flight: they raise soon. No others are made."""


def time_limit(request: GenerateRequest) -> float:
    """Seconds after which no answer is expected any more: a minute, and 20 ms a token."""
    return _time_limit(len(request.prompts) * request.n * request.sampling.max_new_tokens)


def sharing_limit(spec: JobSpec, other_jobs: int = 0) -> float:
    """Seconds by which a call may take longer because it shares the engine.

    It does so with the job's other calls, where training and sampling use it at once, and with other jobs.

    An engine that takes one call at a time makes a call wait for one of the other side's at most: a rollout
    batch, an evaluation or a publish. One that takes several slows each down by no more than those take. Of
    other jobs nothing is known: they are taken to ask for as much as this one.
    """
    batch = spec.training.prompts_per_step * spec.rollout.group_size
    longest = _time_limit(max(batch, spec.evaluation.problems) * spec.rollout.max_new_tokens)
    beside = 0.0 if spec.rollout.max_staleness == 0 else PUBLISH_TIMEOUT_S + longest
    return beside + min(other_jobs * longest, MOST_SHARING_S)


def _time_limit(tokens: int) -> float:
    return 60.0 + 0.02 * tokens


def complete_prompts(
    engine: Completes,
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
