"""The attempt's rollout services: waiting for them, and choosing how weights are published."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, cast
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
from trainer.ranks.gradients import is_sharded
from trainer.weights.channel import ChannelWriter, connector
from trainer.weights.engine_pool import EnginePool
from trainer.weights.files import Publisher, Target, WeightWriter, fits_shared_memory
from trainer.weights.in_place import InPlaceWriter
from worker.attempt_dir import AttemptDir

ENGINE_TIMEOUT_S = 900.0
LEAVE_TIMEOUT_S = 10.0
_TELL_EVERY_S = 15.0
LOOPBACK = ("127.0.0.1", "::1", "localhost")

log = logging.getLogger(__name__)

Found = TypeVar("Found")


@dataclass(frozen=True)
class Connection:
    """The rollout services to work with. If they are on this host, weights can go through shared memory.

    `adapters`: they accept LoRA adapters. `shared`: other jobs use it too, and it outlives the attempt.
    """

    engine: EnginePool
    on_this_host: bool
    address: Callable[[Target], str] = lambda _target: LOOPBACK[0]  # where a service reaches this process
    methods: tuple[PublishMethod, ...] = ("store", "shm")  # that all accept weights by
    adapters: bool = False
    shared: bool = False
    sleeps: bool = False  # while the trainer uses the GPUs
    max_model_len: int | None = None  # most tokens of prompt and completion together
    other_jobs: int = 0  # how many other jobs may use it at the same time


@contextmanager
def connected(attempt: AttemptDir, tell: Callable[[str], None]) -> Iterator[Connection]:
    """The attempt's rollout services, when they are ready; people are told how long that takes."""
    claim = attempt.claim()
    urls = engine_urls(attempt, claim, tell)
    here = {*LOOPBACK, *([urlsplit(urls[0]).hostname] if claim.engine is None else [])}
    with ExitStack() as stack:
        clients = {stack.enter_context(RolloutClient(url, attempt.token)): urlsplit(url) for url in urls}
        states = [ready_state(client) for client in clients]
        slots = states[0].adapters
        adapters = slots is not None
        if adapters:
            stack.callback(_leave, attempt, urls)

        def address(target: Target) -> str:
            place = clients[cast(RolloutClient, target)]
            host = place.hostname or LOOPBACK[0]
            return LOOPBACK[0] if host in LOOPBACK else address_towards(host, place.port or 80)

        yield Connection(
            EnginePool(list(clients)),
            on_this_host=all(place.hostname in here for place in clients.values()),
            address=address,
            methods=tuple(way for way in states[0].methods if all(way in state.methods for state in states)),
            adapters=adapters,
            shared=claim.engine is not None,
            sleeps=states[0].sleeps,
            max_model_len=min(state.max_model_len for state in states),
            other_jobs=slots.slots - 1 if slots is not None else 0,
        )


def _leave(attempt: AttemptDir, urls: Sequence[str]) -> None:
    """Free the job's slots. Otherwise the node frees them when it no longer lists the job.

    The connection's own clients may be closed.
    """
    for url in urls:
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


def engine_urls(attempt: AttemptDir, claim: Claim, tell: Callable[[str], None]) -> list[str]:
    """The addresses of all engines of the job, when they are ready. Raises TrainingError like engine_url."""
    own = own_engine_urls(attempt, claim, tell)
    if claim.engine is not None:
        return own
    others = range(1, claim.spec.resources.nodes)
    return own + [url for node_rank in others for url in _urls_of_node(attempt, node_rank, len(own), tell)]


def own_engine_urls(attempt: AttemptDir, claim: Claim, tell: Callable[[str], None]) -> list[str]:
    """The addresses of the engines on this node, or of the shared one."""
    replicas = 1 if claim.engine is not None else claim.spec.rollout.replicas
    return [engine_url(attempt, tell=tell, replica=replica) for replica in range(replicas)]


def _urls_of_node(
    attempt: AttemptDir, node_rank: int, replicas: int, tell: Callable[[str], None]
) -> tuple[str, ...]:
    def told() -> tuple[str, ...] | None:
        reports = [one.report for one in attempt.members() if one.node_rank == node_rank]
        return next((one.engine_urls for one in reports if one and len(one.engine_urls) == replicas), None)

    return _awaited(told, ENGINE_TIMEOUT_S, tell, _TELL_EVERY_S)


def engine_url(
    attempt: AttemptDir,
    timeout_s: float = ENGINE_TIMEOUT_S,
    tell: Callable[[str], None] = logging.info,
    tell_every_s: float = _TELL_EVERY_S,
    replica: int = 0,
) -> str:
    """The address of an engine on this node, when it is ready; `tell` is called now and then with the time
    waited.

    Raises TrainingError: engine_unreachable, or why the engine did not start.
    """
    start = _awaited(lambda: attempt.engine_start(replica), timeout_s, tell, tell_every_s)
    if start.error is not None:
        why = start.error
        raise TrainingError(
            why.code, why.message, path=why.path, remedy=why.remedy, retryable=start.retryable
        )
    assert start.url is not None
    return start.url


def _awaited(
    found: Callable[[], Found | None], timeout_s: float, tell: Callable[[str], None], tell_every_s: float
) -> Found:
    began = told = time.monotonic()
    while (it := found()) is None:
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
    return it


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
    if method in ("gloo", "nccl", "ipc"):
        return _channel(method, connection, claim, policy, call_ranks)
    if method in ("auto", "in_place") and _shares_weights(connection, claim.spec, policy):
        return InPlaceWriter(claim.job_id, claim.number)
    return WeightWriter(
        job_id=claim.job_id,
        attempt=claim.number,
        method="shm" if _through_memory(connection, method, policy) else "store",
        dtype=policy.dtype,
        store=store,
        scratch=scratch,
        adapter_alone=connection.adapters,
        changed=claim.origin is not None and claim.origin.kind == "adapter",
        sleeps=connection.sleeps,
        call_ranks=call_ranks,
    )


def _channel(
    method: Literal["gloo", "nccl", "ipc"],
    connection: Connection,
    claim: Claim,
    policy: Policy,
    call_ranks: Callable[[], object],
) -> ChannelWriter:
    """Raises TrainingError (sharded_model)."""
    if method != "gloo" and is_sharded(policy.model):
        raise TrainingError(
            "sharded_model",
            f"publishing by {method} needs a whole copy of the sharded model's weights on one GPU",
            path="rollout.publish",
            remedy="set rollout.publish to auto, shm or store",
        )
    connect = connector(method, connection.address, claim.spec.rollout.gpus_per_replica)
    return ChannelWriter(
        claim.job_id,
        claim.number,
        method,
        policy.dtype,
        connect,
        sleeps=connection.sleeps,
        call_ranks=call_ranks,
    )


def _shares_weights(connection: Connection, spec: JobSpec, policy: Policy) -> bool:
    """Whether the engine samples from the trainer's own weights. Raises TrainingError (not_in_place) if it
    must and can't."""
    why = _in_place_objection(connection, spec, policy)
    if why is not None and spec.rollout.publish == "in_place":
        raise TrainingError(
            "not_in_place",
            f"the engine can't sample from the trainer's own weights: {why}",
            path="rollout.publish",
            remedy="set rollout.publish to auto, shm or store",
        )
    if why is not None:
        log.info("the engine gets copies of the weights: %s", why)
    return why is None


def _through_memory(connection: Connection, method: PublishMethod | Literal["auto"], policy: Policy) -> bool:
    """Whether files go through the host's memory. Raises TrainingError (no_shared_memory) if they must and
    can't."""
    if method == "store":
        return False
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
    return shared


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
