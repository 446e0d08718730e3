"""Seconds and memory of a publish: by way (in place, shared memory, artefact store, ...), engine and model.

Written: the trainer's part, hashes included. Taken: from the request to the answer, the new weights in use.
CPU: of this process, which plays the trainer, and the service. Memory: of both, after the publish. Rounds go
over the ways in an order that turns; medians over rounds. In place has a service of its own, because the next
way would first have to give its engine memory for a copy.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from copy import deepcopy
from dataclasses import dataclass
from statistics import median
from typing import Literal

import torch
from rollouts_models import Models
from rollouts_service import JOB, NotStartedError, Service, serving, told
from rollouts_table import Table, ratio
from rollouts_tokens import turned
from torch import nn
from transformers import AutoModelForCausalLM

from powermean.contracts.models import LoraSpec
from powermean.contracts.rollout import EngineState, PublishRequest
from trainer.learner.lora import attach
from trainer.weights.channel import ChannelWriter, connector
from trainer.weights.files import Publisher, WeightWriter
from trainer.weights.in_place import InPlaceWriter

TIMEOUT_S = 300.0
BASE = "store"  # the way that ratios are to, because it works everywhere
NOT_OFFERED = "not offered"


@dataclass(frozen=True)
class Sent:
    """One publish."""

    written: float  # s
    taken: float  # s
    size: int  # bytes
    cpu: float  # s
    memory: int  # bytes


Found = dict[str, list[Sent]]  # by way


@dataclass(frozen=True)
class Way:
    """A way for weights. `sender` gives the trainer's side of it."""

    name: str
    offered: Callable[[EngineState], bool]
    sender: Callable[[Service], Publisher]


def by_files(method: Literal["store", "shm"], *, adapter: bool = False) -> Way:
    """Safetensors files, of the whole weights or of an adapter alone."""

    def sender(service: Service) -> Publisher:
        return WeightWriter(
            job_id=JOB,
            attempt=1,
            method=method,
            dtype=torch.float32,
            store=service.store,
            scratch=service.folder,
            adapter_alone=adapter,
        )

    name = f"{method}, adapter" if adapter else method
    return Way(
        name, lambda state: method in state.methods and (state.adapters is not None) == adapter, sender
    )


def by_gloo() -> Way:
    """Straight into the memory of vLLM's worker."""

    def sender(_service: Service) -> Publisher:
        return ChannelWriter(JOB, 1, "gloo", torch.float32, connector("gloo", lambda _target: "127.0.0.1"))

    return Way("gloo", lambda state: "gloo" in state.methods, sender)


def in_place() -> Way:
    """Not sent at all: the engine's weights are this process's own."""
    return Way("in_place", lambda state: "in_place" in state.methods, lambda _service: InPlaceWriter(JOB, 1))


WAYS = (by_files("store"), by_files("shm"), by_gloo())
IN_PLACE = (in_place(),)
ADAPTER_WAYS = (by_files("store", adapter=True), by_files("shm", adapter=True))
ADAPTER = LoraSpec()  # of all linear layers, rank 16
ADAPTER_FLAGS = ("--max-adapters", "1", "--max-lora-rank", str(ADAPTER.rank))


def publish_table(models: Models, names: Sequence[str], engines: Sequence[str], rounds: int) -> Table:
    """All ways into all engines, of all models; an adapter of the first one."""
    table = Table(
        "A publish of float32 weights, from the trainer's memory until the engine samples with them",
        ("model", "engine", "way", "MB", "written s", "taken s", "s", f"/ {BASE}", "CPU s", "memory MB"),
        left=3,
    )
    for name in names:
        folder = models.folder(name)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for engine in engines:
            found = sent(table, serving(engine, folder), model, WAYS, rounds)
            add_rows(table, (name, engine), WAYS, found, BASE)
            if engine == "transformers":
                found |= sent(table, serving(engine, folder), model, IN_PLACE, rounds)
                add_rows(table, (name, engine), IN_PLACE, found, BASE)
            if name != names[0]:
                continue
            more: Found = {}
            if engine == "vllm":
                adapted = attach(deepcopy(model), ADAPTER, name)
                more = sent(table, serving(engine, folder, *ADAPTER_FLAGS), adapted, ADAPTER_WAYS, rounds)
            add_rows(table, (name, engine), ADAPTER_WAYS, found | more, BASE)
    return table


def sent(
    table: Table,
    started: AbstractContextManager[Service],
    model: nn.Module,
    ways: Sequence[Way],
    rounds: int,
) -> Found:
    """The rounds of one service; a note in the table where it did not start."""
    try:
        with started as service:
            return measure(service, model, ways, rounds)
    except NotStartedError as why:
        table.notes.append(str(why))
        return {}


def add_rows(table: Table, place: tuple[str, str], ways: Sequence[Way], found: Found, base: str) -> None:
    """A row for each way."""
    for way in ways:
        table.add(*place, way.name, *cells(found, way.name, base))


def measure(service: Service, model: nn.Module, ways: Sequence[Way], rounds: int) -> Found:
    """Rounds over the ways that the engine offers; one more round before them warms up."""
    state = service.client.health()
    version = state.version
    found: Found = defaultdict(list)
    with ExitStack() as stack:
        offered = [way for way in ways if way.offered(state)]
        senders = {way.name: stack.enter_context(closing(way.sender(service))) for way in offered}
        for number in range(rounds + 1):
            for name, sender in turned(list(senders.items()), number):
                version += 1
                one = timed(service, sender, model, version)
                told(f"publish to {service.engine}: {name} {one.written:.2f} + {one.taken:.2f} s")
                if number:
                    found[name].append(one)
    return found


def timed(service: Service, sender: Publisher, model: nn.Module, version: int) -> Sent:
    """Write and publish one version."""
    try:
        cpu, start = service.cpu_seconds(), time.perf_counter()
        request = sender.write(model, version)
        written = time.perf_counter()
        sender.publish(service.client, request, TIMEOUT_S)
        taken = time.perf_counter() - written
        cpu = service.cpu_seconds() - cpu
    finally:
        sender.discard(version)
    for weight in model.state_dict().values():
        weight.any()  # memory counts once somebody has looked at it
    return Sent(written - start, taken, size(request), cpu, service.memory())


def size(request: PublishRequest) -> int:
    """Bytes of a publish."""
    tensors = sum(math.prod(one.shape) * (4 if one.dtype == "float32" else 2) for one in request.tensors)
    return tensors + sum(file.size for file in request.files)


def cells(found: Found, way: str, base: str) -> tuple[str, ...]:
    """Medians of a way, and the ratio to the base."""
    if not found.get(way):
        return ("", "", "", NOT_OFFERED, "", "", "")
    rounds = found[way]
    return (
        f"{rounds[0].size / 1e6:.1f}",
        f"{median(one.written for one in rounds):.3f}",
        f"{median(one.taken for one in rounds):.3f}",
        f"{whole(rounds):.3f}",
        ratio(whole(rounds), whole(found[base])) if found.get(base) else "-",
        f"{median(one.cpu for one in rounds):.2f}",
        f"{median(one.memory for one in rounds) / 1e6:.0f}",
    )


def whole(rounds: Sequence[Sent]) -> float:
    """Seconds of a publish, the median."""
    return median(one.written + one.taken for one in rounds)
