"""The main job's seconds a step, from end to end, on an embedded service of its own.

Jobs go through the REST API as `make demo` sends them, without evaluations and checkpoints in between, and
with weights that hardly move, so that all steps are as much work. A step's time is that from the arrival of
the numbers of the step before to its own: sampling ahead counts for what it saves. The first step warms up.
Jobs with and without staleness take turns, once in either order; medians over all steps.
"""

import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from threading import Timer

from rollouts_models import Models, job
from rollouts_service import told
from rollouts_table import Table, ratio

from powermean.cli.embedded import Embedded
from powermean.client import Client
from powermean.contracts.job import JobSpec
from powermean.home import Home

STALENESS = (0, 1)
JOB_S = 1800.0  # for one job, its engine's start included
PARTS = ("generate", "update", "publish")


def job_spec(name: str, engine: str, staleness: int, steps: int) -> JobSpec:
    """The job on an engine, without evaluations and checkpoints between its steps."""
    spec = job(name, engine=engine, max_staleness=staleness).model_dump(mode="json")
    spec["name"] = f"{name}-{engine}-staleness-{staleness}"
    spec["training"]["steps"] = steps
    spec["evaluation"] = {"every": 0, "problems": 8}
    spec["checkpoints"]["every"] = steps
    spec["optimizer"]["learning_rate"] = 1e-9  # a policy that gets surer leaves ever less to train on
    return JobSpec.model_validate(spec)


@contextmanager
def service(models: Models) -> Iterator[Client]:
    """An embedded service in a folder of its own; all of it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="powermean-benchmark-home-") as folder:
        os.environ["POWERMEAN_MODEL_ROOTS"] = str(models.scratch)
        embedded = Embedded(Home(Path(folder)), next_port=True, tell=told)
        try:
            embedded.start()
            with Client(embedded.url, embedded.home.admin_key.read_text().strip()) as client:
                yield client
        finally:
            embedded.stop()


class JobFailedError(Exception):
    """The job did not finish; the message says why."""


@dataclass(frozen=True)
class Ran:
    """A job that finished: when the numbers of each step came, and the mean seconds of a step's parts."""

    came: tuple[float, ...]  # s
    parts: Mapping[str, float]

    @property
    def between(self) -> list[float]:
        return [later - earlier for earlier, later in pairwise(self.came)]


def run(client: Client, spec: JobSpec) -> Ran:
    """Raises JobFailedError."""
    sent = client.create_job(spec)
    came: dict[int, float] = {}
    late = Timer(JOB_S, lambda: client.cancel_job(sent.id))
    late.daemon = True
    late.start()
    told(f"{spec.name}: submitted")
    try:
        for event in client.events(sent.id):
            for row in event.data["rows"] if event.kind == "metrics" else ():  # type: ignore[attr-defined]
                if row["name"] == "time/step" and row["step"] not in came:
                    came[row["step"]] = time.monotonic()
                    told(f"{spec.name}: step {row['step']}, {row['value']:.1f} s")
    finally:
        late.cancel()
    end = client.get_job(sent.id)
    if end.state != "finished":
        why = end.error.message if end.error else f"not over within {JOB_S:.0f} s"
        raise JobFailedError(f"{spec.name} {end.state}: {why}")
    past = client.metrics(sent.id, [f"time/{part}" for part in PARTS])
    means = {
        one.name.removeprefix("time/"): fmean(
            point.value for point in one.points if point.value is not None and point.step > 1
        )
        for one in past.series
    }
    return Ran(tuple(came[step] for step in sorted(came)), means)


def steps_table(models: Models, name: str, engines: Sequence[str], steps: int) -> Table:
    """Engines and staleness."""
    table = Table(
        f"The main job on {name}, {steps} steps of 8 x 8 completions",
        ("engine", "max_staleness", "s a step", "/ staleness 0", *(f"{part} s" for part in PARTS)),
    )
    models.folder(name)  # made now, under the root that the service is told of
    with service(models) as client:
        for engine in engines:
            found: dict[int, list[Ran]] = defaultdict(list)
            for staleness in (*STALENESS, *reversed(STALENESS)):
                try:
                    found[staleness].append(run(client, job_spec(name, engine, staleness, steps)))
                except JobFailedError as why:
                    table.notes.append(str(why))
            for staleness in sorted(found):
                table.add(engine, str(staleness), *cells(found, staleness))
    return table


def cells(found: Mapping[int, Sequence[Ran]], staleness: int) -> tuple[str, ...]:
    """Median seconds of a step, the ratio to staleness 0, and the parts of a step."""
    jobs = found[staleness]
    base = a_step(found[0]) if found.get(0) else 0.0
    parts = (fmean(one.parts.get(part, 0.0) for one in jobs) for part in PARTS)
    return (f"{a_step(jobs):.2f}", ratio(a_step(jobs), base), *(f"{part:.2f}" for part in parts))


def a_step(jobs: Sequence[Ran]) -> float:
    """Median seconds from a step's numbers to the next one's."""
    return median(seconds for one in jobs for seconds in one.between)
