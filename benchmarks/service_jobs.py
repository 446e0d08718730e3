"""Sections of benchmarks/service.py about jobs: submitting, cancelling, a long queue, the planner."""

import secrets
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from plan_times import PLAN_MS, figures
from service_rig import Connection, Figure, Service, Timings, at_once, bare
from sqlalchemy import insert, select

from server.db.models import Job
from server.db.session import Database
from server.jobs.demand import AdapterNeed
from server.placement.state import ClusterState, NodeCapacity, SharedEngine, WaitingJob

P99_MS = 150.0
LONGEST_MS = 1000.0
A_SECOND = 300.0
PACE = 150.0  # submits a second: half of A_SECOND
NODES = 8


def spec(name: str) -> dict[str, Any]:
    """A LoRA job, whose demand takes most to find out."""
    return {
        "name": name,
        "model": {"name": "tiny/model", "lora": {"rank": 8}},
        "data": {"kind": "arithmetic"},
        "training": {"steps": 20},
    }


def _clients(service: Service, tiny: bool) -> list[Connection]:
    return [service.person() for _ in range(5 if tiny else 50)]


def _submitted(
    clients: list[Connection], each: int, a_second: float | None = None
) -> tuple[Timings, list[list[str]]]:
    """Every client submits `each` jobs; also their ids, by client."""
    ids: list[list[str]] = [[] for _ in clients]

    def submitter(number: int, post: Connection) -> Callable[[int], object]:
        def submit(job: int) -> None:
            answer = post(
                "POST", "/v1/jobs", spec(f"job {number}-{job}"), {"Idempotency-Key": secrets.token_hex(8)}
            )
            ids[number].append(answer["id"])

        return submit

    timings = at_once([submitter(*pair) for pair in enumerate(clients)], each, a_second)
    return timings, ids


def submit(service: Service, tiny: bool) -> Iterator[Figure]:
    """50 clients at once, each submitting one job after another, and then at a pace.

    A plain FastAPI service is asked the same before and after, for comparison.
    """
    each = 2 if tiny else 40

    def paced(to: Service) -> Timings:
        timings, _ids = _submitted(_clients(to, tiny), each // 2, PACE)
        return timings

    with bare(service) as plain:
        before, before_paced = _submits(plain, each, tiny), paced(plain)
        with service.nodes(NODES, cpu_slots=0):
            cpu = service.cpu_s()
            ours = _submits(service, each, tiny)
            cpu = service.cpu_s() - cpu
            ours_paced = paced(service)
        after, after_paced = _submits(plain, each, tiny), paced(plain)
    yield from ours.figures("submit", P99_MS, A_SECOND, LONGEST_MS)
    yield Figure("submit: CPU of the server", 1e3 * cpu / (ours.requests * (each + 1) / each), "ms each")
    yield from ours_paced.figures(f"submit, {PACE:g} a second", P99_MS, 0.98 * PACE, LONGEST_MS)
    rate = statistics.mean((before.a_second, after.a_second))
    yield Figure("a plain service's submits: rate", rate, "1/s")
    yield Figure("a plain service's submits: p99", _mean_p99(before, after), "ms")
    slower = _mean_p99(before_paced, after_paced)
    yield Figure(f"a plain service's submits, {PACE:g} a second: p99", slower, "ms")
    yield Figure("submit: rate against the plain one's", ours.a_second / rate, "x")
    yield Figure("submit: p99 against the plain one's", ours.p99_ms / _mean_p99(before, after), "x")


def _mean_p99(*runs: Timings) -> float:
    return statistics.mean(run.p99_ms for run in runs)


def _submits(service: Service, each: int, tiny: bool) -> Timings:
    """As fast as the server answers, after one submit of each client."""
    clients = _clients(service, tiny)
    _submitted(clients, 1)
    timings, _ids = _submitted(clients, each)
    return timings


def cancel(service: Service, tiny: bool) -> Iterator[Figure]:
    """50 clients at once, each cancelling the jobs it submitted."""
    clients = _clients(service, tiny)
    with service.nodes(NODES, cpu_slots=0):
        before = service.cpu_s()
        submits, ids = _submitted(clients, 2 if tiny else 20)
        submit_ms = 1e3 * (service.cpu_s() - before) / submits.requests

        def canceller(post: Connection, own: list[str]) -> Callable[[int], object]:
            return lambda number: post("POST", f"/v1/jobs/{own[number]}/cancel")

        # a busy server may have refused some of them
        before = service.cpu_s()
        timings = at_once([canceller(*pair) for pair in zip(clients, ids, strict=True)], min(map(len, ids)))
        cpu = service.cpu_s() - before
    yield from timings.figures("cancel", P99_MS, A_SECOND, LONGEST_MS)
    yield Figure("cancel: CPU of the server", 1e3 * cpu / timings.requests, "ms each")
    yield Figure("cancel: the same of the submits before", submit_ms, "ms each")


def queued(service: Service, tiny: bool) -> Iterator[Figure]:
    """Submits while 10,000 jobs are queued, and how soon the scheduler places a job among them."""
    person = service.person()
    with service.nodes(NODES, cpu_slots=0):
        _fill_queue(service, person("POST", "/v1/jobs", spec("first"))["id"], 100 if tiny else 10_000)
        before = service.cpu_s()
        timings, _ids = _submitted(_clients(service, tiny), 2 if tiny else 40)
        cpu = service.cpu_s() - before
        yield from timings.figures("submit, 10,000 queued", P99_MS, A_SECOND, LONGEST_MS)
        yield Figure("submit, 10,000 queued: CPU of the server", 1e3 * cpu / timings.requests, "ms each")
    with service.nodes(1, cpu_slots=1):
        began = time.perf_counter()
        while not person("GET", "/v1/jobs?state=starting")["items"]:
            if time.perf_counter() - began > 60:
                raise SystemExit("the scheduler started nothing within 60 s")
            time.sleep(0.01)
        yield Figure("a slot is given out after", 1e3 * (time.perf_counter() - began), "ms", 5000.0)


def _fill_queue(service: Service, job_id: str, count: int) -> None:
    """Copies of a job, as if each had been submitted and checked."""
    database = Database(service.database_url)
    table = Job.__table__
    with database.write() as session:
        row = dict(session.execute(select(table).where(table.c.id == job_id)).mappings().one())
        copies = [
            row | {"id": f"{job_id[:-6]}{number:06}", "state": "queued", "phase": "waiting for the scheduler"}
            for number in range(count)
        ]
        session.execute(insert(table), copies)
    database.close()


def planner(tiny: bool) -> Iterator[Figure]:
    """Plans for 100 nodes and 1,000 waiting jobs, by kind of job; plan_times says what each figure means."""
    nodes, jobs, rounds = (5, 20, 3) if tiny else (100, 1000, 400)
    for kind, state in _states(nodes, jobs).items():
        yield from figures(kind, [state], rounds, PLAN_MS)


def _states(nodes: int, jobs: int) -> dict[str, ClusterState]:
    """A busy cluster with a line of one kind of jobs each; half of the nodes have room."""
    machines = [
        NodeCapacity(
            f"node-{number:03}",
            cpu_slots=8,
            gpus=8,
            free_cpu_slots=number % 2 * 4,
            free_gpus=tuple(f"{number}-{gpu}" for gpu in range(number % 2 * 4)),
            engines=("transformers", "vllm"),
        )
        for number in range(nodes)
    ]
    engines = [
        SharedEngine(
            f"engine-{number:03}",
            f"engine-{number:03}",
            model=f"model-{number % 10}",
            dtype="bfloat16",
            state="ready",
            max_adapters=8,
            max_lora_rank=(8, 16, 32)[number % 3],
            max_tokens=(2080, 4096, None)[number % 7 % 3],
            node=machines[number].id,
            reach=machines[number].id if number % 3 else None,
            jobs=frozenset(f"other-{number}-{one}" for one in range(number % 8)),
        )
        for number in range(nodes)
    ]

    def adapter(number: int) -> AdapterNeed:
        model = f"model-{number % 10}"
        return AdapterNeed(model, "bfloat16", 8, 2048 + number % 64, required=number % 2 == 0)

    lines = {
        "CPU jobs": [WaitingJob(f"job-{number:04}", 0) for number in range(jobs)],
        "GPU jobs": [WaitingJob(f"job-{number:04}", 1 + number % 8) for number in range(jobs)],
        "LoRA jobs": [WaitingJob(f"job-{number:04}", 1, adapter=adapter(number)) for number in range(jobs)],
    }
    return {kind: ClusterState(machines, line, engines) for kind, line in lines.items()}


SECTIONS = {"submit": submit, "cancel": cancel, "queued": queued}
ALONE = {"planner": planner}
