"""Seconds of a publish: by way (shared memory, artefact store, ...), by engine and by the size of the model.

Written: the trainer's part, hashes included. Taken: from the request to the answer, the new weights in use.
Rounds go over the ways in an order that turns; medians over rounds.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rollouts_models import Models
from rollouts_service import JOB, NotStarted, Service, serving, told
from rollouts_table import Table, ratio
from rollouts_tokens import turned
from torch import nn
from transformers import AutoModelForCausalLM

from powermean.contracts.rollout import EngineState, PublishRequest
from trainer.publish import WeightWriter

TIMEOUT_S = 300.0
BASE = "store"  # the way that ratios are to, because it works everywhere
NOT_OFFERED = "not offered"


@dataclass(frozen=True)
class Sent:
    """One publish."""

    written: float  # s
    taken: float  # s
    size: int  # bytes


Publish = Callable[[int], Sent]  # of a version


@dataclass(frozen=True)
class Way:
    """A way for weights. `open` gives what publishes a version, for as long as its block lasts."""

    name: str
    offered: Callable[[EngineState], bool]
    open: Callable[[Service, nn.Module], AbstractContextManager[Publish]]


def by_files(method: str) -> Way:
    """Whole weights as safetensors files."""

    @contextmanager
    def opened(service: Service, model: nn.Module) -> Iterator[Publish]:
        writer = WeightWriter(
            job_id=JOB,
            attempt=1,
            method=method,  # type: ignore[arg-type]
            dtype=torch.float32,
            store=service.store,
            scratch=service.folder,
        )

        def publish(version: int) -> Sent:
            try:
                return timed(service, lambda: writer.write(model, version))
            finally:
                writer.discard(version)

        yield publish

    return Way(method, lambda state: method in state.methods, opened)


def timed(service: Service, write: Callable[[], PublishRequest]) -> Sent:
    """Write and publish."""
    start = time.perf_counter()
    request = write()
    written = time.perf_counter()
    service.client.publish(request, TIMEOUT_S)
    return Sent(written - start, time.perf_counter() - written, sum(file.size for file in request.files))


WAYS = (by_files("store"), by_files("shm"))


def publish_table(models: Models, names: Sequence[str], engines: Sequence[str], rounds: int) -> Table:
    """All ways into all engines, of all models."""
    table = Table(
        "A publish of float32 weights, from the trainer's memory until the engine samples with them",
        ("model", "engine", "way", "MB", "written s", "taken s", "s", f"/ {BASE}"),
        left=3,
    )
    for name in names:
        for engine in engines:
            add_rows(table, name, engine, models.folder(name), rounds)
    return table


def add_rows(table: Table, name: str, engine: str, folder: Path, rounds: int) -> None:
    """The rows of one model and engine."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    try:
        with serving(engine, folder) as service:
            found = measure(service, model, WAYS, rounds)
    except NotStarted as why:
        table.notes.append(f"{engine} engine on {name}: {why}")
        return
    for way in WAYS:
        table.add(name, engine, way.name, *cells(found, way.name))


def measure(service: Service, model: nn.Module, ways: Sequence[Way], rounds: int) -> dict[str, list[Sent]]:
    """Rounds over the ways that the engine offers; one more round before them warms up."""
    state = service.client.health()
    found: dict[str, list[Sent]] = defaultdict(list)
    version = state.version
    for number in range(rounds + 1):
        for way in turned([way for way in ways if way.offered(state)], number):
            version += 1
            with way.open(service, model) as publish:
                sent = publish(version)
            told(f"publish to {service.engine}: {way.name} {sent.written:.2f} + {sent.taken:.2f} s")
            if number:
                found[way.name].append(sent)
    return found


def cells(found: dict[str, list[Sent]], way: str) -> tuple[str, ...]:
    """Medians of a way, and the ratio to the base."""
    if not found.get(way):
        return ("", "", "", NOT_OFFERED, "")
    rounds = found[way]
    return (
        f"{rounds[0].size / 1e6:.1f}",
        f"{statistics.median(one.written for one in rounds):.3f}",
        f"{statistics.median(one.taken for one in rounds):.3f}",
        f"{whole(rounds):.3f}",
        ratio(whole(rounds), whole(found[BASE])) if found.get(BASE) else "-",
    )


def whole(rounds: Sequence[Sent]) -> float:
    """Seconds of a publish, the median."""
    return statistics.median(one.written + one.taken for one in rounds)
