"""Completions from the rollout service."""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from powermean.contracts.job import JobSpec
from powermean.contracts.rollout import GenerateRequest, GenerateResponse, PublishRequest, Sampling
from trainer.failures import TrainingError
from trainer.rollouts.batching import Rollouts, collate

PUBLISH_TIMEOUT_S = 300.0
HOLD_TIMEOUT_S = 60.0  # the engine finishes completions that nobody waits for; nothing else is running
MOST_SHARING_S = 1800.0  # well below the supervisor's limit for a stall


class Completes(Protocol):
    """The part of a rollout service that sampling uses."""

    def generate(self, request: GenerateRequest, timeout_s: float) -> GenerateResponse: ...


class Engine(Completes, Protocol):
    """The part of a rollout service that the trainer uses, from any thread (see rollout.client)."""

    def publish(self, request: PublishRequest, timeout_s: float) -> object: ...

    def close(self) -> None:
        """Abort calls in flight, which then raise; no more calls follow."""


def time_limit(request: GenerateRequest) -> float:
    """Deadline of a call in seconds: a minute, plus 20 ms per token."""
    return _time_limit(len(request.prompts) * request.n * request.sampling.max_new_tokens)


def sharing_limit(spec: JobSpec, other_jobs: int = 0) -> float:
    """Seconds by which a call may take longer because the engine is shared.

    It is shared with the job's own calls, if training and sampling use it at once, and with other jobs. An
    engine that takes one call at a time delays a call by at most one call of the other side: a rollout batch,
    an evaluation or a publish. An engine that takes several slows each down by no more than the others take.
    Other jobs' calls are unknown and assumed to be as large as this job's.
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
            f"the rollout service returned {len(response.completions)} groups of {sorted(shapes)} "
            f"completions instead of {len(prompts)} of {count}",
            retryable=True,
        )
    return collate(prompts, response.completions, pad_token_id)


Decode = Callable[[Sequence[int]], str]


def texts(rollouts: Rollouts, decode: Decode, end_tokens: Collection[int]) -> list[str]:
    """Text of each completion, in order of row, without the token that ended it."""
    found = []
    for row, kept in zip(rollouts.tokens, rollouts.mask, strict=True):
        ids = row[kept].tolist()
        found.append(decode(ids[:-1] if ids and ids[-1] in end_tokens else ids))
    return found


def graded_part(text: str, stop: Sequence[str]) -> str:
    """What is graded: the text up to the first stop string, which is where the job cut the policy off."""
    return text[: min((place for one in stop if (place := text.find(one)) >= 0), default=len(text))]
