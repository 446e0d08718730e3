"""The real server on a free port, and an attempt that reports to it as a supervisor would."""

import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from powermean.contracts.metrics import WHOLE_STEP
from server.app import create_app
from server.settings import Settings
from server.start import bind, prepare

ADMIN_KEY = "pm_" + "a" * 43
NODE_TOKEN = "pmn_" + "n" * 43
DEADLINE_S = 20.0
UPDATES = 4  # 2 minibatches x 2 epochs
SPEC: dict[str, Any] = {
    "name": "adding up",
    "model": {"name": "tiny/model"},
    "data": {"kind": "arithmetic"},
    "training": {"steps": 20, "minibatches": 2, "epochs": 2},
}


class NoSender:
    """In place of Celery: the tests claim attempts by themselves."""

    def send(self, task: str, queue: str, subject: str, expires_s: float) -> None:
        pass


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(done: Any, what: str) -> Any:
    """Wait until `done()` gives something true, and return that."""
    ends = time.monotonic() + DEADLINE_S
    while not (found := done()):
        if time.monotonic() > ends:
            raise AssertionError(f"{what}: not within {DEADLINE_S:g} s")
        time.sleep(0.05)
    return found


class Service:
    """A server in a thread; it can be stopped and started again on the same port and database."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(
            database_url=f"sqlite:///{folder / 'server.db'}",
            redis_url="redis://127.0.0.1:1/0",
            artefacts_url=f"file://{folder / 'artefacts'}",
            secrets_dir=folder / "secrets",
            port=free_port(),
            migrate=True,
            poll_s=0.1,
            restart_backoff_s=0,
            bootstrap_admin_key=ADMIN_KEY,
            bootstrap_node_token=NODE_TOKEN,
        )
        prepare(self.settings)
        self.url = f"http://127.0.0.1:{self.settings.port}"
        self.person = self._client(ADMIN_KEY)
        self.node = self._client(NODE_TOKEN)
        self.start()

    def _client(self, token: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.url, headers=headers, trust_env=False, timeout=DEADLINE_S)

    def start(self) -> None:
        self.app = create_app(self.settings, NoSender())
        config = uvicorn.Config(
            self.app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        listener = bind(self.settings)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()
        until(lambda: self._server.started, "the server's start")

    def stop(self) -> None:
        """Stop listening and cut the connections that are left after a second."""
        self._server.should_exit = True
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def end_streams(self) -> None:
        """Send the followers of all jobs away, as a server does that is about to stop."""
        self.app.state.events._loop.call_soon_threadsafe(self.app.state.events.end_streams)

    def close(self) -> None:
        self.stop()
        self.person.close()
        self.node.close()

    def report_node(self) -> None:
        body = {"hostname": "node-1", "cpu_slots": 8, "engines": ["transformers"], "version": "0.1.0"}
        self.node.put("/v1/nodes/node-1", json=body).raise_for_status()

    def running(self, **changes: Any) -> "Run":
        """A job whose first attempt has been claimed."""
        self.report_node()
        answer = self.person.post("/v1/jobs", json=SPEC | changes)
        assert answer.status_code == 202, answer.text
        job_id = answer.json()["id"]
        self.node.post(f"/v1/jobs/{job_id}/validation", json={"errors": []}).raise_for_status()
        run = Run(self, job_id)
        run.claim(1)
        return run


def step_rows(step: int, shift: float = 0.0) -> list[dict[str, Any]]:
    """The metrics of a step: distinct, recognisable numbers."""
    rows = [{"step": step, "update": WHOLE_STEP, "name": "reward", "value": 0.3 + step / 50 + shift}]
    if step % 4 == 0:
        rows.append(
            {"step": step, "update": WHOLE_STEP, "name": "eval/reward", "value": 0.31 + step / 60 + shift}
        )
    for update in range(UPDATES):
        place = {"step": step, "update": update}
        rows.append({**place, "name": "p/mean", "value": 1 - update / 20 - step / 500 - shift})
        rows.append({**place, "name": "p/q10", "value": 1 - update / 8 - shift})
        rows.append({**place, "name": "ess/mean", "value": 1 - update / 100})
        rows.append({**place, "name": "clip_fraction/mean", "value": update / 40})
    for name, value in (
        ("time/generate", 5.0),
        ("time/update", 7.0 + step / 10),
        ("tokens_per_second", 14.0),
    ):
        rows.append({"step": step, "update": WHOLE_STEP, "name": name, "value": value})
    return rows


@dataclass
class Run:
    """A job with the attempt that works on it."""

    service: Service
    job_id: str
    attempt: int = 0
    _headers: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return f"/jobs/{self.job_id}"

    def job(self) -> dict[str, Any]:
        found: dict[str, Any] = self.service.person.get(f"/v1{self.path}").raise_for_status().json()
        return found

    def claim(self, number: int) -> None:
        """Take the attempt as its node does, as soon as the scheduler has made it."""
        address = f"/v1/attempts/{self.job_id}.{number}/claim"
        until(lambda: self.job()["attempt"] == number, f"attempt {number}")
        answer = until(lambda: (a := self.service.node.post(address)).is_success and a, "the claim")
        self.attempt = number
        self._headers = {"Authorization": f"Bearer {answer.json()['claim']['token']}"}

    def post(self, what: str, body: dict[str, Any]) -> None:
        address = f"/v1/attempts/{self.job_id}.{self.attempt}/{what}"
        answer = self.service.person.post(address, json=body, headers=self._headers)
        assert answer.is_success, answer.text

    def step(self, *steps: int, shift: float = 0.0) -> None:
        for step in steps:
            self.post("metrics", {"rows": step_rows(step, shift)})

    def checkpoint(self, step: int) -> None:
        key = f"jobs/{self.job_id}/checkpoints/{step}/weights"
        files = {"weights": {"key": key, "sha256": "0" * 64, "size": 1_600_000_000}}
        self.post("checkpoints", {"step": step, "manifest": {"files": files}})

    def restart(self) -> None:
        """The attempt is killed; the next one starts at the last checkpoint."""
        error = {"code": "trainer_killed", "message": "The trainer was killed."}
        self.post("finish", {"outcome": "failed", "retryable": True, "error": error})
        self.service.report_node()
        self.claim(self.attempt + 1)

    def finish(self, steps: int) -> None:
        model = {"files": {}}
        self.post(
            "finish", {"outcome": "finished", "result": {"steps": steps, "tokens": 900, "model": model}}
        )

    def history(self, name: str, **query: int) -> list[tuple[int, int, float]]:
        """The metric as the API gives it: (step, update, value)."""
        answer = self.service.person.get(f"/v1{self.path}/metrics", params={"name": name, **query})
        assert answer.is_success, answer.text
        return [(p["step"], p["update"], p["value"]) for p in answer.json()["series"][0]["points"]]
