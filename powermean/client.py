"""The Python client for scripts."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from powermean import rest, rest_cluster, rest_identity, rest_sharing
from powermean.calls import ApiError, Call, ServerUnreachableError, check
from powermean.connection import Connection, method
from powermean.contracts.api import (
    Dataset,
    Event,
    JobState,
    LogText,
)
from powermean.contracts.audit import AuditEntry
from powermean.deprecations import renamed
from powermean.discovery import find_service
from powermean.sse import read_events

EVENT_SILENCE_S = 60.0  # the server sends a comment more often than that: silence is a dead connection
RETRY_S = 1.0
LOG_POLL_S = 1.0
PATIENCE_S = 300.0


class Patience:
    """How long a server that is being followed may give no answer."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._silent_since: float | None = None

    def answered(self) -> None:
        self._silent_since = None

    def bear(self, error: ApiError | ServerUnreachableError) -> None:
        """Wait a moment before the next try. Raises the error if no try helps, or too many have failed."""
        now = time.monotonic()
        self._silent_since = now if self._silent_since is None else self._silent_since
        if not error.retryable or now - self._silent_since >= self._seconds:
            raise error
        time.sleep(RETRY_S)


class Stranger(Connection):
    """What can be asked without a key: how to get one."""

    def __init__(self, url: str) -> None:
        super().__init__(url, None)

    start_device = method(rest_identity.start_device)
    claim_device = method(rest_identity.claim_device)


class Client(Connection):
    """A synchronous client. Every method raises ApiError when refused, ServerUnreachableError when
    unanswered.

    Without arguments it talks to POWERMEAN_URL with POWERMEAN_API_KEY, or else to the service that
    `powermean up` runs, in this folder or as this user's only one.
    """

    def __init__(self, url: str | None = None, key: str | None = None) -> None:
        service = find_service(url, key)
        super().__init__(service.url, service.key)

    create_job = method(rest.create_job)
    create_job_from_text = method(rest.create_job_from_text)
    job_text = method(rest.job_text)
    get_job = method(rest.get_job)
    list_jobs = method(rest.list_jobs)
    cancel_job = method(rest.cancel_job)
    pause_job = method(rest.pause_job)
    resume_job = method(rest.resume_job)
    set_priority = method(rest.set_priority)
    delete_job = method(rest.delete_job)

    metrics = method(rest.metrics)
    metric_names = method(rest.metric_names)
    health = method(rest.health)
    staleness = method(rest.staleness)
    lag = renamed("lag", staleness)
    exponents = method(rest.exponents)

    trajectories = method(rest.trajectories)
    trajectory = method(rest.trajectory)
    trajectory_tokens = method(rest.trajectory_tokens)

    replay = method(rest.replay)
    replays = method(rest.replays)
    get_replay = method(rest.get_replay)
    replay_result = method(rest.replay_result)
    replay_tokens = method(rest.replay_tokens)
    delete_replay = method(rest.delete_replay)

    logs = method(rest.logs)
    checkpoints = method(rest.checkpoints)
    checkpoint = method(rest.checkpoint)
    delete_checkpoint = method(rest.delete_checkpoint)
    pin_checkpoint = method(rest.pin_checkpoint)
    unpin_checkpoint = method(rest.unpin_checkpoint)
    files = method(rest.files)
    delete_files = method(rest.delete_files)

    datasets = method(rest.datasets)
    get_dataset = method(rest.get_dataset)
    delete_dataset = method(rest.delete_dataset)

    storage = method(rest_identity.storage)
    limit_storage = method(rest_identity.limit_storage)
    retention = method(rest_identity.retention)
    set_retention = method(rest_identity.set_retention)
    delete_project = method(rest_identity.delete_project)
    collect_garbage = method(rest_identity.collect_garbage)

    nodes = method(rest_cluster.nodes)
    get_node = method(rest_cluster.get_node)
    node_samples = method(rest_cluster.node_samples)
    cordon_node = method(rest_cluster.cordon_node)
    drain_node = method(rest_cluster.drain_node)
    uncordon_node = method(rest_cluster.uncordon_node)
    remove_node = method(rest_cluster.remove_node)
    servers = method(rest_cluster.servers)
    engines = method(rest_cluster.engines)
    get_engine = method(rest_cluster.get_engine)
    create_engine = method(rest_cluster.create_engine)
    remove_engine = method(rest_cluster.remove_engine)
    priorities = method(rest_cluster.priorities)
    set_priority_class = method(rest_cluster.set_priority_class)
    remove_priority_class = method(rest_cluster.remove_priority_class)

    pools = method(rest_cluster.pools)
    get_pool = method(rest_cluster.get_pool)
    quotas = method(rest_sharing.quotas)
    change_quota = method(rest_sharing.change_quota)
    queue = method(rest_sharing.queue)
    lanes = method(rest_sharing.lanes)
    usage = method(rest_sharing.usage)
    usage_csv = method(rest_sharing.usage_csv)

    audit = method(rest_identity.audit)
    audit_head = method(rest_identity.audit_head)
    set_secret = method(rest_identity.set_secret)
    secrets = method(rest_identity.secrets)
    remove_secret = method(rest_identity.remove_secret)

    me = method(rest_identity.me)
    people = method(rest_identity.people)
    add_person = method(rest_identity.add_person)
    change_person = method(rest_identity.change_person)
    invite_person = method(rest_identity.invite_person)

    projects = method(rest_identity.projects)
    create_project = method(rest_identity.create_project)
    get_project = method(rest_identity.get_project)
    change_project = method(rest_identity.change_project)
    members = method(rest_identity.members)
    set_member = method(rest_identity.set_member)
    remove_member = method(rest_identity.remove_member)

    keys = method(rest_identity.keys)
    create_key = method(rest_identity.create_key)
    revoke_key = method(rest_identity.revoke_key)

    login_code = method(rest_identity.login_code)
    sessions = method(rest_identity.sessions)
    end_session = method(rest_identity.end_session)
    sign_in_ways = method(rest_identity.sign_in_ways)
    start_oidc = method(rest_identity.start_oidc)
    show_device = method(rest_identity.show_device)
    decide_device = method(rest_identity.decide_device)
    ready = method(rest.ready)

    def upload_dataset(
        self, path: Path | str, name: str | None = None, project: str | None = None
    ) -> Dataset:
        """Upload a JSONL file: one object a line. It belongs to the project, by default to your own one."""
        path = Path(path)
        with path.open("rb") as body:
            return self._run(
                rest.upload_dataset(project),
                files={"file": (path.name, body, "application/x-ndjson")},
                data={"name": rest.dataset_name(path, name)},
                timeout=httpx.Timeout(600, connect=5),
            )

    def download(self, job_id: str, path: str, target: Path | str, step: str | None = None) -> None:
        """Write one file of the final model, or of a checkpoint's weights, to `target`.

        A file that is there is complete. `step` is a number, or best.
        """
        self._download(
            rest.file(job_id, path) if step is None else rest.checkpoint_file(job_id, step, path), target
        )

    def download_origin(self, job_id: str, owner: str, path: str, target: Path | str) -> None:
        """Write one of the files of the job `owner` that a fork began with."""
        self._download(rest.origin_file(job_id, owner, path), target)

    def _download(self, call: Call[None], target: Path | str) -> None:
        target = Path(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part-{os.getpid()}")
        request = self._http.build_request(**call.keywords())
        try:
            response = self._http.send(request, stream=True)
            try:
                if not response.is_success:
                    response.read()
                call.parse(response)
                with part.open("wb") as out:
                    for block in response.iter_bytes(1 << 20):
                        out.write(block)
            finally:
                response.close()
            part.replace(target)
        except httpx.TransportError as error:
            raise ServerUnreachableError(self.url, error) from error
        finally:
            part.unlink(missing_ok=True)

    def audit_export(self) -> Iterator[AuditEntry]:
        """The whole audit log, oldest first, as it comes. For administrators and auditors."""
        request = self._http.build_request(**rest_identity.audit_export().keywords())
        try:
            response = self._http.send(request, stream=True)
            try:
                if not response.is_success:
                    response.read()
                check(response)
                for line in response.iter_lines():
                    yield AuditEntry.model_validate_json(line)
            finally:
                response.close()
        except httpx.TransportError as error:
            raise ServerUnreachableError(self.url, error) from error

    def events(self, job_id: str, after: int = 0, patience_s: float = PATIENCE_S) -> Iterator[Event]:
        """What happens to a job after event number `after`, until the job has ended.

        Lost connections are taken up again after the last event seen, so that nothing is missed or given
        twice. Raises when refused, or when no connection succeeds for `patience_s` seconds.
        """
        patience = Patience(patience_s)
        while True:
            began = time.monotonic()
            try:
                for event in self._connected_events(job_id, after, patience):
                    after = event.seq
                    yield event
                job = self.get_job(job_id)
                patience.answered()
                if job.state.final and job.seq <= after:
                    return
            except (ServerUnreachableError, ApiError) as error:
                patience.bear(error)
            else:  # the server has ended the stream, for instance to restart: another one goes on at once
                time.sleep(max(0.0, began + RETRY_S - time.monotonic()))

    def log(
        self,
        job_id: str,
        attempt: int | None = None,
        follow: bool = False,
        patience_s: float = PATIENCE_S,
        *,
        node_rank: int | None = None,
    ) -> Iterator[LogText]:
        """The log of an attempt, by default of the newest, in parts; of its first node unless one is chosen.

        With `follow` it goes on until the job has ended, through later attempts unless one was chosen. A
        server that answered once and restarts is asked again where the text broke off, for up to `patience_s`
        seconds.
        """
        if follow:
            self.get_job(job_id)
        patience = Patience(patience_s if follow else 0)
        number, offset = attempt, 0
        while True:
            try:
                job = self.get_job(job_id) if follow else None  # before the text: its end is then complete
                part = self.logs(job_id, number, offset, node_rank)
            except (ServerUnreachableError, ApiError) as error:
                patience.bear(error)
                continue
            patience.answered()
            number, offset = part.attempt or number, part.next_offset
            if part.text:
                yield part
            elif job is not None and attempt is None and job.attempt > (number or 0):
                number, offset = job.attempt, 0
            elif job is None or job.state.final:
                return
            else:
                time.sleep(LOG_POLL_S)

    def _connected_events(self, job_id: str, after: int, patience: Patience) -> Iterator[Event]:
        """Events of one connection; ends when the server ends the stream or the job has ended."""
        call = rest.events(job_id, after)
        request = self._http.build_request(
            **call.keywords(), timeout=httpx.Timeout(EVENT_SILENCE_S, connect=5)
        )
        try:
            response = self._http.send(request, stream=True)
            try:
                if not response.is_success:
                    response.read()
                call.parse(response)
                patience.answered()
                for event in read_events(response.iter_lines()):
                    yield event
                    if event.kind == "state" and JobState(str(event.data["state"])).final:
                        return
            finally:
                response.close()
        except httpx.TransportError as error:
            raise ServerUnreachableError(self.url, error) from error
