"""An engine that outlives its own server: a restart is waited out, and the weights are sent again.

vLLM may die in mid-run. The rollout service starts it anew, with the weights of the model's folder, and
refuses what it is asked meanwhile. That needs no new attempt: the trainer has the weights.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from torch import nn

from powermean.contracts.rollout import GenerateRequest, GenerateResponse, PublishRequest
from rollout.client import EngineRefused
from trainer.failures import TrainingError
from trainer.publish import Publisher, Target
from trainer.sampling import Engine

Result = TypeVar("Result")

RESTART_S = 900.0  # the rollout service itself gives vLLM 600 s to start
PUBLISH_TIMEOUT_S = 300.0
_POLL_S = 1.0
_DOWN = frozenset({"engine_died", "engine_starting"})
_EMPTY = "weights_incomplete"
# How a death often shows first; but what comes again and again is no death.
_SUSPECT = frozenset({"engine_error", "engine_timeout", "channel_failed"})
_SUSPECT_TRIES = 3


class Service(Engine, Target, Protocol):
    """A rollout service (rollout.client.RolloutClient is one)."""


@dataclass
class SteadyEngine:
    """See trainer.sampling.Engine: both calls raise what `engine` does, and TrainingError (engine_not_back).

    The model must have the weights of the version that was published last whenever `generate` is called.
    """

    engine: Service
    weights: Publisher
    model: nn.Module
    tell: Callable[[str], None]  # people what it waits for
    restart_s: float = RESTART_S
    poll_s: float = _POLL_S
    _version: int | None = field(default=None, init=False)  # published last

    def generate(self, request: GenerateRequest, timeout_s: float) -> GenerateResponse:
        """Complete prompts, by the weights that were published last."""
        return self._through_restarts(lambda: self.engine.generate(request, timeout_s))

    def publish(self, request: PublishRequest, timeout_s: float) -> object:
        """Send the weights that were written last. They must be there until this returns."""
        answer = self._through_restarts(lambda: self.weights.publish(self.engine, request, timeout_s))
        self._version = request.version
        return answer

    def _through_restarts(self, ask: Callable[[], Result]) -> Result:
        """What `ask` returns, asked again until the engine is up and has its weights."""
        suspects, incomplete = 0, False
        deadline: float | None = None
        while True:
            try:
                if incomplete:
                    self._publish_again()
                    incomplete = False
                return ask()
            except EngineRefused as refusal:
                suspects += refusal.code in _SUSPECT
                if not self._may_pass(refusal) or suspects > _SUSPECT_TRIES:
                    raise
                if deadline is None:
                    deadline = time.monotonic() + self.restart_s
                    self.tell(f"waiting for the rollout engine to come back ({refusal.code})")
                elif time.monotonic() > deadline:
                    raise _not_back(refusal, self.restart_s) from refusal
                incomplete = incomplete or refusal.code == _EMPTY
            time.sleep(self.poll_s)

    def _may_pass(self, refusal: EngineRefused) -> bool:
        if refusal.code == _EMPTY:
            return self._version is not None
        return refusal.status >= 500 and refusal.code in _DOWN | _SUSPECT

    def _publish_again(self) -> None:
        assert self._version is not None
        self.tell(f"publishing version {self._version} again")
        try:
            request = self.weights.write(self.model, self._version)
            self.weights.publish(self.engine, request, PUBLISH_TIMEOUT_S)
        finally:
            self.weights.discard(self._version)


def _not_back(refusal: EngineRefused, waited_s: float) -> TrainingError:
    return TrainingError(
        "engine_not_back",
        f"the rollout engine did not come back within {waited_s:.0f} s; it said last: {refusal}",
        remedy="the attempt's log has the engine's last lines",
        retryable=True,
    )
