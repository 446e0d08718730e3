"""Sections of benchmarks/service.py about numbers: ingest, history, growth on disk, the list of jobs."""

import gzip
import http.client
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service_jobs import spec
from service_rig import ADMIN_KEY, Connection, Figure, Service, at_once
from sqlalchemy import func, insert, make_url, select, text

from powermean.contracts.metrics import METRICS
from powermean.home import Home
from powermean.tokens import ensure_key_pair, sign_attempt_token
from server.db.models import Attempt, Job
from server.db.session import Database

ROWS_A_SECOND = 20_000.0
PACED_ROWS = 20_000.0  # a second: what 130 jobs send, with a step a second each
INGEST_P99_MS = 100.0
HISTORY_MS = 600.0
HISTORY_KB = 500.0
LONG_HISTORY_MS = 1000.0
STEP_KB = 60.0
LIST_MS = 150.0
UPDATES = 4  # optimiser steps a step: a report has 140 rows
OTHERS = 50
_chance = random.Random(0)


@dataclass(frozen=True)
class Run:
    """A running job and how its attempt posts."""

    job_id: str
    post: Connection

    def report(self, what: str, body: bytes) -> None:
        self.post("POST", f"/v1/attempts/{self.job_id}.1/{what}", body)


def runs(service: Service, count: int) -> list[Run]:
    """Jobs with a claimed first attempt each: copies of one that was submitted."""
    first = service.person()("POST", "/v1/jobs", spec("first") | {"training": {"steps": 1_000_000}})["id"]
    database = Database(service.database_url)
    with database.write() as session:
        row = dict(session.execute(select(Job.__table__).where(Job.id == first)).mappings().one())
        ids = [f"{first[:-6]}{number:06}" for number in range(count)]
        running = {"state": "running", "attempt": 1, "phase": "training"}
        session.execute(insert(Job.__table__), [row | running | {"id": job_id} for job_id in ids])
        claimed = {"number": 1, "state": "running", "first_step": 0, "created_at": row["created_at"]}
        session.execute(
            insert(Attempt), [claimed | {"id": f"{job_id}.1", "job_id": job_id} for job_id in ids]
        )
    database.close()
    private = ensure_key_pair(Home(service.folder).secrets).private_pem
    return [Run(job_id, service.attempt(sign_attempt_token(private, job_id, 1))) for job_id in ids]


def report(step: int) -> bytes:
    """A step's metrics, as the trainer posts them."""
    rows = []
    for name, info in METRICS.items():
        for update in range(UPDATES) if info.level == "update" else (-1,):
            rows.append({"step": step, "update": update, "name": name, "value": _chance.gauss(1, 0.3)})
    return json.dumps({"rows": rows}).encode()


def ingest(service: Service, tiny: bool) -> Iterator[Figure]:
    """16 jobs at once, each reporting step after step: as fast as they are answered, then at a pace."""
    each = 3 if tiny else 100
    own = runs(service, 2 if tiny else 16)
    bodies = [report(step) for step in range(1, 2 * each + 1)]
    rows = len(json.loads(bodies[0])["rows"])

    def posts(first: int) -> list[Callable[[int], object]]:
        return [lambda number, run=run: run.report("metrics", bodies[first + number]) for run in own]

    before = service.cpu_s()
    timings = at_once(posts(0), each)
    used = service.cpu_s() - before
    yield Figure("rows", rows * timings.a_second, "1/s", ROWS_A_SECOND, at_least=True)
    yield Figure("report: CPU of the server", 1e3 * used / timings.requests, "ms each")
    yield from timings.figures("report", INGEST_P99_MS, None)
    pace = PACED_ROWS / rows
    paced = at_once(posts(each), each, pace)
    yield from paced.figures(f"report, {PACED_ROWS:,.0f} rows a second", INGEST_P99_MS, 0.98 * pace)


def history(service: Service, tiny: bool) -> Iterator[Figure]:
    """52 series as a job's page asks for them, alone in the database and beside 50 runs as long."""
    steps, long = (20, 100) if tiny else (2000, 100_000)
    first, longest, *others = runs(service, 2 + (2 if tiny else OTHERS))
    _train(first, steps)
    _gather_statistics(service.database_url)
    names = list(METRICS)[:52]
    yield from _history_figures("alone", service, first, names)
    for run in others:
        _train(run, steps // 40)
    _gather_statistics(service.database_url)
    yield from _history_figures(f"beside {len(others)} runs", service, first, names)
    few = ["reward", "entropy", "loss", "grad_norm", "p/mean", "ess/mean"]
    more = [name for name in METRICS if name not in few][:6]
    for start in range(0, long, 1000):
        rows = [
            {"step": step, "name": name, "value": _chance.random()}
            for step in range(start + 1, start + 1001)
            for name in (*few, *more)
        ]
        longest.report("metrics", json.dumps({"rows": rows}).encode())
    _gather_statistics(service.database_url)
    took, _size = _history(service, longest, few)
    yield Figure(f"6 series of {long:,} steps", 1e3 * took, "ms", LONG_HISTORY_MS)


def _gather_statistics(url: str) -> None:
    """As Postgres does by itself a minute after so many new rows."""
    database = Database(url)
    if database.engine.dialect.name == "postgresql":
        with database.write() as session:
            session.execute(text("ANALYZE"))
    database.close()


def _train(run: Run, steps: int) -> None:
    for start in range(0, steps, 100):
        rows = []
        for step in range(start + 1, min(start + 100, steps) + 1):
            rows += json.loads(report(step))["rows"]
        run.report("metrics", json.dumps({"rows": rows}).encode())


def _history_figures(where: str, service: Service, run: Run, names: list[str]) -> Iterator[Figure]:
    took, size = min(_history(service, run, names) for _ in range(3))
    yield Figure(f"52 series, {where}", 1e3 * took, "ms", HISTORY_MS)
    yield Figure(f"52 series, {where}: sent", size / 1e3, "kB", HISTORY_KB)


def _history(service: Service, run: Run, names: list[str]) -> tuple[float, int]:
    """Seconds and bytes on the wire of the request that a job's page makes."""
    query = "&".join([f"name={name}" for name in names] + ["max_points=600"])
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=120)
    began = time.perf_counter()
    headers = {"Authorization": f"Bearer {ADMIN_KEY}", "Accept-Encoding": "gzip"}
    connection.request("GET", f"/v1/jobs/{run.job_id}/metrics?{query}", headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    took = time.perf_counter() - began
    assert answer.status == 200, body[:300]
    unpacked = gzip.decompress(body) if answer.headers["Content-Encoding"] == "gzip" else body
    assert all(one["points"] for one in json.loads(unpacked)["series"])
    return took, len(body)


def growth(service: Service, tiny: bool) -> Iterator[Figure]:
    """What a step with 128 trajectories adds to the database, and how fast its numbers are found."""
    (run,) = runs(service, 1)
    steps = 4 if tiny else 200
    before = _size(service.database_url)
    for step in range(1, steps + 1):
        run.report("metrics", report(step))
        run.report("trajectories", json.dumps({"step": step, "rows": _trajectories()}).encode())
    added = (_size(service.database_url) - before) / steps
    yield Figure("a step of 128 trajectories", added / 1e3, "kB", STEP_KB)
    person = service.person()
    for what, query in (
        ("a step sorted by p", "trajectories?sort=p"),
        ("a step sorted by reward", "trajectories?sort=-reward"),
        ("a step sorted by advantage", "trajectories?sort=-advantage"),
        ("p by staleness over 20 steps", "staleness?steps=20"),
        ("p by staleness over the run", "staleness?steps=1000"),
    ):
        yield Figure(what, 1e3 * _fastest(person, f"/v1/jobs/{run.job_id}/{query}"), "ms")


def _trajectories() -> list[dict[str, Any]]:
    """128 in groups of 8; each is in one minibatch of two, in two passes."""
    return [_trajectory(index) for index in range(128)]


def _trajectory(index: int) -> dict[str, Any]:
    length = _chance.randint(20, 400)

    def update(number: int) -> dict[str, Any]:
        clipped = _chance.randint(0, length // 8) / length
        ess, low, high = _chance.random(), _chance.random(), 1 + _chance.random()
        return {
            "update": number,
            "epoch": number // 2,
            "minibatch": number % 2,
            "p": 1 - _chance.random() * (number > 1),
            "ess": ess,
            "ess_at_1": ess * _chance.random(),
            "ess_target": ess,
            "clip_fraction": clipped,
            "clip_fraction_low": clipped,
            "clip_fraction_high": 0.0,
            "clip_fraction_outside": clipped,
            "ratio_min": low,
            "ratio_mean": _chance.gauss(1, 0.01),
            "ratio_max": high,
            "ratio_clipped_min": max(low, 0.67),
            "ratio_clipped_mean": _chance.gauss(1, 0.01),
            "ratio_clipped_max": high,
            "loss": _chance.gauss(0, 0.01),
        }

    reward = float(_chance.random() < 0.5)
    return {
        "index": index,
        "group": index // 8,
        "problem": str(_chance.randint(0, 10_000)),
        "reward": reward,
        "reward_parts": {"grade": reward},
        "advantage": _chance.choice([-1.2, -0.7, 0.3, 0.9, 1.6]) * (1 + index // 8 / 97),
        "length": length,
        "truncated": False,
        "entropy": _chance.random(),
        "sampling_kl": _chance.gauss(0, 1e-4),
        "sampling_kl_truncated": _chance.gauss(0, 1e-4),
        "importance_sampling_ratio": _chance.gauss(1, 1e-3),
        "sequence_importance_sampling_ratio": _chance.gauss(1, 1e-2),
        "weight_version": 0,
        "updates": [update(index // 8 % 2), update(2 + index // 8 % 2)],
    }


def _size(url: str) -> int:
    """Bytes of the database, without what only waits to be cleared away."""
    database = Database(url)
    with database.engine.connect() as connection:
        if database.engine.dialect.name == "sqlite":
            connection.exec_driver_sql("COMMIT")
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            size = Path(str(make_url(url).database)).stat().st_size
        else:
            size = int(connection.scalar(select(func.pg_database_size(func.current_database()))) or 0)
    database.close()
    return size


def _fastest(person: Connection, path: str) -> float:
    times = []
    for _ in range(5):
        began = time.perf_counter()
        person("GET", path)
        times.append(time.perf_counter() - began)
    return min(times)


def listing(service: Service, tiny: bool) -> Iterator[Figure]:
    """A page of 10,000 jobs, with filters and in the orders that people ask for."""
    count = 100 if tiny else 10_000
    signed_in = _signed_in(service)
    first = service.person()("POST", "/v1/jobs", spec("first"))["id"]
    database = Database(service.database_url)
    states = ("finished", "failed", "cancelled")
    with database.write() as session:
        row = dict(session.execute(select(Job.__table__).where(Job.id == first)).mappings().one())
        copies = [
            row
            | {
                "id": f"{first[:-6]}{number:06}",
                "name": f"job {number * 7919 % count}",
                "state": states[number % len(states)],
                "last_reward": number * 31 % count / count,
                "step": 7,
            }
            for number in range(count)
        ]
        session.execute(insert(Job.__table__), copies)
    database.close()
    _gather_statistics(service.database_url)
    person = service.person()
    paths = ["", "?state=failed", "?name=99", "?limit=200"]
    paths += [f"?sort={sort}" for sort in ("name", "-name", "state", "owner", "-reward", "-held_out")]
    for path in paths:
        try:
            yield Figure(f"/v1/jobs{path}", 1e3 * _fastest(person, f"/v1/jobs{path}"), "ms", LIST_MS)
        except RuntimeError as error:
            print(error)
    yield Figure("the page", 1e3 * _page(service, "/", signed_in), "ms", LIST_MS)
    yield Figure("the page, name=99", 1e3 * _page(service, "/?name=99", signed_in), "ms", LIST_MS)


def _signed_in(service: Service) -> dict[str, str]:
    """The headers of a browser that has signed in."""
    session = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    headers = {"Content-Type": "application/json", "Origin": f"http://127.0.0.1:{service.port}"}
    session.request("POST", "/v1/sessions", json.dumps({"key": ADMIN_KEY}), headers)
    answer = session.getresponse()
    answer.read()
    return {"Cookie": answer.headers["Set-Cookie"].split(";")[0]}


def _page(service: Service, path: str, headers: dict[str, str]) -> float:
    """The fastest of five loads of a page."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        times.append(time.perf_counter() - began)
        assert answer.status == 200, body[:300]
    return min(times)


SECTIONS = {"ingest": ingest, "history": history, "growth": growth, "list": listing}
