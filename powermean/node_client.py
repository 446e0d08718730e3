"""A node's calls: reports and tasks with the node's token, an attempt's calls with the attempt's token."""

from urllib.parse import quote

import httpx
from pydantic import BaseModel

from powermean.calls import IDEMPOTENCY_KEY, Call, check, reads
from powermean.connection import Connection
from powermean.contracts.attempts import (
    ClaimRequest,
    ClaimWithSecrets,
    Finish,
    Heartbeat,
    HeartbeatReply,
    LogChunk,
    MemberReport,
    NodeReport,
    ValidationResult,
    ValidationWithSecrets,
)
from powermean.contracts.checks import NodeAnswer, NodeQuestion
from powermean.contracts.engines import NodeOrders
from powermean.contracts.replays import ReplayClaim, ReplayOutcome, ReplayTask
from powermean.rest import job_path

TIMEOUT = httpx.Timeout(30, connect=5)


def _done(response: httpx.Response) -> None:
    check(response)


def _body(message: BaseModel) -> object:
    return message.model_dump(mode="json")


class NodeClient(Connection):
    """A node with its token."""

    def __init__(self, url: str, token: str) -> None:
        super().__init__(url, token, TIMEOUT)

    def put_node(self, node_id: str, report: NodeReport) -> NodeOrders:
        """Report; the answer says which engine services the node should run."""
        path = f"/v1/nodes/{quote(node_id, safe='')}"
        return self._run(Call("PUT", path, reads(NodeOrders), json=_body(report)))

    def check(self, node_id: str, question: NodeQuestion) -> NodeAnswer:
        """What the server says about this node."""
        path = f"/v1/nodes/{quote(node_id, safe='')}/check"
        return self._run(Call("POST", path, reads(NodeAnswer), json=_body(question)))

    def validation(self, job_id: str) -> ValidationWithSecrets:
        return self._run(Call("GET", job_path(job_id, "/validation"), reads(ValidationWithSecrets)))

    def post_validation(self, job_id: str, result: ValidationResult) -> None:
        self._run(Call("POST", job_path(job_id, "/validation"), _done, json=_body(result)))

    def claim_replay(self, replay_id: str, node_id: str) -> ReplayTask:
        """Claim the replay; refused if it has ended or another live node has it."""
        body = _body(ReplayClaim(node_id=node_id))
        return self._run(Call("POST", f"{_replay(replay_id)}/claim", reads(ReplayTask), json=body))

    def post_replay(self, replay_id: str, outcome: ReplayOutcome) -> None:
        self._run(Call("POST", f"{_replay(replay_id)}/outcome", _done, json=_body(outcome)))

    def claim(self, attempt_id: str, node_id: str | None = None, claim_id: str = "") -> ClaimWithSecrets:
        """Claim a node's part of the attempt (None: the first node's). With an id it may be repeated.

        Raises FencedError if the attempt is not the current one or the part is already claimed.
        """
        path = f"/v1/attempts/{quote(attempt_id, safe='')}/claim"
        body = _body(ClaimRequest(node_id=node_id))
        headers = {IDEMPOTENCY_KEY: claim_id} if claim_id else {}
        return self._run(Call("POST", path, reads(ClaimWithSecrets), json=body, headers=headers))


def _replay(replay_id: str) -> str:
    return f"/v1/replays/{quote(replay_id, safe='')}"


class AttemptClient(Connection):
    """One attempt with its token. Every write raises FencedError once a newer attempt has taken over."""

    def __init__(self, url: str, attempt_id: str, token: str) -> None:
        super().__init__(url, token, TIMEOUT)
        self._path = f"/v1/attempts/{quote(attempt_id, safe='')}"

    def renew(self, token: str) -> None:
        """Use `token` from now on."""
        self._http.headers["Authorization"] = f"Bearer {token}"

    def heartbeat(
        self,
        phase: str,
        node_rank: int = 0,
        member: MemberReport | None = None,
        ran_s: float | None = None,
    ) -> HeartbeatReply:
        beat = Heartbeat(phase=phase, node_rank=node_rank, member=member, ran_s=ran_s)
        return self._run(Call("POST", f"{self._path}/heartbeat", reads(HeartbeatReply), json=_body(beat)))

    def post_record(self, kind: str, body: BaseModel) -> None:
        """Post one spooled record of the given kind: metrics, trajectories, checkpoints or finish."""
        self._run(Call("POST", f"{self._path}/{kind}", _done, json=_body(body)))

    def post_log(self, chunk: LogChunk) -> None:
        self._run(Call("POST", f"{self._path}/logs", _done, json=_body(chunk)))

    def finish(self, finish: Finish) -> None:
        self.post_record("finish", finish)
