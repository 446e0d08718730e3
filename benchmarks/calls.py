"""What a request takes, counted: `python benchmarks/calls.py`. Of use where other work shares the cores.

Prints, by route, how many Python functions run for a request, how often it goes to a thread, and how many
statements it makes. The application is asked without sockets, on an empty SQLite database, with its log and
without its loops.
"""

import asyncio
import contextlib
import io
import json
import os
import secrets
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio.to_thread
from rollouts_table import Table
from service_jobs import spec
from service_metrics import report
from service_rig import ADMIN_KEY, NODE_TOKEN
from sqlalchemy import event, insert, update

from powermean.tokens import sign_attempt_token
from server.app import create_app
from server.db.models import Attempt, Job
from server.db.session import Database, database_now
from server.request_log import configure_logging
from server.settings import Settings
from server.start import prepare

REQUESTS = 100
WARM_UP = 20

counts: Counter[str] = Counter()


class Nobody:
    """A sender whose messages go nowhere."""

    def send(self, task: str, queue: str, subject: str, expires_s: float) -> None:
        """See server.queue.Sender."""


class Client:
    """Asks an ASGI application."""

    def __init__(self, app: Any, token: str) -> None:
        self._app = app
        self._headers = [(b"host", b"127.0.0.1"), (b"authorization", f"Bearer {token}".encode())]

    async def __call__(self, method: str, path: str, body: bytes = b"", **headers: str) -> Any:
        """The answer's JSON."""
        status, content = 0, b""
        more = {b"content-type": b"application/json", b"content-length": str(len(body)).encode()}
        more |= {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": [*self._headers, *more.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8700),
        }

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            nonlocal status, content
            status = message.get("status", status)
            content += message.get("body", b"")

        await self._app(scope, receive, send)
        if status >= 400:
            raise SystemExit(f"{method} {path}: {status} {content!r}")
        return json.loads(content) if content else None


async def measured(app: Any, database: Database) -> Table:
    """One row a route."""
    person = Client(app, ADMIN_KEY)

    async def submit(number: int) -> str:
        body = json.dumps(spec(f"job {number}")).encode()
        return str((await person("POST", "/v1/jobs", body, idempotency_key=secrets.token_hex(8)))["id"])

    async def cancel(number: int) -> None:
        await person("POST", f"/v1/jobs/{ids[number]}/cancel")

    async def ingest(number: int) -> None:
        await attempt("POST", f"/v1/attempts/{running}.1/metrics", reports[number])

    reports = [report(step) for step in range(1, WARM_UP + REQUESTS + 1)]
    ids = [await submit(number) for number in range(WARM_UP + REQUESTS)]
    running = await submit(0)
    with database.write() as session:
        session.execute(
            update(Job).where(Job.id == running).values(state="running", attempt=1, total_steps=10**6)
        )
        row = {"id": f"{running}.1", "job_id": running, "number": 1, "state": "running", "first_step": 0}
        session.execute(insert(Attempt).values(**row, created_at=database_now(session)))
    attempt = Client(app, sign_attempt_token(app.state.key_pair.private_pem, running, 1))
    table = Table(
        "A request takes", ("request", "Python calls", "switches to a thread", "statements"), left=1
    )
    for name, ask in (("submit", submit), ("cancel", cancel), ("a report of 140 numbers", ingest)):
        for number in range(WARM_UP):
            await ask(number)
        counts.clear()
        for number in range(WARM_UP, WARM_UP + REQUESTS):
            await ask(number)
        found = (counts[what] / REQUESTS for what in ("calls", "threads", "statements"))
        table.add(name, *(f"{each:.4g}" for each in found))
    return table


def count_calls() -> None:
    """From now on, in this thread and in new ones, so also in those of an application that is made later."""

    def called(_frame: object, kind: str, _argument: object) -> None:
        if kind in ("call", "c_call"):
            counts["calls"] += 1

    run: Callable[..., Any] = anyio.to_thread.run_sync

    def to_thread(*arguments: Any, **options: Any) -> Any:
        counts["threads"] += 1
        return run(*arguments, **options)

    anyio.to_thread.run_sync = to_thread
    threading.setprofile(called)
    sys.setprofile(called)


def count_statements(database: Database) -> None:
    """From now on."""

    def executed(*_of: object) -> None:
        counts["statements"] += 1

    event.listen(database.engine, "before_cursor_execute", executed)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        os.environ |= {
            "POWERMEAN_DATABASE_URL": f"sqlite:///{folder}/calls.db",
            "POWERMEAN_REDIS_URL": "redis://127.0.0.1:1/0",
            "POWERMEAN_ARTEFACTS_URL": f"file://{folder}/artefacts",
            "POWERMEAN_SECRETS_DIR": str(Path(folder) / "secrets"),
            "POWERMEAN_HOST": "127.0.0.1",
            "POWERMEAN_MIGRATE": "true",
            "POWERMEAN_BOOTSTRAP_ADMIN_KEY": ADMIN_KEY,
            "POWERMEAN_BOOTSTRAP_NODE_TOKEN": NODE_TOKEN,
        }
        configure_logging()
        settings = Settings()
        prepare(settings)
        count_calls()
        app = create_app(settings, Nobody())
        count_statements(app.state.database)
        table = asyncio.run(measured(app, app.state.database))
        sys.setprofile(None)
    print(table.text())


if __name__ == "__main__":
    main()
