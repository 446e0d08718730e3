"""An engine that survives restarts of its server: waits for the restart and sends the weights again.

vLLM may die during a run. The rollout service restarts it with the weights in the model's folder and refuses
requests meanwhile. A shared service may itself be restarted by its node. Neither needs a new attempt, because
the trainer has the weights.

Only the training thread knows when the model has the last published weights, so only it publishes. A sampling
thread waits until it has done so.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import TypeVar

from torch import nn

from powermean.contracts.rollout import GenerateRequest, GenerateResponse, PublishRequest
from rollout.client import EngineRefusedError, EngineUnreachableError, RolloutError
from trainer.failures import TrainingError
from trainer.rollouts.sampling import HOLD_TIMEOUT_S, PUBLISH_TIMEOUT_S, Completes
from trainer.weights.engine_pool import EMPTY, EnginePool
from trainer.weights.files import Publisher

Result = TypeVar("Result")

RESTART_S = 900.0  # the rollout service itself gives vLLM 600 s to start
_POLL_S = 1.0
_PASSING = frozenset({"engine_died", "engine_starting", "busy"})  # busy: many jobs come back at once
# Often the first sign of a death; if it keeps coming back, it is something else.
_SUSPECT = frozenset({"engine_error", "engine_timeout", "channel_failed"})
_SUSPECT_TRIES = 3


@dataclass
class SteadyEngine:
    """See trainer.rollouts.sampling.Engine: its calls raise what `engine` raises, and TrainingError
    (engine_not_back).

    For the training thread. The model must have the weights of the last published version whenever `generate`
    or `restore` is called. Another thread may sample through `beside`.
    """

    engine: EnginePool
    weights: Publisher
    model: nn.Module
    tell: Callable[[str], None]  # called with what it waits for, for people
    share_s: float = 0.0  # extra time of a call because another thread's call comes first or runs in parallel
    restart_s: float = RESTART_S
    poll_s: float = _POLL_S
    make_room: Callable[[], object] = lambda: None  # for an engine that slept, just before it wakes up
    comes_back: bool = False  # even if its service itself is gone; with the only private one ends the attempt
    _version: int | None = field(default=None, init=False)  # last published version
    _publishes: int = field(default=0, init=False)  # number of successful publishes
    _empty: bool = field(default=False, init=False)  # the engine has lost the weights of the last publish
    _lock: Lock = field(default_factory=Lock, init=False)  # guards the two above
    _closed: Event = field(default_factory=Event, init=False)

    def generate(self, request: GenerateRequest, timeout_s: float) -> GenerateResponse:
        """Complete prompts with the last published weights."""
        return self._through_restarts(lambda: self.engine.generate(request, timeout_s + self.share_s))

    def generate_on_each(self, request: GenerateRequest, timeout_s: float) -> list[GenerateResponse]:
        """The same prompts completed by every replica that serves."""
        return self._through_restarts(lambda: self.engine.generate_on_each(request, timeout_s + self.share_s))

    def publish(self, request: PublishRequest, timeout_s: float) -> None:
        """Send the weights last written. They must exist until this returns."""
        self._through_restarts(lambda: self._publish(request, timeout_s))
        self._version = request.version

    def hold(self, version: int) -> None:
        """Make sure that the engine does not sample while `version` is made: before any weight changes."""
        if (request := self.weights.hold_request(version)) is not None:
            self._through_restarts(lambda: self.engine.hold(request, HOLD_TIMEOUT_S))

    def beside(self) -> Completes:
        """The engine for a thread that samples while this one trains."""
        return _Beside(self)

    def restore(self) -> None:
        """Publish again if the sampling thread found the weights missing."""
        if self._empty:
            self._through_restarts(self._publish_again)

    def close(self) -> None:
        """See Engine. Also ends waits for a restart."""
        self._closed.set()
        self.engine.close()

    def generate_beside(self, request: GenerateRequest, timeout_s: float) -> GenerateResponse:
        """`generate` for a thread that can't publish: waits for `restore` while weights are missing."""
        while True:
            with self._lock:
                publishes = self._publishes
            try:
                return self._through_restarts(
                    lambda: self.engine.generate(request, timeout_s + self.share_s), may_publish=False
                )
            except EngineRefusedError as refusal:
                if refusal.code not in EMPTY or self._version is None:
                    raise
                with self._lock:
                    # A later publish may have sent them; the same version would not be accepted twice.
                    self._empty = self._empty or publishes == self._publishes
                if self._closed.wait(self.poll_s):
                    raise

    def _through_restarts(self, ask: Callable[[], Result], may_publish: bool = True) -> Result:
        """Repeat `ask` until the engine is up and has its weights; returns its result."""
        suspects, incomplete, lost = 0, False, False
        deadline: float | None = None
        while True:
            try:
                if incomplete:
                    self._publish_again()
                    incomplete = False
                return ask()
            except (EngineRefusedError, EngineUnreachableError) as refusal:
                if lost and refusal.code == "stale_version":
                    raise _answer_lost(refusal) from refusal
                lost = lost or isinstance(refusal, EngineUnreachableError)
                suspects += refusal.code in _SUSPECT
                if not self._may_pass(refusal, may_publish) or suspects > _SUSPECT_TRIES:
                    raise
                if deadline is None:
                    deadline = time.monotonic() + self.restart_s
                    self.tell(f"waiting for the rollout engine to come back ({refusal.code})")
                elif time.monotonic() > deadline:
                    raise _not_back(refusal, self.restart_s) from refusal
                incomplete = incomplete or refusal.code in EMPTY
                if self._closed.wait(self.poll_s):
                    raise

    def _may_pass(self, refusal: EngineRefusedError | EngineUnreachableError, may_publish: bool) -> bool:
        if isinstance(refusal, EngineUnreachableError):
            return self.comes_back and not self._closed.is_set()
        if refusal.code in EMPTY:
            return may_publish and self._version is not None
        if refusal.code == "engine_failed":  # such a service ends and is restarted by its node
            return self.comes_back and not self._closed.is_set()
        return refusal.status >= 500 and refusal.code in _PASSING | _SUSPECT

    def _publish_again(self) -> None:
        assert self._version is not None
        self.tell(f"publishing version {self._version} again")
        try:
            self._publish(self.weights.write(self.model, self._version), PUBLISH_TIMEOUT_S)
        finally:
            self.weights.discard(self._version)

    def _publish(self, request: PublishRequest, timeout_s: float) -> None:
        if self.weights.hold_request(request.version) is not None:
            self.make_room()
        self.engine.publish(
            lambda service: self.weights.publish(service, request, timeout_s + self.share_s), request.version
        )
        with self._lock:
            self._publishes += 1
            self._empty = False


@dataclass(frozen=True)
class _Beside:
    """See SteadyEngine.beside."""

    steady: SteadyEngine

    def generate(self, request: GenerateRequest, timeout_s: float) -> GenerateResponse:
        """Complete prompts with published weights."""
        return self.steady.generate_beside(request, timeout_s)


def _answer_lost(refusal: RolloutError) -> TrainingError:
    return TrainingError(
        "publish_answer_lost",
        f"the connection to the rollout engine broke during a publish, but it has the weights now: {refusal}",
        remedy="nothing to do: the next attempt publishes again",
        retryable=True,
    )


def _not_back(refusal: RolloutError, waited_s: float) -> TrainingError:
    return TrainingError(
        "engine_not_back",
        f"the rollout engine did not come back within {waited_s:.0f} s; its last answer: {refusal}",
        remedy="the attempt's log has the engine's last lines",
        retryable=True,
    )
