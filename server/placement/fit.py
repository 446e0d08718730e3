"""Where a gang fits: which nodes could hold it, and which of them fit most tightly now."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from heapq import nsmallest
from typing import NamedTuple

from powermean.contracts.attempts import GpuInfo
from powermean.contracts.revisions import FIRST
from server.placement.room import Room
from server.placement.state import NOBODY, VLLM, NodeCapacity, WaitingJob

NAMED = 3  # jobs, nodes or projects in a sentence


class Ask(NamedTuple):
    """What a gang needs: so many GPUs (0: a CPU slot) on each of so many nodes of a kind."""

    gpus: int
    nodes: int = 1
    vllm: bool = False
    gpu_type: str | None = None
    gpu_memory_mb: int = 0
    gpu_name: str | None = None  # all of it
    labels: tuple[tuple[str, str], ...] = ()
    only: str | None = None  # the only node that will do
    revision: int = FIRST  # of the contracts, that the workers have to know

    @property
    def uses_gpus(self) -> bool:
        return self.gpus > 0

    @property
    def amount(self) -> int:
        """On each node."""
        return self.gpus or 1

    @property
    def is_picky(self) -> bool:
        """Whether not all GPUs will do."""
        return bool(self.gpu_type or self.gpu_memory_mb or self.gpu_name)


def own_engine(job: WaitingJob) -> Ask:
    """What the job needs with an engine of its own."""
    kind = job.gpu_type and job.gpu_type.casefold()
    gpus = job.gpus + job.rollout_gpus
    return Ask(gpus, job.nodes, job.vllm, kind, job.gpu_memory_mb, labels=job.labels, revision=job.revision)


def beside_shared_engine(job: WaitingJob, only: str | None) -> Ask:
    """What its trainer needs."""
    kind = job.gpu_type and job.gpu_type.casefold()
    return Ask(
        *(job.gpus, job.nodes, False, kind, job.gpu_memory_mb),
        labels=job.labels,
        only=only,
        revision=job.revision,
    )


def could_run(job: WaitingJob, node: NodeCapacity) -> bool:
    """Whether the empty node could hold the job, with its own engine unless the job must share one."""
    return any(_could_hold(one, node) for one in alike(alone(job), job.several, [node]))


def alone(job: WaitingJob) -> Ask:
    """What it asks for with nobody's engine there: its own beside it, unless the job must share one."""
    must_share = job.adapter is not None and job.adapter.required
    return beside_shared_engine(job, None) if must_share else own_engine(job)


def alike(ask: Ask, several: bool, nodes: Iterable[NodeCapacity]) -> tuple[Ask, ...]:
    """The ask for each type of GPU that would do, the most common one first; itself where there is one.

    Ranks that train together wait for the slowest, and the smallest memory is all that they can count on: a
    job with `several` GPUs gets GPUs of one name.
    """
    if not several:
        return (ask,)
    names: Counter[str] = Counter()
    parts: Counter[str] = Counter()  # of names, of GPUs that are not there yet
    for node in nodes:
        if node.gpu_info and _takes(ask, node):
            (parts if node.declared else names).update(
                gpu.name for gpu in node.gpu_info if _suits(ask, gpu, node)
            )
    names.update({part: n for part, n in parts.items() if not any(_is_part(part, name) for name in names)})
    if len(names) <= 1:
        return (ask,)
    return tuple(ask._replace(gpu_name=name) for name in sorted(names, key=lambda name: (-names[name], name)))


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """An ask, and the nodes that could hold the gang's parts if they were empty.

    An index has one of each, so they are compared by identity: never use one with another index.
    """

    ask: Ask
    gpus: int
    nodes: int
    amount: int  # on each node
    uses_gpus: bool
    possible: tuple[str, ...]  # none if there are too few for all parts
    able: frozenset[str]  # the same, for the question whether one is among them
    wanted: Mapping[str, frozenset[str]]  # the GPUs that will do, by node that has others, too
    plain: frozenset[str]  # the nodes of which any GPU will do

    def usable(self, node_id: str, room: Room, seconds: float | None = None) -> int:
        """What the gang could have there now."""
        return room.usable(node_id, self.uses_gpus, seconds, self.wanted.get(node_id))

    def free(self, node_id: str, room: Room) -> int:
        """What is free there of what will do, whoever it is kept for."""
        if (wanted := self.wanted.get(node_id)) is None:
            return room.free(node_id, self.uses_gpus)
        return sum(uuid in wanted for uuid in room.gpus[node_id])

    def promised(self, room: Room) -> Callable[[str], int]:
        """By node: what nobody has been promised of what will do, with what is about to be free."""
        if not self.wanted:
            return room.unpromised[self.uses_gpus].__getitem__
        return lambda node_id: room.promised(node_id, self.uses_gpus, self.wanted.get(node_id))


class Index:
    """The nodes by what is asked of them. Nothing here changes while a plan is made."""

    def __init__(self, nodes: Sequence[NodeCapacity]) -> None:
        self.nodes = {node.id: node for node in nodes}
        self.request = cache(self._request)
        self.requests = cache(self._requests)
        self.alike = cache(self._alike)

    def _request(self, ask: Ask) -> Request:
        named = self.nodes.values() if ask.only is None else filter(None, [self.nodes.get(ask.only)])
        found = [node.id for node in named if _could_hold(ask, node)]
        if len(found) < ask.nodes:
            found = []
        some = {node_id: self.wanted(ask, node_id) for node_id in found} if ask.is_picky else {}
        wanted = {node_id: gpus for node_id, gpus in some.items() if gpus is not None}
        able = frozenset(found)
        plain = able - wanted.keys()
        return Request(
            *(ask, ask.gpus, ask.nodes, ask.amount, ask.uses_gpus), tuple(found), able, wanted, plain
        )

    def _requests(self, ask: Ask, several: bool) -> tuple[Request, ...]:
        """One for each type of GPU that would do, as far as nodes could hold it."""
        return tuple(one for ask in self.alike(ask, several) if (one := self.request(ask)).possible)

    def _alike(self, ask: Ask, several: bool) -> tuple[Ask, ...]:
        return alike(ask, several, self.nodes.values())

    def wanted(self, ask: Ask, node_id: str) -> frozenset[str] | None:
        """The node's GPUs that will do; None: all."""
        if not ask.is_picky:
            return None
        node = self.nodes[node_id]
        matching = _matching(ask, node)
        return None if len(matching) == node.gpus else matching


def best(
    request: Request,
    room: Room,
    avoid: frozenset[str] = NOBODY,
    seconds: float | None = None,
    among: Collection[str] = (),
) -> tuple[str, ...] | None:
    """The nodes that fit most tightly (`among` these, if some are named); those to avoid come last.

    So large gaps stay large. CPU jobs share a node's cores, so they are spread.
    """
    gpus, anywhere = request.uses_gpus, not among and request.ask.only is None
    tight = 1 if gpus else -1
    one_by_one: Set[str]
    if among:
        one_by_one = set(among)
    elif not anywhere:
        one_by_one = request.able
    else:
        one_by_one = room.reserved.keys() | request.wanted.keys() if gpus else NOBODY
    fitting = [
        (node_id in avoid, tight * usable, node_id)
        for node_id in one_by_one
        if node_id in request.able and (usable := request.usable(node_id, room, seconds)) >= request.amount
    ]
    if anywhere:
        welcome = 0
        for free, there in room.by_free(gpus, request.amount):
            some = (there & request.plain) - one_by_one
            first = nsmallest(request.nodes, some - avoid)
            fitting += [(False, tight * free, node_id) for node_id in first]
            fitting += [(True, tight * free, node_id) for node_id in some & avoid]
            welcome += len(first)
            if welcome >= request.nodes:
                break  # the others fit less tightly
    if len(fitting) < request.nodes:
        return None
    chosen = [min(fitting)] if request.nodes == 1 else sorted(fitting)[: request.nodes]
    return tuple(node_id for *_, node_id in chosen)


def _could_hold(ask: Ask, node: NodeCapacity) -> bool:
    if not _takes(ask, node):
        return False
    if not ask.uses_gpus:
        return node.cpu_slots > 0
    return len(_matching(ask, node)) >= ask.gpus if ask.is_picky else node.gpus >= ask.gpus


def _matching(ask: Ask, node: NodeCapacity) -> frozenset[str]:
    if not ask.is_picky:
        return NOBODY
    return frozenset(gpu.uuid for gpu in node.gpu_info if _suits(ask, gpu, node))


def _suits(ask: Ask, gpu: GpuInfo, node: NodeCapacity) -> bool:
    if (ask.gpu_type or "") not in gpu.name.casefold() or gpu.memory_mb < ask.gpu_memory_mb:
        return False
    if ask.gpu_name is None or gpu.name == ask.gpu_name:
        return True
    return node.declared and _is_part(gpu.name, ask.gpu_name)


def _is_part(part: str, name: str) -> bool:
    return part.casefold() in name.casefold()


def never(ask: Ask, nodes: Sequence[NodeCapacity]) -> str:
    """Why the nodes could not hold the gang, even if all were empty."""
    if not nodes:
        return "waiting for a node: none is connected"
    if old := [node.id for node in nodes if node.revision < ask.revision]:
        anyhow = ask._replace(revision=FIRST)
        if sum(_could_hold(anyhow, node) for node in nodes) >= ask.nodes:
            said = f"{', '.join(old[:NAMED])}{' and others' if len(old) > NAMED else ''}"
            return f"waiting for workers of a newer version: those of {said} don't know what the job asks for"
    able = [node for node in nodes if _takes(ask, node)]
    if not able:
        return f"waiting for a node with {_kind(ask)}: no connected node has it"
    having = sum(_could_hold(ask, node) for node in able)
    if not ask.uses_gpus and ask.nodes == 1:
        return "waiting for a node with CPU slots: no connected node has any"
    if not ask.uses_gpus:
        return f"waiting for {ask.nodes} nodes with a CPU slot each (resources.nodes): {_are(having)}"
    most = max(len(_matching(ask, node)) if ask.is_picky else node.gpus for node in able)
    wanted = "a GPU" if ask.gpus == 1 else f"{ask.gpus} GPUs"
    if ask.is_picky:
        wanted += f" ({_kind(ask._replace(vllm=False))})"
    if having >= ask.nodes:  # of different types
        on = "on one node" if ask.nodes == 1 else f"on each of {ask.nodes} nodes"
        return f"waiting for {wanted} {on}, all of one type: the connected nodes have several types"
    if most >= ask.gpus:
        return f"waiting for {ask.nodes} nodes with {wanted} each (resources.nodes): {_are(having)}"
    said = f"waiting for a node with {wanted}: the largest connected one has {most}"
    ill = [f"{node.id}: {why}" for node in able for why in node.unhealthy]
    return f"{said} (left out: {', '.join(ill)})" if ill else said


def _are(count: int) -> str:
    return f"{count} {'is' if count == 1 else 'are'} connected"


def _takes(ask: Ask, node: NodeCapacity) -> bool:
    if node.revision < ask.revision or (ask.vllm and VLLM not in node.engines):
        return False
    return not ask.labels or node.labels.issuperset(ask.labels)


def _kind(ask: Ask) -> str:
    """What is asked of a node and its GPUs, beside their number."""
    asked = [f"{name}={value}" for name, value in ask.labels]
    if ask.gpu_type is not None:
        asked.append(f"GPUs called {ask.gpu_type}")
    if ask.gpu_memory_mb:
        asked.append(f"{ask.gpu_memory_mb / 1024:.4g} GiB a GPU")
    return ", ".join([*asked, *(["vLLM"] if ask.vllm else [])])
