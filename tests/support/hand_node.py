"""A node that the test plays by hand, over HTTP: its report, the check of specs, claims and attempts."""

from typing import Any

from powermean import Client
from powermean.contracts.attempts import NodeReport, ValidationResult
from powermean.contracts.revisions import NEWEST
from powermean.node_client import AttemptClient, NodeClient
from tests.support.embedded_service import until

NAME = "hand"
LABELS = {"played": "by-hand"}
DEADLINE_S = 30.0


def hand_spec(**changes: Any) -> dict[str, Any]:
    """A job that no other node takes."""
    return {
        "name": "by hand",
        "model": {"name": "tiny/model"},
        "data": {"kind": "arithmetic"},
        "training": {"steps": 100_000},
        "resources": {"node_labels": LABELS},
    } | changes


class HandNode:
    """It has room for many attempts, and needs no worker."""

    def __init__(self, url: str, token: str, name: str = NAME, labels: dict[str, str] | None = None) -> None:
        self._client = NodeClient(url, token)
        self._url, self._name, self._labels = url, name, labels or LABELS

    def report(self, *running: str) -> None:
        self._client.put_node(
            self._name,
            NodeReport(
                hostname=self._name,
                cpu_slots=64,
                engines=("transformers",),
                labels=self._labels,
                running=running,
                version="0.1.0",
                revision=NEWEST,
            ),
        )

    def check(self, job_id: str) -> None:
        """Say that the spec is right."""
        self._client.post_validation(job_id, ValidationResult(errors=()))

    def claim(self, client: Client, job_id: str) -> AttemptClient:
        """This node's part of the job's first attempt, as soon as there is one."""
        until(lambda: client.get_job(job_id).attempt, DEADLINE_S, f"an attempt at {job_id}")
        claim = self._client.claim(f"{job_id}.1", self._name).claim
        return AttemptClient(self._url, claim.attempt_id, claim.token)

    def start(self, client: Client, **changes: Any) -> tuple[str, AttemptClient]:
        """A new job's id, and the attempt that works on it."""
        self.report()
        job_id = client.create_job(hand_spec(**changes)).id
        self.check(job_id)
        return job_id, self.claim(client, job_id)
