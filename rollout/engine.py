"""What a rollout engine is: one model that completes prompts and takes new weights."""

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


class EngineError(PowermeanError):
    """Why an engine did not do what it was asked; the service answers with `status`."""

    def __init__(
        self, status: int, code: str, message: str, *, remedy: str | None = None, path: str | None = None
    ) -> None:
        super().__init__(message, code=code, remedy=remedy, path=path)
        self.status = status


class CancelledError(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Fence:
    """The newest weights that an engine has seen: neither an attempt nor a version ever goes back."""

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
                f"attempt {attempt} is over: the engine serves attempt {self.attempt}",
                remedy="Stop: a newer attempt at the job has taken over.",
            )

    def advanced(self, request: PublishRequest | HoldRequest, *, again: bool = False) -> "Fence":
        """The fence after this publish, or the one that is announced.

        A newer attempt goes on from its checkpoint, so it may start below the version that it found. `again`:
        the version that is served may be published once more. Raises EngineError (other_job, fenced,
        stale_version).
        """
        self.check_attempt(request.job_id, request.attempt)
        if request.attempt == self.attempt and request.version < self.version + (0 if again else 1):
            raise EngineError(
                409,
                "stale_version",
                f"version {request.version} is not above version {self.version}, which the engine serves",
                remedy="Publish each version once, in rising order.",
                path="version",
            )
        return Fence(self.job_id, request.attempt, request.version)


def check_method(method: PublishMethod, state: EngineState) -> None:
    """Raises EngineError (method_unsupported) unless the engine takes weights in this way."""
    if method not in state.methods:
        raise EngineError(
            409,
            "method_unsupported",
            f"the {state.engine} engine takes no weights by {method}, only by {', '.join(state.methods)}",
            remedy="Set rollout.publish to auto; docs/vllm.md says what each way needs.",
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
    """What one job asks of an engine. As many calls at once as its host takes; `state` at any time."""

    def generate(self, request: GenerateRequest, cancelled: Event) -> GenerateResponse:
        """Complete prompts. Raises EngineError, or CancelledError soon after `cancelled` is set."""

    def publish(self, request: PublishRequest) -> None:
        """Take new weights.

        Raises EngineError: the engine then serves the weights it had, or none until it has been given all.
        """

    def hold(self, request: HoldRequest) -> None:
        """Complete nothing until the next publish: the trainer changes weights that the engine shares.

        Raises EngineError (method_unsupported) where it shares none.
        """

    def drop_adapter(self) -> None:
        """Give up the job's adapter and its slot. Raises EngineError (adapters_off) where there are none."""

    def open_channel(self, request: ChannelRequest) -> None:
        """Meet the trainer, for publishes by a channel that `state` offers. Raises EngineError."""

    def state(self) -> EngineState:
        """What /health says to the job."""


class EngineHost(Protocol):
    """What the service runs: the engine of one job, or one that holds an adapter for each of several.

    `calls_at_once`: calls of `generate` that may run together; where it is 1, nothing runs beside one.
    """

    calls_at_once: int

    def serving(self, job_id: str, attempt: int) -> Engine:
        """The engine as this attempt may use it. Raises EngineError (other_job, fenced)."""

    def state(self, job_id: str | None = None) -> EngineState:
        """What /health says, to a job or to anybody."""

    def metrics(self) -> str:
        """What the engine counts itself, as Prometheus text; empty where there is nothing. Never raises."""

    def close(self) -> None:
        """End what runs for it, and remove its files."""


def adapters_off() -> EngineError:
    """What an engine of whole weights answers to those who come with an adapter."""
    return EngineError(
        409,
        "adapters_off",
        "this engine takes whole weights, not adapters",
        remedy="Publish merged weights, or start the service with --engine vllm --max-adapters N.",
        path="adapter",
    )
