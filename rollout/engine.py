"""The interface of a rollout engine: one model that completes prompts and accepts new weights."""

from dataclasses import dataclass
from threading import Event
from typing import Protocol

from powermean.contracts.rollout import (
    ChannelRequest,
    EngineState,
    GenerateRequest,
    GenerateResponse,
    HoldRequest,
    PublishMethod,
    PublishRequest,
)
from powermean.errors import PowermeanError
from rollout.counting import Finished, nobody


class EngineError(PowermeanError):
    """Why an engine did not do what was asked; the service answers with `status`."""

    def __init__(
        self, status: int, code: str, message: str, *, remedy: str | None = None, path: str | None = None
    ) -> None:
        super().__init__(message, code=code, remedy=remedy, path=path)
        self.status = status


class CancelledError(Exception):
    """Nobody is waiting for the answer any more."""


@dataclass(frozen=True)
class Fence:
    """The newest weights that an engine has seen. Neither the attempt nor the version ever goes back."""

    job_id: str
    attempt: int
    version: int

    def check_attempt(self, job_id: str, attempt: int) -> None:
        """Raises EngineError (other_job, fenced) unless the attempt may use the engine."""
        if job_id != self.job_id:
            raise EngineError(
                403,
                "other_job",
                f"this engine serves job {self.job_id}, not {job_id}",
                remedy="Ask the engine of your own attempt.",
            )
        if attempt < self.attempt:
            raise EngineError(
                409,
                "fenced",
                f"attempt {attempt} has been replaced: the engine serves attempt {self.attempt}",
                remedy="Stop: a newer attempt at the job has taken over.",
            )

    def advanced(self, request: PublishRequest | HoldRequest, *, again: bool = False) -> "Fence":
        """The fence after this publish, or the one that is announced.

        A newer attempt resumes from its checkpoint, so it may start below the engine's current version.
        `again`: the version that is served may be published once more. Raises EngineError (other_job, fenced,
        stale_version).
        """
        self.check_attempt(request.job_id, request.attempt)
        if request.attempt == self.attempt and request.version < self.version + (0 if again else 1):
            raise EngineError(
                409,
                "stale_version",
                f"version {request.version} is not above version {self.version}, which the engine serves",
                remedy="Publish each version once, in increasing order.",
                path="version",
            )
        return Fence(self.job_id, request.attempt, request.version)


def check_method(method: PublishMethod, state: EngineState) -> None:
    """Raises EngineError (method_unsupported) unless the engine accepts weights this way."""
    if method not in state.methods:
        raise EngineError(
            409,
            "method_unsupported",
            f"the {state.engine} engine accepts weights only by {', '.join(state.methods)}, not {method}",
            remedy="Set rollout.publish to auto; docs/vllm.md says what each method needs.",
            path="method",
        )


def check_prompts(request: GenerateRequest, max_model_len: int, vocabulary: int) -> None:
    """Raises EngineError (invalid, too_long) that names the prompt."""
    new = request.sampling.max_new_tokens
    for place, prompt in enumerate(request.prompts):
        path = f"prompts.{place}"
        if not prompt:
            raise EngineError(422, "invalid", "the prompt has no token", path=path)
        if len(prompt) + new > max_model_len:
            raise EngineError(
                422,
                "too_long",
                f"a prompt of {len(prompt)} tokens and {new} new ones exceed the context of {max_model_len} "
                "(the model's, or what the key/value cache holds)",
                remedy="Shorten the prompt or lower sampling.max_new_tokens.",
                path=path,
            )
        if not 0 <= min(prompt) <= max(prompt) < vocabulary:
            raise EngineError(422, "invalid", f"token ids must be in 0..{vocabulary - 1}", path=path)


class Engine(Protocol):
    """What one job uses of an engine. As many calls at once as its host allows; `state` at any time."""

    def generate(
        self, request: GenerateRequest, cancelled: Event, finished: Finished = nobody
    ) -> GenerateResponse:
        """Complete prompts. Raises EngineError, or CancelledError soon after `cancelled` is set."""

    def publish(self, request: PublishRequest) -> None:
        """Accept new weights.

        Raises EngineError; the engine then still serves its old weights, or none until it has received all.
        """

    def hold(self, request: HoldRequest) -> None:
        """Complete nothing until the next publish: the trainer changes weights that the engine shares.

        Raises EngineError (method_unsupported) where it shares none.
        """

    def drop_adapter(self) -> None:
        """Drop the job's adapter and free its slot. Raises EngineError (adapters_off) without adapters."""

    def open_channel(self, request: ChannelRequest) -> None:
        """Connect to the trainer, for publishes through a channel listed in `state`. Raises EngineError."""

    def state(self) -> EngineState:
        """The job's answer from /health."""


class EngineHost(Protocol):
    """What the service runs: the engine of one job, or one with an adapter for each of several jobs.

    `calls_at_once`: how many calls of `generate` may run together; if it is 1, nothing else runs meanwhile.
    """

    calls_at_once: int

    def serving(self, job_id: str, attempt: int) -> Engine:
        """The engine as this attempt may use it. Raises EngineError (other_job, fenced)."""

    def state(self, job_id: str | None = None) -> EngineState:
        """The answer of /health, to a job or to anybody."""

    def metrics(self) -> str:
        """The engine's own metrics as Prometheus text, or "" if it has none. Never raises."""

    def close(self) -> None:
        """End its processes and remove its files."""


def adapters_off() -> EngineError:
    """The error of an engine for full weights that is given an adapter."""
    return EngineError(
        409,
        "adapters_off",
        "this engine accepts full weights, not adapters",
        remedy="Publish merged weights, or start the service with --engine vllm --max-adapters N.",
        path="adapter",
    )
