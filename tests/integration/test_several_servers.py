"""Three servers on one Postgres: one leads, all serve, and none is missed while it is away.

`make servers` prints the timings that docs/operations.md quotes, and has a worker train a real job meanwhile.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from powermean import ApiError, Client
from powermean.calls import FencedError
from powermean.contracts.attempts import Finish, JobError, JobResult, MemberReport, MetricsReport
from powermean.contracts.identity import KeyRequest
from powermean.contracts.metrics import MetricRow
from powermean.node_client import AttemptClient
from tests.support.balancer import Balancer
from tests.support.cluster import Cluster, Server
from tests.support.embedded_service import metric_rows, until
from tests.support.hand_node import HandNode, hand_spec
from tests.support.service_load import Load
from tests.support.tiny_model import tiny_spec

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.postgres]

LEASE_S = 3.0
DRAIN_S = 2.0
SLACK_S = 5.0  # for turns and starts on a busy machine
SETTINGS = {
    "POWERMEAN_LEADER_LEASE_S": str(LEASE_S),
    "POWERMEAN_DRAIN_S": str(DRAIN_S),
    "POWERMEAN_LEASE_S": "120",  # attempts by hand send no heartbeats, and nodes one report
    "POWERMEAN_CLAIM_S": "120",
    "POWERMEAN_NODE_TIMEOUT_S": "600",
    "POWERMEAN_LABELS": "trains=yes",
}
WITH_A_REAL_JOB = "POWERMEAN_REAL_JOB" in os.environ
JOB_S = 600.0
REAL_JOB = tiny_spec(
    "tiny",
    training={"steps": 120, "prompts_per_step": 16, "minibatches": 2, "epochs": 1},
    evaluation={"every": 100, "problems": 25},
    checkpoints={"every": 50},
    resources={"node_labels": {"trains": "yes"}},
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    folder: Path = tmp_path_factory.mktemp("servers")
    models = request.getfixturevalue("model_root") if WITH_A_REAL_JOB else folder
    with Cluster(folder, models, servers=3, nodes=int(WITH_A_REAL_JOB), settings=SETTINGS) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def node(cluster: Cluster) -> HandNode:
    return HandNode(cluster.url, cluster._node_token)


def leads(cluster: Cluster) -> Server:
    """The server whose lease is valid, as any server tells it."""

    def named() -> Server | None:
        for server in cluster.servers:
            if server.program.alive and server.ready:
                found = [one.id for one in server.client.servers().items if one.leads]
                pids = {str(one.program.pid): one for one in cluster.servers if one.program.alive}
                return pids.get(found[0].split("-")[-2]) if found else None
        return None

    return until(named, 30, "one server leads")


def moved(cluster: Cluster, before: Server) -> float:
    """Wait until another server leads; the seconds until then."""
    began = time.monotonic()
    until(lambda: (now := cluster.leader()) is not None and now is not before, 60, "another server leads")
    return time.monotonic() - began


def others(cluster: Cluster, server: Server) -> list[Server]:
    return [one for one in cluster.servers if one is not server]


def say(what: str, seconds: float) -> None:
    print(f"{what}: {seconds:.2f} s", flush=True)


def test_one_leads_and_all_serve(cluster: Cluster, node: HandNode) -> None:
    leader = leads(cluster)
    for server in cluster.servers:
        found = server.client.servers().items
        assert len(found) == 3
        assert all(one.alive for one in found)
        assert [one.name.rpartition(":")[2] for one in found if one.leads] == [str(leader.port)]
    follower = others(cluster, leader)[0]
    began = time.monotonic()
    job_id, _ = node.start(follower.client)
    say("a job that a follower took has its attempt", time.monotonic() - began)
    assert {server.client.get_job(job_id).attempt for server in cluster.servers} == {1}


def test_the_nodes_of_a_job_may_talk_to_different_servers(cluster: Cluster) -> None:
    labels = {"played": "by-two"}
    token = cluster._node_token
    nodes = [HandNode(cluster.servers[n].url, token, f"hand-{n}", labels) for n in range(2)]
    for one in nodes:
        one.report()
    client = cluster.servers[2].client
    job_id = client.create_job(hand_spec(resources={"nodes": 2, "node_labels": labels})).id
    nodes[0].check(job_id)
    first, second = (one.claim(client, job_id) for one in nodes)
    first.heartbeat("loading", 0, MemberReport(address="10.0.0.1", store_port=29500))
    members = second.heartbeat("loading", 1).members
    assert [one.node_id for one in members] == ["hand-0", "hand-1"]
    assert members[0].report == MemberReport(address="10.0.0.1", store_port=29500)
    error = JobError(code="out_of_memory", message="no memory left")
    second.finish(Finish(outcome="failed", node_rank=1, error=error))
    with pytest.raises(FencedError):
        first.heartbeat("step 1")
    assert client.get_job(job_id).error == error.model_copy(update={"message": "node hand-1: no memory left"})


def test_the_same_submission_to_all_servers_at_once_is_one_job(cluster: Cluster) -> None:
    with ThreadPoolExecutor(6) as pool:
        jobs = pool.map(
            lambda server: server.client.create_job(hand_spec(), idempotency_key="once").id,
            cluster.servers * 2,
        )
    assert len(set(jobs)) == 1


def test_what_is_posted_to_one_server_is_seen_at_another_with_and_without_redis(
    cluster: Cluster, node: HandNode
) -> None:
    here, there, third = cluster.servers
    job_id, attempt = node.start(here.client)
    posting = AttemptClient(here.url, attempt_id(attempt), token(attempt))
    events = there.client.events(job_id)
    seen = []

    def delay(step: int) -> float:
        """From the report to one server to the event at another."""
        began = time.monotonic()
        posting.post_record("metrics", rows(step))
        for event in events:
            seen.append(event.seq)
            if event.kind == "metrics" and event.data["rows"][0]["step"] == step:
                return time.monotonic() - began
        raise AssertionError("the stream ended")

    delay(0)
    say("an event at another server, with Redis", delay(1))
    cluster.redis.kill()
    without = delay(2)
    say("an event at another server, without Redis", without)
    assert without < 1.0 + SLACK_S
    cluster.redis.start()
    until(cluster._redis_answers, 30, "Redis is back")
    delay(3)
    last = third.client.get_job(job_id).seq
    posting.post_record("metrics", rows(4))
    after = next(iter(third.client.events(job_id, after=last)))
    assert (after.seq, after.data["rows"][0]["step"]) == (last + 1, 4)
    assert seen == list(range(seen[0], seen[0] + len(seen)))


def test_a_revoked_key_is_refused_everywhere_within_a_second(cluster: Cluster) -> None:
    here, there = cluster.servers[:2]
    for redis_is_there, within_s in ((True, 1.0), (False, 1.0)):
        if not redis_is_there:
            cluster.redis.kill()
        made = here.client.create_key(KeyRequest(name="to be revoked", role="viewer"))
        asking = Client(there.url, made.key)
        for _ in range(3):  # it is known there, and remembered
            asking.me()
        here.client.revoke_key(made.id)
        revoked = last_good = time.monotonic()
        while (asked := time.monotonic()) < revoked + SLACK_S and works(asking):
            last_good = asked
        say(f"a revoked key still worked elsewhere, Redis {redis_is_there}", last_good - revoked)
        assert last_good - revoked < within_s
    cluster.redis.start()
    until(cluster._redis_answers, 30, "Redis is back")


def test_a_frozen_leader_does_no_harm_when_it_comes_back(cluster: Cluster, node: HandNode) -> None:
    before = leads(cluster)
    rest = others(cluster, before)
    before.program.send(signal.SIGSTOP)
    try:
        seconds = moved(cluster, before)
        say(f"lead moved from a frozen server, lease {LEASE_S:g} s", seconds)
        job_id, _ = HandNode(rest[0].url, cluster._node_token).start(rest[0].client)
    finally:
        before.program.send(signal.SIGCONT)
    until(lambda: before.ready, 30, "the frozen server answers again")
    time.sleep(2 * LEASE_S)
    assert leads(cluster) is not before
    job = before.client.get_job(job_id)
    assert [one.number for one in job.attempts] == [1]
    assert job.state == "running"


@pytest.mark.timeout(2 * JOB_S)
def test_a_rolling_restart_drops_no_request(cluster: Cluster, node: HandNode) -> None:
    real = cluster.client.create_job(REAL_JOB).id if cluster.nodes else None
    if real is not None:
        until(lambda: cluster.client.get_job(real).step, JOB_S, "the real job trains")
    job_id, attempt = node.start(cluster.client)
    streams: list[tuple[list[int], list[str]]] = [([], []) for _ in range(2)]
    product: list[int] = []
    with Balancer([server.port for server in cluster.servers]) as balancer:
        until(lambda: len(balancer.targets) == 3, 30, "the balancer knows all servers")
        load = Load(balancer.url, cluster.admin_key)
        for _ in range(2):
            load.use("reads", load.read, pause_s=0.1)
        load.use("submissions", load.submit, pause_s=0.5)
        load.use("uploads", load.upload, pause_s=0.1)
        load.use("reports", load.report(attempt_id(attempt), token(attempt)), pause_s=0.1)
        for seen, ends in streams:
            load.follow(job_id, seen, ends)
        load.follow_as_client(job_id, product)
        first = leads(cluster)
        restart(first, balancer, lambda: moved(cluster, first))
        for server in others(cluster, first):
            restart(server, balancer)
        if real is not None:
            step = cluster.client.get_job(real).step
            print(f"the real job is at step {step} when the last server is back", flush=True)
        load.stop()
        attempt.finish(Finish(outcome="finished", result=JobResult(steps=1, tokens=1, model={"files": {}})))
        load.wait()
    print(f"requests {sum(load.done.values())} {dict(load.done)}, failed {len(load.failures)}", flush=True)
    say("the longest request, uploads included", load.longest_s)
    assert load.failures == [], "\n".join(load.failures)
    assert all(load.done[what] > 0 for what in ("reads", "submissions", "uploads", "reports"))
    assert load.posted == list(range(len(load.posted)))
    for seen, ends in streams:
        assert seen == load.posted
        assert ends[-1] == "end"
        assert set(ends[:-1]) <= {"reconnect"}
    assert product == load.posted
    assert sum(len(ends) - 1 for _, ends in streams) >= 2  # each server's stop ended some
    known = {job.id for job in every_job(cluster.client)}
    assert set(load.jobs) <= known
    assert len(set(load.jobs)) == len(load.jobs)
    if real is not None:
        lost_nothing(cluster.client, real)


def lost_nothing(client: Client, job_id: str) -> None:
    """The real job went on all the time: one attempt, and each of its steps once."""
    job = until(lambda: (job := client.get_job(job_id)).state.final and job, JOB_S, "the real job ended")
    assert job.state == "finished", job.error
    assert len(job.attempts) == 1
    steps = sorted(step for step, _, name in metric_rows(client, job_id) if name == "reward")
    assert steps == list(range(1, REAL_JOB["training"]["steps"] + 1))
    print(f"a real job of {len(steps)} steps finished in its first attempt", flush=True)


def test_killing_the_leader_moves_the_lead_within_its_lease(cluster: Cluster, node: HandNode) -> None:
    before = leads(cluster)
    job_id = others(cluster, before)[0].client.create_job(hand_spec()).id
    killed_at = time.monotonic()
    before.program.kill()
    seconds = moved(cluster, before)
    say(f"lead moved after kill -9, lease {LEASE_S:g} s", seconds)
    assert seconds < LEASE_S + SLACK_S
    client = leads(cluster).client
    node.check(job_id)
    node.claim(client, job_id)
    say("first job started by the new leader", time.monotonic() - killed_at)


def restart(server: Server, balancer: Balancer, moved: Callable[[], float] | None = None) -> None:
    """As an operator does, who waits for it to be ready before the next one."""
    began = time.monotonic()
    server.program.send(signal.SIGTERM)
    if moved is not None:
        seconds = moved()
        say("lead moved at an orderly stop", seconds)
        assert seconds < LEASE_S
    until(lambda: server.port not in balancer.targets, 10, "the balancer sends nobody there")
    unready = time.monotonic() - began
    status = server.program.wait(60)
    ended = time.monotonic() - began
    assert status in (0, -signal.SIGTERM)
    assert ended >= DRAIN_S
    server.start()
    until(lambda: server.port in balancer.targets, 30, "the balancer sends people there again")
    print(
        f"{server.program.name}: out of the balancer after {unready:.2f} s, ended after {ended:.2f} s, "
        f"back after {time.monotonic() - began:.2f} s",
        flush=True,
    )


def every_job(client: Client) -> Iterator[object]:
    cursor = None
    while True:
        page = client.list_jobs(cursor=cursor, limit=100)
        yield from page.items
        cursor = page.next
        if cursor is None:
            return


def works(asking: Client) -> bool:
    try:
        asking.me()
    except ApiError as error:
        return error.status != 401
    return True


def rows(step: int) -> MetricsReport:
    return MetricsReport(rows=(MetricRow(step=step, name="reward", value=0.5),))


def attempt_id(attempt: AttemptClient) -> str:
    return os.path.basename(attempt._path)


def token(attempt: AttemptClient) -> str:
    return attempt._http.headers["Authorization"].removeprefix("Bearer ")
