"""Lanes: who held what when, what they did, and what of that others see."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event, text

from powermean.contracts.lanes import ClusterLanes
from powermean.contracts.phases import SAMPLING, UPDATING, in_step
from server.cluster import lanes
from server.cluster.lanes import activity_of
from server.db.models import EngineService
from server.jobs.allocations import Past
from tests.support.sample_cluster import Cluster, busy, opened
from tests.support.service_driver import ServiceDriver, error_of


def shown(service: ServiceDriver, visible: frozenset[str] | None = None, **ago: float) -> ClusterLanes:
    with service.database.read() as session:
        since = opened(session).ago(**ago) if ago else None
        return lanes.show(session, service.settings, visible, since)


def seeded(service: ServiceDriver):
    """A GPU with one job after another, an idle one, and a node with two slots that three jobs take."""
    with service.database.write() as session:
        cluster = opened(session)
        cluster.project("ours")
        cluster.project("theirs", "Bo")
        cluster.node("n1", gpus=2)
        cluster.node("n2", cpu_slots=2)
        old, new = cluster.job("theirs", "finished"), cluster.job("ours")
        gpu = ("n1", ("GPU-n1-0",))
        cluster.attempt(old, cluster.ago(hours=3), cluster.ago(minutes=30), gpu, gpu)
        cluster.attempt(new, cluster.ago(minutes=20), None, gpu, gpu)
        cluster.phase(new, cluster.ago(minutes=19), in_step(1, 20, SAMPLING, "3 of 64"))
        cluster.phase(new, cluster.ago(minutes=18), in_step(1, 20, SAMPLING, "9 of 64"))
        cluster.phase(new, cluster.ago(minutes=10), in_step(1, 20, UPDATING))
        for minutes in (50, 45, 5):
            slot = cluster.job("ours", "finished", gpus=0)
            cluster.attempt(
                slot,
                cluster.ago(minutes=minutes),
                cluster.ago(minutes=minutes - 10 if minutes > 5 else 1),
                ("n2", ()),
                ("n2", ()),
            )
        return old.id, new.id


def test_gpus_and_slots_have_lanes_with_their_spans(service: ServiceDriver):
    old, new = seeded(service)
    found = shown(service)
    assert [(lane.node, lane.gpu, lane.slot) for lane in found.lanes] == [
        ("n1", "GPU-n1-0", 0), ("n1", "GPU-n1-1", 1), ("n2", None, 0), ("n2", None, 1)
    ]  # fmt: skip
    first = found.lanes[0]
    assert [span.attempt for span in first.spans] == [f"{old}.1", f"{new}.1"]
    assert (first.spans[0].start, first.spans[1].end) == (found.since, None)  # cut at the window's start
    assert first.busy_s == pytest.approx(50 * 60, abs=2)
    assert (found.lanes[1].spans, found.lanes[1].busy_s) == ((), 0)
    assert [len(lane.spans) for lane in found.lanes[2:]] == [2, 1]  # two overlap, the third fits behind


def test_phases_come_from_heartbeats_each_once_and_for_short_windows(service: ServiceDriver):
    _, new = seeded(service)
    found = shown(service)
    (sampling, start), (updating, later) = (piece[::-1] for piece in found.attempts[f"{new}.1"].phases)
    assert (sampling, updating) == ("sampling", "updating")
    assert later - start == pytest.approx(9 * 60, abs=1)
    assert found.phases
    day = shown(service, hours=24)
    assert (day.phases, day.attempts[f"{new}.1"].phases) == (False, ())


def test_jobs_of_others_are_taken_places_and_no_more(service: ServiceDriver):
    old, new = seeded(service)
    found = shown(service, frozenset({"ours"}))
    assert [span.attempt for span in found.lanes[0].spans] == [None, f"{new}.1"]
    for secret in (old, "theirs", "Bo"):
        assert secret not in found.model_dump_json()
    nobody = shown(service, frozenset())
    assert nobody.attempts == {}
    assert [lane.busy_s for lane in nobody.lanes] == pytest.approx(
        [lane.busy_s for lane in found.lanes], abs=2
    )


def test_over_http_a_member_sees_their_own_and_the_window_is_bounded(service: ServiceDriver):
    seeded(service)
    member = service.someone(project="ours", name="Cy")
    answer = member.get("/v1/cluster/lanes")
    assert answer.status_code == 200
    assert "theirs" not in answer.text
    for since in ("2020-01-01T00:00:00Z", "2999-01-01T00:00:00Z"):
        refused = member.get(f"/v1/cluster/lanes?since={since}")
        assert refused.status_code == 422
        assert error_of(refused)["fields"][0]["path"] == "since"


@pytest.mark.parametrize(
    ("projects", "to_ours"), [([], "smol"), (["ours", "theirs"], "smol"), (["theirs"], "of another project")]
)
def test_a_shared_engine_holds_its_gpu(service: ServiceDriver, projects: list[str], to_ours: str):
    seeded(service)
    with service.database.write() as session:
        engine = EngineService(
            id="engine-1", name="smol", spec={"projects": projects}, state="ready", node="n1",
            gpu_uuids=["GPU-n1-1"], created_by="per-ours", created_at=opened(session).now,
        )  # fmt: skip
        session.add(engine)
    assert [lane.engine for lane in shown(service).lanes[:2]] == [None, "smol"]
    assert [lane.engine for lane in shown(service, frozenset({"ours"})).lanes[:2]] == [None, to_ours]


def test_a_node_that_is_gone_keeps_its_past(service: ServiceDriver):
    with service.database.write() as session:
        cluster = opened(session)
        cluster.project("ours")
        cluster.node("off", gpus=1, alive=False)
        gone = cluster.job("ours", "finished")
        cluster.attempt(gone, cluster.ago(minutes=50), cluster.ago(minutes=40), ("removed", ("GPU-x",)))
    assert [(lane.node, lane.known) for lane in shown(service).lanes] == [("off", False), ("removed", False)]


@pytest.mark.slow
@pytest.mark.parametrize("hours", [1, 24])
def test_old_allocations_are_not_read(service: ServiceDriver, hours: int):
    with service.database.write() as session:
        cluster = busy(session)
        _grow_old(cluster, 10_000)
    statements: list[tuple[str, object]] = []
    engine = service.database.engine
    event.listen(engine, "before_cursor_execute", lambda *a: statements.append((a[2], a[3])))
    found = shown(service, hours=hours)
    asked = list(statements)
    assert sum(span.end is None for lane in found.lanes for span in lane.spans) >= 20
    assert len(asked) < 60
    if service.database.engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            for statement, parameters in asked:
                if "FROM allocations" in statement or "FROM job_events" in statement:
                    plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
                    scans = [step[-1] for step in plan if step[-1].startswith("SCAN")]
                    held_alone = "SCAN allocations USING INDEX ix_allocations_held"  # it has no others
                    assert set(scans) <= {held_alone}, (statement, plan)


def _grow_old(cluster: Cluster, count: int) -> None:
    """As many allocations of an ended job, released weeks ago."""
    job = cluster.job("vision", "finished")
    attempt = cluster.attempt(job, cluster.ago(days=30), cluster.ago(days=20))
    insert = text(
        "INSERT INTO allocations (attempt_id, role, node_id, gpu_uuids, released_at)"
        " VALUES (:attempt, 'trainer', 'gpu-1', '[]', :at)"
    )
    at = str(cluster.ago(days=20).replace(tzinfo=None))
    cluster.session.execute(insert, [{"attempt": attempt.id, "at": at} for _ in range(count)])


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20) | st.none()), max_size=20))
def test_rows_of_slots_never_overlap_and_are_no_more_than_needed(times: list[tuple[int, int | None]]):
    zero = datetime(2026, 1, 1, tzinfo=UTC)
    rest = ("j", "j", "p", "x", "running", False)
    spans = [(zero + timedelta(minutes=start), length) for start, length in times]
    held = [
        Past(
            f"a{n}",
            "n",
            (),
            None,
            start,
            None if length is None else start + timedelta(minutes=length),
            *rest,
        )
        for n, (start, length) in enumerate(spans)
    ]
    rows = lanes._rows(held)
    assert sorted(one.attempt_id for row in rows for one in row) == sorted(one.attempt_id for one in held)
    for row in rows:
        for before, after in pairwise(row):
            assert before.end is not None
            assert before.end <= after.start
    most = max(
        (sum(o.start <= one.start and (o.end is None or o.end > one.start) for o in held) for one in held),
        default=0,
    )
    assert len(rows) == most


def test_what_a_phase_means():
    assert activity_of(in_step(3, 20, UPDATING, "2 of 4")) == "updating"
    assert activity_of("saving the model") == "saving"
    assert activity_of("loading the model") == "preparing"
