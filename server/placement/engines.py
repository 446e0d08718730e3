"""Engine services: where those that an administrator declared run, and which of them a LoRA job may share."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

from server.jobs.demand import AdapterNeed
from server.placement.backfill import Calendar, reserve
from server.placement.fit import Ask, Index, best
from server.placement.room import Room
from server.placement.state import (
    VLLM,
    NodeCapacity,
    Placement,
    SharedEngine,
    Wait,
    WaitingEngine,
    WaitingJob,
)


def place(
    engine: WaitingEngine, nodes: Sequence[NodeCapacity], index: Index, room: Room, calendar: Calendar
) -> Placement | str:
    """The engine's node and GPUs, or why it waits. What it waits for is kept for it."""
    allowed = [node for node in nodes if engine.node in (None, node.id)]
    if not allowed:
        return f"waiting for {f'node {engine.node}' if engine.node else 'a node'} to connect"
    fitting = [node for node in allowed if could_hold(engine, node)]
    if not fitting:
        needs = f"vLLM and {engine.gpus} GPUs" if engine.gpus else "vLLM"
        if engine.node:
            return f"waiting for node {engine.node} to have {needs}"
        return f"waiting for a node with {needs}: no connected node has that"
    if all(node.closed for node in fitting):
        return f"waiting for a node: {fitting[0].closed}"
    if not engine.gpus:
        fitting = [node for node in fitting if node.closed is None]
        spread = min(fitting, key=lambda node: (room.services[node.id], -node.cpu_slots, node.id))
        room.services[spread.id] += 1
        return Placement(engine.id, spread.id, ())
    request = index.request(Ask(engine.gpus, vllm=True, only=engine.node))
    chosen = best(request, room)
    if chosen is None:
        for node_id in reserve(request, index, room, calendar) or {}:
            room.hold(node_id, engine.gpus)
        return f"waiting for {engine.gpus} free GPUs on a node with vLLM"
    return Placement(engine.id, chosen[0], room.take(chosen[0], engine.gpus))


def could_hold(engine: WaitingEngine, node: NodeCapacity) -> bool:
    """Whether the node would do if nothing ran there."""
    return VLLM in node.engines and node.gpus >= engine.gpus


class Serving(NamedTuple):
    """The engines that fit a need, ready or not."""

    engines: tuple[SharedEngine, ...]
    ids: tuple[str, ...]
    ready: tuple[SharedEngine, ...]


class _OpenEngines:
    """The engines of a model that are open to a project. Needs between the same bounds get the same ones."""

    def __init__(self, engines: Iterable[SharedEngine]) -> None:
        self._engines = tuple(engines)
        self._ranks = sorted({one.max_lora_rank for one in self._engines})
        self._tokens = sorted({one.max_tokens for one in self._engines if one.max_tokens is not None})
        self._found: dict[tuple[int, int, bool], Serving] = {}

    def serving(self, need: AdapterNeed) -> Serving:
        key = bisect_left(self._ranks, need.rank), bisect_left(self._tokens, need.tokens), need.same_host
        if (found := self._found.get(key)) is None:
            fit = tuple(one for one in self._engines if _serves(one, need))
            ready = tuple(one for one in fit if one.state == "ready")
            found = self._found[key] = Serving(fit, tuple(one.id for one in fit), ready)
        return found


class Catalogue:
    """The engine services by what a LoRA job needs of them. Nothing here changes while a plan is made."""

    def __init__(self, engines: Sequence[SharedEngine]) -> None:
        self._of_model: dict[tuple[str, str], list[SharedEngine]] = defaultdict(list)
        for engine in engines:
            self._of_model[engine.model, engine.dtype].append(engine)
        self.has_slot = frozenset(job_id for engine in engines for job_id in engine.jobs)
        self._open = cache(self._open_engines)

    def _open_engines(self, model: str, dtype: str, project: str) -> _OpenEngines:
        return _OpenEngines(one for one in self._of_model.get((model, dtype), ()) if one.is_open_to(project))

    def serving(self, need: AdapterNeed, project: str) -> Serving:
        return self._open(need.model, need.dtype, project).serving(need)

    def choose(self, job: WaitingJob, need: AdapterNeed, room: Room) -> list[SharedEngine] | Wait:
        """The engines with a free slot, the emptiest first, or what the job waits for."""
        serving = self.serving(need, job.project)
        if not serving.engines:
            return Wait("engine", self._unserved(need, job.project))
        if not serving.ready:
            first = serving.engines[0]
            return Wait("engine", f"waiting for engine {first.name} to be ready ({first.state})")
        with_slot = [
            (engine.node in job.avoid, len(jobs), engine.id, engine)
            for engine in serving.ready
            if len(jobs := room.adapters[engine.id]) - (job.id in jobs) < engine.max_adapters
        ]
        if not with_slot:
            first = serving.ready[0]
            taken = f"all {first.max_adapters} taken"
            return Wait("engine", f"waiting for a free slot in engine {first.name} ({taken})")
        return [engine for *_, engine in sorted(with_slot)]

    def _unserved(self, need: AdapterNeed, project: str) -> str:
        of_model = self._of_model.get((need.model, need.dtype))
        if not of_model:
            return f"waiting for an engine to be declared for {need.model} in {need.dtype}"
        ours = [engine for engine in of_model if engine.is_open_to(project)]
        if not ours:
            return f"waiting for an engine that serves project {project}"
        return f"waiting for an engine that fits: {_limits(ours[0], need)}"


def _serves(engine: SharedEngine, need: AdapterNeed) -> bool:
    fits = engine.max_tokens is None or engine.max_tokens >= need.tokens
    near = not need.same_host or engine.reach is not None
    return fits and near and engine.max_lora_rank >= need.rank


def _limits(engine: SharedEngine, need: AdapterNeed) -> str:
    if engine.max_lora_rank < need.rank:
        return f"{engine.name} takes ranks up to {engine.max_lora_rank}, the job has {need.rank}"
    if engine.max_tokens is not None and engine.max_tokens < need.tokens:
        return f"{engine.name} takes {engine.max_tokens} tokens, the job has up to {need.tokens}"
    return f"{engine.name} may be on another host, where shm does not reach (set rollout.publish to auto)"
