"""The vLLM engine: one vLLM server process behind the rollout service, on a CPU or on GPUs."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event, Lock
from typing import Literal

from powermean.contracts.rollout import (
    ChannelRequest,
    EngineState,
    GenerateRequest,
    GenerateResponse,
    HoldRequest,
    PublishRequest,
)
from rollout.counting import Finished, nobody
from rollout.engine import EngineError, Fence, adapters_off, check_method, check_prompts
from rollout.vllm.channel import Channel
from rollout.vllm.command import VllmOptions
from rollout.vllm.metrics import vllms_own
from rollout.vllm.model_folder import ModelFolder, read_model_folder, read_shapes, renames
from rollout.vllm.requests import complete
from rollout.vllm.server import Deadlines, VllmServer
from rollout.weights import WeightSource

NAME = "vllm"
CALLS_AT_ONCE = 8  # a call has many completions, which vLLM batches with those of other calls


class VllmEngine:
    """See Engine and EngineHost; `publish` may also come while other threads are in `generate`.

    Completions in flight then continue with the new weights, with their cache recomputed, and their spans say
    which weights made which token. `sampling.seed` has no effect, because a request's seed can crash vLLM on
    a CPU: runs on this engine are *not* bit-identical.
    """

    calls_at_once = CALLS_AT_ONCE

    def __init__(self, server: VllmServer, model: ModelFolder, fence: Fence, weights: WeightSource) -> None:
        """Raises EngineError if the server does not become ready."""
        self._server = server
        self._model = model
        self._fence = fence
        self._weights = weights
        self._channel = Channel(server, model)
        self._publishing = Lock()
        self._published = False  # before the first publish, every start has the right weights: the folder's
        self._served: int | None = None  # the server start with the fence's weights; None: no start has them
        self._asleep: int | None = None  # the server start that sleeps
        server.wait_ready()
        self._max_model_len = context_length(server)
        self._label(fence.version)
        self._served = server.starts

    def serving(self, job_id: str, attempt: int) -> "VllmEngine":
        """See EngineHost."""
        self._fence.check_attempt(job_id, attempt)
        return self

    def state(self, _job_id: str | None = None) -> EngineState:
        """See Engine. Also ready while a publish is what it waits for: to get weights, or to start again."""
        return EngineState(
            ready=self._server.phase in ("ready", "held"),
            engine=NAME,
            model=self._model.name,
            version=self._fence.version,
            attempt=self._fence.attempt,
            max_model_len=self._max_model_len,
            methods=("store", "shm", *([self._channel.method] if self._channel.method else [])),
            sleeps=self._server.options.sleep,
        )

    def metrics(self) -> str:
        """See EngineHost. Empty while vLLM is down."""
        return vllms_own(self._server)

    def drop_adapter(self) -> None:
        """See Engine."""
        raise adapters_off()

    def generate(
        self, request: GenerateRequest, cancelled: Event, finished: Finished = nobody
    ) -> GenerateResponse:
        """See Engine. Tokens differ from run to run, whatever the seed."""
        self._check(request)
        return GenerateResponse(
            completions=complete(self._server, request, self._model.end_tokens, cancelled, finished)
        )

    def publish(self, request: PublishRequest) -> None:
        """See Engine. Nothing is changed before all files are verified and all tensors fit the model.

        After a restart or a failed publish, the current version may be published again.
        """
        if request.adapter is not None:
            raise adapters_off()
        with self._publishing:
            self._server.release()
            fence = self._advanced(request)
            if request.tensors:
                update = self._channel.update(request)
                self._transfer(fence, lambda: self._channel.receive(update))
                return
            with self._weights.verified(request) as paths:
                changed = self._renames(paths)
                self._transfer(fence, lambda: self._load(paths, changed, fence.version))

    def hold(self, request: HoldRequest) -> None:
        """See Engine. vLLM's weights are its own; but one that shares the trainer's GPU sleeps.

        At level 2 it drops its weights, too: the publish brings new ones, so nobody needs a copy. If it ends
        meanwhile, it is not started before the publish either.
        """
        if not self._server.options.sleep:
            check_method("in_place", self.state())
        with self._publishing:
            down = self._server.phase == "held"
            if not down:
                self._server.check_ready()
            self._fence.advanced(request)
            if down or self._asleep == self._server.starts:
                return
            self._published, self._served = True, None
            self._server.hold()
            try:
                self._server.call("sleep", "/sleep", params={"level": "2", "mode": "wait"})
            except EngineError as error:
                self._server.kill(f"putting vLLM to sleep failed: {error}")
                raise
            self._asleep = self._server.starts

    def open_channel(self, request: ChannelRequest) -> None:
        """See Engine. A channel ends with vLLM's process."""
        with self._publishing:
            self._server.release()
            self._fence.check_attempt(request.job_id, request.attempt)
            self._channel.open(request)

    def close(self) -> None:
        """End the server process."""
        self._server.close()

    def _has_weights(self) -> bool:
        """Whether the server, which may have restarted, has the fence's weights."""
        if not self._published and self._served != self._server.starts:
            self._label(self._fence.version)
            self._served = self._server.starts
        return self._served == self._server.starts

    def _advanced(self, request: PublishRequest) -> Fence:
        same = (request.attempt, request.version) == (self._fence.attempt, self._fence.version)
        if same and not self._has_weights():
            self._fence.check_attempt(request.job_id, request.attempt)
            return self._fence
        return self._fence.advanced(request)

    def _renames(self, paths: Sequence[Path]) -> dict[str, str]:
        try:
            return renames(self._model, read_shapes(paths))
        except ValueError as error:
            raise EngineError(
                409, "weights_mismatch", str(error), remedy="Publish safetensors files, each tensor once."
            ) from error

    def _transfer(self, fence: Fence, load: Callable[[], None]) -> None:
        """Freeze what is in flight, load and name the version, drop caches of old weights, resume."""
        call, start = self._server.call, self._server.starts
        try:
            call("pause", "/pause", params={"mode": "keep", "clear_cache": "false"})
            self._published, self._served = True, None
            self._wake("weights")
            load()
            self._wake("kv_cache")
            self._asleep = None
            call("reset caches", "/reset_prefix_cache", params={"reset_running_requests": "true"})
            call("resume", "/resume")
        except EngineError as error:
            # It is frozen or mixes weights of two versions, so this process can't be trusted any more.
            self._server.kill(f"publishing version {fence.version} failed: {error}")
            raise
        self._fence = fence
        self._served = start

    def _wake(self, what: Literal["weights", "kv_cache"]) -> None:
        """Take GPU memory back: for weights that are about to come, for the cache once they are there."""
        if self._asleep == self._server.starts:
            self._server.call(f"wake up {what}", "/wake_up", params={"tags": what})

    def _load(self, paths: Sequence[Path], changed: dict[str, str], version: int) -> None:
        load = {"paths": json.dumps([str(path) for path in paths]), "renamed": json.dumps(changed)}
        call = self._server.call
        call("load weights", "/collective_rpc", body={"method": "powermean_load", "kwargs": load})
        self._label(version)

    def _label(self, version: int) -> None:
        self._server.call("name the version", "/update_weight_version", body={"new_version": str(version)})

    def _check(self, request: GenerateRequest) -> None:
        with self._publishing:  # calls that arrive during a publish start after it
            self._server.check_ready()
            if not self._has_weights():
                raise EngineError(
                    503,
                    "weights_incomplete",
                    f"vLLM restarted and does not have the weights of version {self._fence.version}",
                    remedy="Publish them again; the same version is accepted.",
                )
        check_prompts(request, self._max_model_len, self._model.vocabulary)


def context_length(server: VllmServer) -> int:
    """Most tokens of prompt and completion together, as reported by a ready server."""
    models = server.call("describe", "/v1/models", method="GET")
    return int(models["data"][0]["max_model_len"])


def load_engine(
    options: VllmOptions,
    *,
    fence: Fence,
    weights: WeightSource,
    deadlines: Deadlines | None = None,
) -> VllmEngine:
    """Start vLLM on a model folder and wait for it.

    Raises EngineError: vllm_missing, unknown_model, engine_start_failed, engine_start_timeout.
    """
    model = read_model_folder(options.model)
    server = VllmServer(options, deadlines)
    try:
        return VllmEngine(server, model, fence, weights)
    except EngineError:
        server.close()
        raise
