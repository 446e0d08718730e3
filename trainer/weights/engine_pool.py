"""The replicas of a job's rollout engine, which together look like one.

A request is dealt out by prompt: one replica makes all completions of a prompt, as it has the prompt's cache.
Each prompt goes to the replica with the fewest tokens outstanding. A replica that fails is left out, and what
it was asked goes to the others. It gets work again when it has taken a publish, never before: one that was
restarted has the weights of the model's folder until then.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Protocol, TypeVar

from powermean.contracts.rollout import (
    Completion,
    EngineState,
    GenerateRequest,
    GenerateResponse,
    HoldRequest,
)
from powermean.errors import PowermeanError
from rollout.client import EngineRefusedError, EngineUnreachableError, RolloutError
from trainer.rollouts.sampling import Engine
from trainer.weights.files import Target

HEALTH_TIMEOUT_S = 10.0
EMPTY = ("weights_incomplete", "adapter_missing")  # the engine is there, its weights are not
# Failures of one replica alone; others are due to the request or the weights. If all replicas fail, the error
# that comes first here stands for them: it says best what helps.
_ITS_OWN = (
    *EMPTY,
    *("engine_died", "engine_starting", "busy", "engine_unreachable"),
    *("engine_timeout", "channel_failed", "engine_error", "engine_failed"),
)

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Service(Engine, Target, Protocol):
    """A rollout service (such as rollout.client.RolloutClient). Calls come from any thread."""

    def health(self, timeout_s: float) -> EngineState: ...


@dataclass(eq=False)
class _Replica:
    """One replica. Threads that call it set `serves` by how that ends; the last one to do so is right."""

    number: int
    service: Service
    serves: bool = True  # False: left out until it has taken a publish
    outstanding: int = 0  # tokens that it was asked for and has not answered; guarded by the pool's lock


class EnginePool:
    """Several rollout services as one; the calls of training and sampling threads may overlap.

    A call raises what a service raises. If all fail, the error names all.
    """

    def __init__(self, services: Sequence[Service]) -> None:
        self._replicas = [_Replica(number, service) for number, service in enumerate(services)]
        self._version: int | None = None  # last published
        self._moved = 0
        self._lock = Lock()

    @property
    def size(self) -> int:
        """Replicas in all."""
        return len(self._replicas)

    @property
    def serving(self) -> int:
        """Replicas that get work."""
        return sum(replica.serves for replica in self._replicas)

    @property
    def moved(self) -> int:
        """Prompts that had to be asked again of another replica, so far."""
        return self._moved

    def generate(self, request: GenerateRequest, timeout_s: float) -> GenerateResponse:
        """Complete prompts. The limit is that of each replica's call."""
        answers: dict[int, tuple[Completion, ...]] = {}
        failed: dict[_Replica, PowermeanError] = {}
        while missing := [place for place in range(len(request.prompts)) if place not in answers]:
            parts = self._deal(request, missing, failed)
            asked = self._ask_each(request, parts, timeout_s)
            for replica, response in self._sound(asked, failed).items():
                answers |= dict(zip(parts[replica], response.completions, strict=True))
        return GenerateResponse(completions=tuple(answers[place] for place in range(len(answers))))

    def generate_on_each(self, request: GenerateRequest, timeout_s: float) -> list[GenerateResponse]:
        """The whole request to every replica that serves: the answers of those that don't fail."""
        failed: dict[_Replica, PowermeanError] = {}
        whole = range(len(request.prompts))
        asked = self._ask_each(request, dict.fromkeys(self._able(failed), whole), timeout_s)
        if not (answers := self._sound(asked, failed)):
            raise _all(failed)
        return list(answers.values())

    def publish(self, send: Callable[[Service], object], version: int) -> None:
        """Have every replica take a version, all at once: `send` publishes it to one.

        A replica that fails is left out. Raises what `send` raises if no replica takes it.
        """

        def offer(replica: _Replica) -> None:
            try:
                self._reach(replica)
                send(replica.service)
            except EngineRefusedError as refusal:
                has_it = replica.serves and version == self._version  # another one lacked it
                if not (has_it and refusal.code == "stale_version"):
                    raise

        self._on_all(offer)
        self._version = version

    def hold(self, request: HoldRequest, timeout_s: float) -> None:
        """Have no replica sample until the next publish."""

        def ask(replica: _Replica) -> None:
            self._reach(replica)
            replica.service.hold(request, timeout_s)

        self._on_all(ask, gains=False)

    def close(self) -> None:
        """Abort calls in flight, which then raise; no more calls follow."""
        for replica in self._replicas:
            replica.service.close()

    def _deal(
        self, request: GenerateRequest, places: Sequence[int], failed: Mapping[_Replica, PowermeanError]
    ) -> dict[_Replica, list[int]]:
        """Which replica completes which prompts, by their places in the request."""
        able = self._able(failed)
        parts: dict[_Replica, list[int]] = {}
        with self._lock:
            self._moved += len(places) if failed else 0
            for place in places:
                replica = min(able, key=lambda one: one.outstanding)
                replica.outstanding += _tokens(request, place)
                parts.setdefault(replica, []).append(place)
        return parts

    def _able(self, failed: Mapping[_Replica, PowermeanError]) -> list[_Replica]:
        """Those that may be asked. If none serves, all: their answers say what is the matter."""
        serving = [replica for replica in self._replicas if replica.serves] or self._replicas
        if not (able := [replica for replica in serving if replica not in failed]):
            raise _all(failed)
        return able

    def _ask_each(
        self, request: GenerateRequest, parts: Mapping[_Replica, Sequence[int]], timeout_s: float
    ) -> dict[_Replica, GenerateResponse | PowermeanError]:
        return _on_each(parts, lambda replica: self._ask(replica, request, parts[replica], timeout_s))

    def _ask(
        self, replica: _Replica, request: GenerateRequest, places: Sequence[int], timeout_s: float
    ) -> GenerateResponse:
        version = self._version
        try:
            response = replica.service.generate(_part(request, places), timeout_s)
        finally:
            with self._lock:
                replica.outstanding -= sum(_tokens(request, place) for place in places)
        sizes = [len(group) for group in response.completions]
        if sizes != [request.n] * len(places):
            wanted = f"{len(places)} groups of {request.n} completions"
            why = f"the rollout service returned groups of {sizes[:20]} instead of {wanted}"
            raise EngineRefusedError(502, "engine_answer", why)
        completions = [one for group in response.completions for one in group]
        made_by = {span.version for one in completions for span in one.weight_versions}
        if version is not None and min(made_by, default=version) < version:
            why = f"it sampled with version {min(made_by)} after version {version} was published"
            raise EngineRefusedError(503, "weights_incomplete", why)
        if version == self._version:
            replica.serves = True
        return response

    def _sound(
        self,
        outcomes: Mapping[_Replica, GenerateResponse | PowermeanError],
        failed: dict[_Replica, PowermeanError],
    ) -> dict[_Replica, GenerateResponse]:
        """The answers; replicas without one are left out and added to `failed`. Raises other errors."""
        answers: dict[_Replica, GenerateResponse] = {}
        for replica, outcome in outcomes.items():
            if not isinstance(outcome, PowermeanError):
                answers[replica] = outcome
            elif outcome.code in _ITS_OWN:
                failed[replica] = outcome
                self._leave_out(replica, outcome)
            else:
                raise outcome
        return answers

    def _reach(self, replica: _Replica) -> None:
        """Ask one that was left out whether it is up, so that nobody waits long for one that hangs."""
        if replica.serves or self.size == 1:
            return
        try:
            replica.service.health(HEALTH_TIMEOUT_S)
        except EngineRefusedError as refusal:
            raise EngineRefusedError(503, "engine_starting", f"it is not ready: {refusal}") from refusal

    def _on_all(self, act: Callable[[_Replica], None], *, gains: bool = True) -> None:
        """Leave out those that fail. `gains`: the others get work from now on."""
        failed = {}
        for replica, outcome in _on_each(self._replicas, act).items():
            if isinstance(outcome, PowermeanError):
                failed[replica] = outcome
                self._leave_out(replica, outcome)
            elif gains:
                replica.serves = True
        if len(failed) == self.size:
            raise _all(failed)

    def _leave_out(self, replica: _Replica, why: PowermeanError) -> None:
        if replica.serves and self.size > 1:
            log.warning(
                "rollout engine %d of %d gets no work until it takes a publish: %s",
                *(replica.number + 1, self.size, why),
            )
        replica.serves = False


def _on_each(
    replicas: Sequence[_Replica] | Mapping[_Replica, object], act: Callable[[_Replica], Result]
) -> dict[_Replica, Result | PowermeanError]:
    """What `act` returns or raises for each of them, all at once."""

    def outcome(replica: _Replica) -> Result | PowermeanError:
        try:
            return act(replica)
        except PowermeanError as error:
            return error

    with ThreadPoolExecutor(len(replicas), "replicas") as threads:
        return dict(zip(replicas, threads.map(outcome, replicas), strict=True))


def _part(request: GenerateRequest, places: Sequence[int]) -> GenerateRequest:
    """The request for some of its prompts, which get the random numbers of their places in the whole."""
    if len(places) == len(request.prompts):
        return request
    prompts = tuple(request.prompts[place] for place in places)
    whole = request.places or range(len(request.prompts))
    return request.model_copy(update={"prompts": prompts, "places": tuple(whole[place] for place in places)})


def _tokens(request: GenerateRequest, place: int) -> int:
    return len(request.prompts[place]) + request.n * request.sampling.max_new_tokens


def _all(failed: Mapping[_Replica, PowermeanError]) -> PowermeanError:
    """One error for all replicas: of the kind that says best what helps."""
    if len(failed) == 1:
        return next(iter(failed.values()))
    order = {code: place for place, code in enumerate(_ITS_OWN)}
    first = min(failed.values(), key=lambda error: order.get(error.code, len(order)))
    each = "; ".join(f"engine {replica.number + 1}: {error}" for replica, error in failed.items())
    text = f"all {len(failed)} rollout engines failed: {each}"
    if isinstance(first, EngineRefusedError):
        return EngineRefusedError(first.status, first.code, text, first.remedy)
    if isinstance(first, EngineUnreachableError):
        return EngineUnreachableError(f"{len(failed)} addresses", each)
    return RolloutError(text, code=first.code, remedy=first.remedy, retryable=first.retryable)
