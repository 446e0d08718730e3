"""A server under test, driven by its REST API; the scheduler and the relay take their turns when told to."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from anyio.from_thread import start_blocking_portal
from fastapi import FastAPI
from httpx import Response
from sqlalchemy import update
from starlette.testclient import TestClient

from powermean.artefacts import ArtefactStore
from powermean.contracts.api import Event, Job
from powermean.contracts.attempts import Claim
from powermean.contracts.engines import NodeOrders
from powermean.contracts.revisions import NEWEST
from server.app import create_app
from server.cluster.relay import Relay
from server.cluster.scheduler import Scheduler
from server.db.models import Attempt, AttemptMember, JobEvent
from server.db.session import Database, database_now
from server.queue import BrokerDownError
from server.settings import Settings
from server.start import prepare

ADMIN_KEY = "pm_" + "a" * 43
NODE_TOKEN = "pmn_" + "n" * 43


def example_spec(**changes: Any) -> dict[str, Any]:
    """A small valid job spec."""
    return {
        "name": "adding up",
        "model": {"name": "tiny/model"},
        "data": {"kind": "arithmetic"},
        "training": {"steps": 20},
        "max_restarts": 1,
    } | changes


def example_ref(name: str, owner: str) -> dict[str, Any]:
    """A reference to an object of the artefact store (that need not be there)."""
    return {"key": f"{owner}/{name}", "sha256": "0" * 64, "size": 10}


def example_checkpoint(job_id: str, step: int, *names: str) -> dict[str, Any]:
    """A checkpoint with files of these names."""
    owner = f"jobs/{job_id}/checkpoints/{step}"
    return {"step": step, "manifest": {"files": {name: example_ref(name, owner) for name in names}}}


def example_result(job_id: str, steps: int = 20) -> dict[str, Any]:
    """What a finished run leaves."""
    model = {"files": {"config.json": example_ref("config.json", f"jobs/{job_id}/model")}}
    return {"steps": steps, "reward_before": 0.3, "reward_after": 0.8, "tokens": 1000, "model": model}


@dataclass
class RecordingSender:
    """Takes messages in place of Celery."""

    sent: list[tuple[str, str, str]] = field(default_factory=list)
    down: bool = False

    def send(self, task: str, queue: str, subject: str, expires_s: float) -> None:
        if self.down:
            raise BrokerDownError("nobody there")
        self.sent.append((task, queue, subject))


class AttemptDriver:
    """What the supervisor of an attempt does, with the attempt's token."""

    def __init__(self, client: TestClient, claim: Claim) -> None:
        self.claim = claim
        self.id = claim.attempt_id
        self.token = claim.token
        self._client = client

    def post(self, what: str, body: dict[str, Any]) -> Response:
        return self._client.post(
            f"/v1/attempts/{self.id}/{what}", json=body, headers={"Authorization": f"Bearer {self.token}"}
        )

    def beat(self, phase: str = "training", **more: Any) -> Response:
        return self.post("heartbeat", {"phase": phase, "node_rank": self.claim.node_rank, **more})

    def commit(self, step: int) -> Response:
        return self.post("checkpoints", example_checkpoint(self.claim.job_id, step, "weights", "state"))

    def finish(self, outcome: str, **more: Any) -> Response:
        return self.post("finish", {"outcome": outcome, "node_rank": self.claim.node_rank, **more})


class ServiceDriver:
    """A server, a person, and any number of nodes."""

    def __init__(self, settings: Settings) -> None:
        prepare(settings)
        self.settings = settings
        self.sender = RecordingSender()
        self.app: FastAPI = create_app(settings, self.sender)
        self.database: Database = self.app.state.database
        self.scheduler = self.replica("first")
        self.relay = Relay(self.database, settings, self.sender)
        self._loop = start_blocking_portal()  # one for all clients; otherwise each request starts its own
        self._portal = self._loop.__enter__()
        self.anyone = self._client()
        self.person = self.client(ADMIN_KEY)
        self.node = self.client(NODE_TOKEN)

    def close(self) -> None:
        self.app.state.reports.close()
        self._loop.__exit__(None, None, None)
        for line in ("named_things", "submits", "cancels"):
            getattr(self.app.state, line).close()
        self.database.close()

    def client(self, token: str) -> TestClient:
        """A client with a bearer token."""
        return self._client({"Authorization": f"Bearer {token}"})

    def _client(self, headers: dict[str, str] | None = None) -> TestClient:
        client = TestClient(
            self.app, base_url="http://127.0.0.1", headers=headers, raise_server_exceptions=False
        )
        client.portal = self._portal
        return client

    def browser(self) -> TestClient:
        """A browser on the service's own pages, in which nobody has signed in yet."""
        browser = self.client("none")
        del browser.headers["Authorization"]
        browser.headers["Origin"] = "http://127.0.0.1"
        return browser

    def someone(
        self,
        role: str = "member",
        *,
        name: str = "Ada",
        project: str | None = "default",
        cluster_role: str | None = None,
    ) -> TestClient:
        """A client of a new person, with a key that allows all that they may."""
        wanted = {"name": name, "role": role, "project": project, "cluster_role": cluster_role}
        made = self.person.post("/v1/people", json=wanted)
        assert made.status_code == 201, made.text
        wanted = {"name": name, "role": "admin", "person_id": made.json()["id"]}
        return self.client(self.person.post("/v1/keys", json=wanted).json()["key"])

    def project(self, name: str) -> str:
        """A project of this name, made unless it is there."""
        assert self.person.post("/v1/projects", json={"name": name}).status_code in (201, 409)
        return name

    def replica(self, holder: str) -> Scheduler:
        """The scheduler of one more replica."""
        return Scheduler(self.database, self.settings, ArtefactStore(self.settings.artefacts_url), holder)

    def submit(self, **changes: Any) -> str:
        """A new job's id."""
        answer = self.person.post("/v1/jobs", json=example_spec(**changes))
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str) -> Job:
        answer = self.person.get(f"/v1/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        return Job.model_validate(answer.json())

    def validate(self, job_id: str, *errors: dict[str, Any]) -> None:
        """The node's word on the spec."""
        answer = self.node.post(f"/v1/jobs/{job_id}/validation", json={"errors": errors})
        assert answer.status_code == 204, answer.text

    def report(
        self,
        node_id: str = "node-1",
        *,
        cpu_slots: int = 1,
        gpus: int = 0,
        running: tuple[str, ...] = (),
        engines: tuple[str, ...] = ("transformers",),
        services: tuple[dict[str, Any], ...] = (),
        instance: str = "the one",
        full_disk: str | None = None,
        checking: tuple[str, ...] = (),
        revision: int = NEWEST,
        number: int | None = None,
    ) -> NodeOrders:
        """A node's report; the answer."""
        answer = self.node.put(
            f"/v1/nodes/{node_id}",
            json={
                "hostname": node_id,
                "instance": instance,
                "full_disk": full_disk,
                "cpu_slots": cpu_slots,
                "gpus": [
                    {"uuid": f"{node_id}-gpu-{i}", "name": "H200", "memory_mb": 140_000} for i in range(gpus)
                ],
                "running": running,
                "checking": checking,
                "engines": engines,
                "services": services,
                "version": "0",
                "revision": revision,
                "number": number,
            },
        )
        assert answer.status_code == 200, answer.text
        return NodeOrders.model_validate(answer.json())

    def queued(self, **changes: Any) -> str:
        """A job that waits for the scheduler."""
        job_id = self.submit(**changes)
        self.validate(job_id)
        return job_id

    def started(self, **changes: Any) -> str:
        """A job with an attempt that nobody has claimed yet."""
        job_id = self.queued(**changes)
        self.report()
        self.scheduler.turn()
        return job_id

    def running(self, **changes: Any) -> AttemptDriver:
        """A job's first attempt, claimed."""
        return self.claim(f"{self.started(**changes)}.1")

    def running_on(self, gpus: int, **changes: Any) -> AttemptDriver:
        """As `running`, on a node with this many GPUs."""
        job_id = self.queued(**changes)
        self.report(gpus=gpus)
        self.scheduler.turn()
        return self.claim(f"{job_id}.1")

    def claim(self, attempt_id: str, node_id: str | None = None) -> AttemptDriver:
        """A node's part of the attempt, if it is not the first node's."""
        answer = self.node.post(f"/v1/attempts/{attempt_id}/claim", json={"node_id": node_id})
        assert answer.status_code == 200, answer.text
        return AttemptDriver(self.anyone, Claim.model_validate(answer.json()["claim"]))

    def let_lease_run_out(self, attempt_id: str, *nodes: str) -> None:
        """As if the attempt (on several nodes: these) had been silent for a whole lease."""
        with self.database.write() as session:
            past = database_now(session) - timedelta(seconds=1)
            session.execute(update(Attempt).where(Attempt.id == attempt_id).values(lease_expires_at=past))
            theirs = AttemptMember.attempt_id == attempt_id, AttemptMember.node_id.in_(nodes)
            session.execute(update(AttemptMember).where(*theirs).values(lease_expires_at=past))

    def events(self, job_id: str) -> list[Event]:
        """The job's recorded events, in order."""
        with self.database.read() as session:
            rows = session.query(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.seq)
            return [Event.model_validate({"seq": r.seq, "kind": r.kind, "data": r.data}) for r in rows]


def error_of(answer: Response) -> dict[str, Any]:
    """The error of an answer in the one shape."""
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"code", "message", "remedy", "fields"}
    return error
