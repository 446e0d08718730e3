"""The attempt's rollout service: waiting for it, and choosing how weights are published."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from powermean.artefacts import ArtefactStore
from powermean.contracts.attempts import Claim
from powermean.contracts.job import JobSpec
from powermean.contracts.rollout import EngineState, PublishMethod
from rollout.client import RolloutClient, RolloutError
from rollout.gloo import address_towards
from rollout.shared_weights import float_types
from trainer.failures import TrainingError
from trainer.policy.policy import Policy
from trainer.ranks.sharding import is_sharded
from trainer.weights.channel import ChannelWriter, connector
from trainer.weights.files import Publisher, WeightWriter, fits_shared_memory
from trainer.weights.in_place import InPlaceWriter
from trainer.weights.steady_engine import Service
from worker.attempt_dir import AttemptDir

ENGINE_TIMEOUT_S = 900.0
LEAVE_TIMEOUT_S = 10.0
_TELL_EVERY_S = 15.0
LOOPBACK = ("127.0.0.1", "::1", "localhost")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Connection:
    """A rollout service to work with. On this host, weights can go through shared memory.

    `adapters`: it accepts LoRA adapters. `shared`: other jobs use it too, and it outlives the attempt.
    """

    engine: Service
    on_this_host: bool
    address: str = LOOPBACK[0]  # address at which the service reaches this process
    methods: tuple[PublishMethod, ...] = ("store", "shm")  # that it accepts weights by
    adapters: bool = False
    shared: bool = False
    max_model_len: int | None = None  # most tokens of prompt and completion together
    other_jobs: int = 0  # how many other jobs may use it at the same time


@contextmanager
def connected(attempt: AttemptDir, tell: Callable[[str], None]) -> Iterator[Connection]:
    """The attempt's rollout service, when it is ready; people are told how long that takes."""
    url = engine_url(attempt, tell=tell)
    place = urlsplit(url)
    host = place.hostname or LOOPBACK[0]
    with RolloutClient(url, attempt.token) as client:
        state = ready_state(client)
        slots = state.adapters
        adapters = slots is not None
        on_this_host = host in LOOPBACK
        try:
            yield Connection(
                client,
                on_this_host=on_this_host,
                address=LOOPBACK[0] if on_this_host else address_towards(host, place.port or 80),
                methods=state.methods,
                adapters=adapters,
                shared=attempt.claim().engine is not None,
                max_model_len=state.max_model_len,
                other_jobs=slots.slots - 1 if slots is not None else 0,
            )
        finally:
            if adapters:
                # Otherwise the slot is freed when the node no longer lists the job. This client may be
                # closed.
                with suppress(RolloutError), RolloutClient(url, attempt.token) as parting:
                    parting.drop_adapter(LEAVE_TIMEOUT_S)


def ready_state(client: RolloutClient, timeout_s: float = ENGINE_TIMEOUT_S) -> EngineState:
    """The state of a service once its engine is ready. Raises RolloutError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return client.health()
        except RolloutError as error:
            if not error.retryable or time.monotonic() > deadline:
                raise
        time.sleep(0.5)


def engine_url(
    attempt: AttemptDir,
    timeout_s: float = ENGINE_TIMEOUT_S,
    tell: Callable[[str], None] = logging.info,
    tell_every_s: float = _TELL_EVERY_S,
) -> str:
    """The rollout engine's address, when it is ready; `tell` is called now and then with the time waited.

    Raises TrainingError: engine_unreachable, or why the engine did not start.
    """
    began = told = time.monotonic()
    while (start := attempt.engine_start()) is None:
        now = time.monotonic()
        if now > told + tell_every_s:
            told = now
            tell(f"waiting for the rollout engine, {now - began:.0f} s so far; vLLM takes 1 to 3 minutes")
        if now > began + timeout_s:
            raise TrainingError(
                "engine_unreachable",
                f"the rollout engine did not start within {timeout_s:.0f} s",
                remedy="see the attempt's log for what it was doing",
                retryable=True,
            )
        time.sleep(0.1)
    if start.error is not None:
        why = start.error
        raise TrainingError(
            why.code, why.message, path=why.path, remedy=why.remedy, retryable=start.retryable
        )
    assert start.url is not None
    return start.url


def publisher(
    connection: Connection,
    claim: Claim,
    policy: Policy,
    store: ArtefactStore,
    scratch: Path,
    call_ranks: Callable[[], object] = lambda: None,
) -> Publisher:
    """The way of rollout.publish; auto is in place where that works, otherwise files: through shared memory
    on one host with room, else through the artefact store.

    An engine that accepts adapters gets only the adapter. `call_ranks`: has the other ranks take part in
    gathering a sharded model's weights. Raises TrainingError: adapters_only for a job without an adapter,
    sharded_model for a way that can't take one, not_in_place and no_shared_memory if in_place or shm was
    requested but is impossible.
    """
    if connection.adapters and claim.spec.model.lora is None:
        raise TrainingError(
            "adapters_only",
            "the job trains all weights, and its rollout engine serves LoRA adapters of one base model",
            path="model.lora",
            remedy="train an adapter, or give the job its own engine (rollout.sharing: own)",
        )
    method = claim.spec.rollout.publish
    if method in ("nccl", "ipc") and is_sharded(policy.model):
        raise TrainingError(
            "sharded_model",
            f"the way {method} would take a whole copy of the sharded model's weights on one GPU",
            path="rollout.publish",
            remedy="set rollout.publish to auto, shm or store",
        )
    if method in ("gloo", "nccl", "ipc"):
        connect = connector(method, connection.address)
        return ChannelWriter(claim.job_id, claim.number, method, policy.dtype, connect, call_ranks)
    if method in ("auto", "in_place"):
        if (why := _in_place_objection(connection, claim.spec, policy)) is None:
            return InPlaceWriter(claim.job_id, claim.number)
        if method == "in_place":
            raise TrainingError(
                "not_in_place",
                f"the engine can't sample from the trainer's own weights: {why}",
                path="rollout.publish",
                remedy="set rollout.publish to auto, shm or store",
            )
        log.info("the engine gets copies of the weights: %s", why)
    shared = connection.on_this_host and fits_shared_memory(
        policy.model, policy.dtype, adapter_alone=connection.adapters
    )
    if method == "shm" and not shared:
        raise TrainingError(
            "no_shared_memory",
            "the rollout engine is on another host, or /dev/shm has no room for the weights",
            path="rollout.publish",
            remedy="set rollout.publish to auto or store",
        )
    return WeightWriter(
        job_id=claim.job_id,
        attempt=claim.number,
        method="shm" if shared and method != "store" else "store",
        dtype=policy.dtype,
        store=store,
        scratch=scratch,
        adapter_alone=connection.adapters,
        call_ranks=call_ranks,
    )


def _in_place_objection(connection: Connection, spec: JobSpec, policy: Policy) -> str | None:
    """Why trainer and engine can't share the memory of the weights; None where they can."""
    if (why := spec.in_place_objection) is not None:
        return why
    if not connection.on_this_host or connection.shared:
        return "it is on another host, or other jobs use it"
    if is_sharded(policy.model):
        return "they are spread over ranks"
    if "in_place" not in connection.methods:
        return "it takes none in place"
    if policy.device.type != "cpu" or float_types(policy.model.state_dict()) != {policy.dtype}:
        return f"the trainer's are not all {policy.dtype} on a CPU"
    if not fits_shared_memory(policy.model, policy.dtype):
        return "shared memory has no room for them"
    return None
