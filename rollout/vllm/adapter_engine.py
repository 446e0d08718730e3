"""vLLM with the base model's weights and one LoRA adapter per job, for one job or several."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from threading import Event

from powermean.contracts.rollout import (
    ChannelRequest,
    EngineState,
    GenerateRequest,
    GenerateResponse,
    HoldRequest,
    PublishRequest,
)
from rollout.counting import Finished, nobody
from rollout.engine import EngineError, Fence, check_method, check_prompts
from rollout.vllm.adapters import Adapters
from rollout.vllm.command import VllmOptions
from rollout.vllm.engine import NAME, context_length
from rollout.vllm.metrics import vllms_own
from rollout.vllm.model_folder import ModelFolder, read_model_folder
from rollout.vllm.requests import complete
from rollout.vllm.server import Deadlines, VllmServer
from rollout.weights import WeightSource

CALLS_PER_SLOT = 4  # calls that a job may have in flight: it samples ahead, evaluates and probes
VERSIONS_PER_SLOT = 2  # of an adapter, computed with at once: a new one besides one still in use


class AdapterEngine:
    """See EngineHost. `only`: the one job it serves, and its lowest attempt; None serves every job."""

    def __init__(
        self, server: VllmServer, model: ModelFolder, adapters: Adapters, only: Fence | None = None
    ) -> None:
        """Raises EngineError if the server does not become ready."""
        self._server = server
        self._model = model
        self._only = only
        self.adapters = adapters
        self.calls_at_once = CALLS_PER_SLOT * adapters.slots().slots
        server.wait_ready()
        self._max_model_len = context_length(server)

    def serving(self, job_id: str, attempt: int) -> "JobEngine":
        """See EngineHost: access to the job's own adapter only."""
        for fence in (self._only, self.adapters.fence(job_id)):
            if fence is not None:
                fence.check_attempt(job_id, attempt)
        return JobEngine(self, job_id, attempt)

    def state(self, job_id: str | None = None) -> EngineState:
        """See EngineHost. Version and attempt are those of the job's adapter, 0 if it has none."""
        fence = self.adapters.fence(job_id) if job_id is not None else None
        return EngineState(
            ready=self._server.phase == "ready",
            engine=NAME,
            model=self._model.name,
            version=fence.version if fence else 0,
            attempt=fence.attempt if fence else 0,
            max_model_len=self._max_model_len,
            adapters=self.adapters.slots(),
        )

    def metrics(self) -> str:
        """See EngineHost. Empty while vLLM is down."""
        return vllms_own(self._server)

    def wait_given_up(self) -> str | None:
        """See VllmServer."""
        return self._server.wait_given_up()

    def close(self) -> None:
        """End the server process."""
        self._server.close()

    def generate_for(
        self,
        job_id: str,
        attempt: int,
        request: GenerateRequest,
        cancelled: Event,
        finished: Finished = nobody,
    ) -> GenerateResponse:
        """Completions of the base model with the job's last published adapter."""
        self._server.check_ready()
        check_prompts(request, self._max_model_len, self._model.vocabulary)
        with self.adapters.in_use(job_id, attempt) as adapter:
            completions = complete(
                self._server, request, self._model.end_tokens, cancelled, finished, adapter=adapter
            )
        return GenerateResponse(completions=completions)


@dataclass(frozen=True)
class JobEngine:
    """See Engine: an AdapterEngine as one job's attempt sees it."""

    engine: AdapterEngine
    job_id: str
    attempt: int

    def generate(
        self, request: GenerateRequest, cancelled: Event, finished: Finished = nobody
    ) -> GenerateResponse:
        """See Engine. Calls in flight keep the version they started with. Tokens differ from run to run."""
        return self.engine.generate_for(self.job_id, self.attempt, request, cancelled, finished)

    def publish(self, request: PublishRequest) -> None:
        """See Engine."""
        Fence(self.job_id, self.attempt, 0).check_attempt(request.job_id, request.attempt)
        if request.adapter is None:
            raise EngineError(
                409,
                "adapters_only",
                "this engine serves LoRA adapters of one base model, not full weights",
                remedy="Train an adapter (model.lora), or use the job's own engine.",
                path="adapter",
            )
        self.engine.adapters.publish(request, request.adapter)

    def hold(self, _request: HoldRequest) -> None:
        """See Engine. vLLM's weights are its own."""
        check_method("in_place", self.state())

    def open_channel(self, request: ChannelRequest) -> None:
        """See Engine. Adapters have no channel: they are files."""
        check_method(request.method, self.state())

    def drop_adapter(self) -> None:
        """See Engine."""
        self.engine.adapters.drop(self.job_id)

    def state(self) -> EngineState:
        """See Engine."""
        return self.engine.state(self.job_id)


def load_adapter_engine(
    options: VllmOptions,
    *,
    slots: int,
    weights: WeightSource,
    only: Fence | None = None,
    running: Callable[[], Collection[str]] | None = None,
    deadlines: Deadlines | None = None,
) -> AdapterEngine:
    """Start vLLM on a model folder, with room for the adapters of `slots` jobs, and wait until it is ready.

    Raises EngineError: vllm_missing, unknown_model, engine_start_failed, engine_start_timeout.
    """
    model = read_model_folder(options.model)
    options = replace(options, max_loras=VERSIONS_PER_SLOT * slots)
    server = VllmServer(options, deadlines)
    try:
        return AdapterEngine(server, model, Adapters(server, weights, slots, running), only)
    except EngineError:
        server.close()
        raise
