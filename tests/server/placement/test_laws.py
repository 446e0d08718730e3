"""What holds of a shared cluster whatever happens to it: laws, by a state machine of all that can happen."""

from collections import Counter, defaultdict
from collections.abc import Iterable

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from benchmarks.placement_cluster import Cluster, Work
from server.placement.plan import plan
from server.placement.quotas import Ledger
from server.placement.state import ClusterState, NodeCapacity, Plan, Rules, Share, WaitingJob

RULES = Rules(min_run_s=100.0, patience_s=1000.0)
PROJECTS = ("a", "b", "c")
A, H = "NVIDIA A100", "NVIDIA H100"
TYPES = {2: [(A, A), (H, H), (A, H)], 4: [(A,) * 4, (H,) * 4, (A, H, A, H), (A, H, H, H)]}
VALUES = {"low": -100, "normal": 0, "high": 100}
JOBS = st.tuples(
    st.sampled_from(PROJECTS),
    st.sampled_from([0, 1, 1, 2, 4]),
    st.sampled_from([1, 1, 1, 2]),
    st.sampled_from(sorted(VALUES)),
    st.sampled_from([None, 50.0, 5000.0]),
    st.sampled_from([None, None, None, "h100"]),
)
SHARES = st.builds(
    Share,
    gpu_quota=st.sampled_from([0, 2, 3, 4]),
    gpu_limit=st.sampled_from([None, None, None, 4, 6]),
    cpu_quota=st.integers(0, 1),
    cpu_limit=st.sampled_from([None, 2]),
    weight=st.sampled_from([1.0, 2.0]),
)


class SharedCluster(RuleBasedStateMachine):
    """Anything happens, and after it the scheduler takes its turn."""

    @initialize(
        sizes=st.lists(st.sampled_from([2, 4]), min_size=1, max_size=3),
        mixed=st.booleans(),
        data=st.data(),
        shares=st.lists(SHARES, min_size=3, max_size=3),
    )
    def begin(self, sizes: list[int], mixed: bool, data: st.DataObject, shares: list[Share]) -> None:
        self.mixed = mixed
        self.cluster = Cluster(dict(zip(PROJECTS, shares, strict=True)), RULES)
        self.count = 0
        for size in sizes:
            self.add_node(size, data)

    @rule(jobs=st.lists(JOBS, min_size=1, max_size=4), seconds=st.sampled_from([0.0, 150.0]))
    def jobs_arrive(
        self, jobs: list[tuple[str, int, int, str, float | None, str | None]], seconds: float
    ) -> None:
        for project, gpus, nodes, priority, estimate, kind in jobs:
            kind = kind if self.mixed and gpus else None
            self.count += 1
            name, value = f"job-{self.count:03}", VALUES[priority]
            self.cluster.submit(
                Work(name, project, gpus, 1e9, nodes, priority, value, estimate, gpu_type=kind)
            )
        self.turn()
        self.cluster.now += seconds

    @precondition(lambda self: self.cluster.running)
    @rule(data=st.data())
    def job_finishes(self, data: st.DataObject) -> None:
        self.cluster.finish(data.draw(st.sampled_from(sorted(self.cluster.running))))
        self.turn()

    @precondition(lambda self: self.cluster.running)
    @rule(data=st.data())
    def job_saves_a_checkpoint(self, data: st.DataObject) -> None:
        one = self.cluster.running[data.draw(st.sampled_from(sorted(self.cluster.running)))]
        one.saved_at = self.cluster.now

    @rule()
    def those_told_to_stop_do(self) -> None:
        self.stop_all()
        self.turn()

    @rule(seconds=st.sampled_from([50.0, 150.0, 2000.0]))
    def time_passes(self, seconds: float) -> None:
        self.cluster.now += seconds
        self.turn()

    @rule(gpus=st.sampled_from([2, 4]), data=st.data())
    def node_comes(self, gpus: int, data: st.DataObject) -> None:
        if len(self.cluster.machines) < 4:
            self.add_node(gpus, data)

    def add_node(self, gpus: int, data: st.DataObject) -> None:
        self.count += 1
        types = data.draw(st.sampled_from(TYPES[gpus])) if self.mixed else ()
        self.cluster.add_node(f"n{self.count:03}", gpus, slots=1, types=types)

    @precondition(lambda self: self.cluster.machines)
    @rule(data=st.data(), goes=st.booleans())
    def node_goes_or_is_closed_or_opened(self, data: st.DataObject, goes: bool) -> None:
        node_id = data.draw(st.sampled_from(sorted(self.cluster.machines)))
        if goes and len(self.cluster.machines) > 1:
            self.cluster.remove_node(node_id)
        else:
            machine = self.cluster.machines[node_id]
            machine.closed = not machine.closed
        self.turn()

    @rule(project=st.sampled_from(PROJECTS), share=SHARES)
    def quota_changes(self, project: str, share: Share) -> None:
        self.cluster.shares[project] = share
        self.turn()

    @precondition(lambda self: self.cluster.waiting)
    @rule(data=st.data(), priority=st.sampled_from(sorted(VALUES)))
    def priority_changes(self, data: st.DataObject, priority: str) -> None:
        work = self.cluster.waiting[data.draw(st.sampled_from(sorted(self.cluster.waiting)))]
        work.priority, work.value = priority, VALUES[priority]
        self.turn()

    @rule()
    def without_arrivals_preemption_ends(self) -> None:
        """Each round, those told to stop do, and all others have run long enough to be stopped again."""
        jobs = len(self.cluster.running) + len(self.cluster.waiting)
        for _ in range(2 * jobs + 2):
            self.stop_all()
            self.cluster.now += 2 * RULES.min_run_s
            made = self.turn()
            if not made.starts and not made.stops and not self.stopping():
                return
        raise AssertionError(f"{jobs} jobs still preempt each other after {2 * jobs + 2} rounds")

    def stop_all(self) -> None:
        for job_id in self.stopping():
            self.cluster.requeue(job_id, self.cluster.now)

    def stopping(self) -> list[str]:
        return [j for j, one in self.cluster.running.items() if one.stopping_since is not None]

    def turn(self) -> Plan:
        state = self.cluster.state()
        made = plan(state)
        assert plan(state) == made
        assert Counter([*(s.job_id for s in made.starts), *made.why]) == Counter(j.id for j in state.waiting)
        check_stops(state, made)
        self.cluster.carry_out(made)  # which asserts that nothing is held twice
        check_what_is_kept(self.cluster.state(), made)
        check_limits(state, made)
        check_quotas(state, self.cluster.state(), made)
        check_nothing_idles(self.cluster.state(), made)
        return made


def check_stops(state: ClusterState, made: Plan) -> None:
    """Only jobs that ran long enough give way: borrowers to an owner, or lower priority in a project."""
    running = {job.id: job for job in state.running}
    waiting = {job.id: job for job in state.waiting}
    assert len({stop.job_id for stop in made.stops}) == len(made.stops)
    for stop in made.stops:
        victim, job = running[stop.job_id], waiting[stop.made_for]
        assert not victim.stopping
        assert state.now - victim.started_at >= RULES.min_run_s
        assert made.why[job.id].kind == "checkpoint"
        if victim.project == job.project:
            assert victim.value < job.value
        else:
            assert job.amount <= state.shares[job.project].quota(job.uses_gpus)
            assert set(dict(victim.holds)) & set(made.why[job.id].kept)
            assert any(suiting(job, state, gpus) for _, gpus in victim.holds) or not job.uses_gpus
    check_what_is_guaranteed(state, made)


def suiting(job: WaitingJob, state: ClusterState, gpus: Iterable[str]) -> int:
    """How many of these GPUs could be the job's: ranks that train together get some of one name."""
    names = {gpu.uuid: gpu.name for node in state.nodes for gpu in node.gpu_info}
    of = Counter(name for uuid in gpus if (job.gpu_type or "") in (name := names.get(uuid, "")).casefold())
    return max(of.values(), default=0) if job.several else of.total()


def name_of(node: NodeCapacity, uuid: str) -> str:
    return next((gpu.name for gpu in node.gpu_info if gpu.uuid == uuid), "")


def check_what_is_guaranteed(state: ClusterState, made: Plan) -> None:
    """Nobody loses what it is guaranteed to others, but for the rest of the last job that has to go."""
    running = {job.id: job for job in state.running}
    waiting = {job.id: job for job in state.waiting}
    used = Counter[tuple[str, bool]]()
    for job in state.running:
        used[job.project, job.uses_gpus] += 0 if job.stopping else job.amount
    for one in state.waiting:
        if one.id not in made.why or made.why[one.id].kept:
            used[one.project, one.uses_gpus] += one.amount
    lost: dict[tuple[str, bool], list[int]] = defaultdict(list)
    for stop in made.stops:
        victim = running[stop.job_id]
        if victim.project != waiting[stop.made_for].project:
            lost[victim.project, victim.uses_gpus].append(victim.amount)
    for (project, gpus), amounts in lost.items():
        borrowed = used[project, gpus] - state.shares[project].quota(gpus)
        assert borrowed > sum(amounts) - max(amounts)


def check_what_is_kept(after: ClusterState, made: Plan) -> None:
    """Where a large job is to start at a known time, enough of the GPUs that suit it will be free."""
    nodes = {node.id: node for node in after.nodes}
    kept_by = Counter(node_id for wait in made.why.values() for node_id in wait.kept)
    for job in after.waiting:
        wait = made.why.get(job.id)
        if wait is None or wait.kind != "reserved" or wait.at is None:
            continue
        for node_id in wait.kept:
            there = list(nodes[node_id].free_gpus)
            for one in after.running:
                if one.stopping or (one.ends_at is not None and max(after.now, one.ends_at) <= wait.at):
                    there += one.gpus(node_id)
            assert kept_by[node_id] > 1 or suiting(job, after, there) >= job.gpus, f"{job.id} on {node_id}"


def check_limits(state: ClusterState, made: Plan) -> None:
    before = Counter[tuple[str, bool]]()
    for job in state.running:
        before[job.project, job.uses_gpus] += job.amount
    after = before.copy()
    started = {start.job_id for start in made.starts}
    for waiting in state.waiting:
        if waiting.id in started:
            after[waiting.project, waiting.uses_gpus] += waiting.amount
    for key, used in after.items():
        limit = state.shares[key[0]].limit(key[1])
        if limit is not None and used > before[key]:
            assert used <= limit


def check_quotas(state: ClusterState, after: ClusterState, made: Plan) -> None:
    """No owner's job waits plainly while a borrower that may be stopped holds all that it needs."""
    ledger = Ledger(after)
    for job in state.waiting:
        if (wait := made.why.get(job.id)) and wait.kept:
            ledger.add(job)
    kept = {node_id for wait in made.why.values() for node_id in wait.kept}
    for job in state.waiting:
        wait = made.why.get(job.id)
        if wait is None or wait.kept or wait.kind != "busy" or job.nodes > 1:
            continue
        if not ledger.is_guaranteed(job):
            continue
        for victim in after.running:
            alone = len(victim.holds) == 1
            node_id = victim.holds[0][0]
            open_ = not next(node for node in after.nodes if node.id == node_id).closed
            assert not (
                alone
                and open_
                and node_id not in kept
                and victim.uses_gpus == job.uses_gpus
                and (not job.uses_gpus or suiting(job, after, victim.holds[0][1]) >= job.amount)
                and victim.project != job.project
                and not victim.stopping
                and after.now - victim.started_at >= RULES.min_run_s
                and ledger.of(victim).borrowed
            ), f"{job.id} waits for {victim.id}"


def check_nothing_idles(after: ClusterState, made: Plan) -> None:
    """Nothing waits plainly that fits what is free and kept for nobody."""
    kept: dict[bool, set[str]] = defaultdict(set)
    for job in after.waiting:
        if job.id in made.why:
            kept[job.uses_gpus].update(made.why[job.id].kept)
    for job in after.waiting:
        if job.id not in made.why or made.why[job.id].kept or made.why[job.id].kind not in ("busy", "behind"):
            continue
        if "limit" in made.why[job.id].text or "earlier job, for which" in made.why[job.id].text:
            continue
        for alike in ([A], [H]) if job.nodes > 1 and job.uses_gpus else ([A, H],):
            fitting = [
                n.id
                for n in after.nodes
                if n.id not in kept[job.uses_gpus]
                and (
                    suiting(job, after, [u for u in n.free_gpus if name_of(n, u) in ("", *alike)])
                    if job.uses_gpus
                    else n.free_cpu_slots
                )
                >= max(1, job.gpus)
            ]
            assert len(fitting) < job.nodes, f"{job.id} waits, and {fitting} have room"


TestSharedCluster = SharedCluster.TestCase


def run(cluster: Cluster, seconds: float, made: Plan) -> None:
    """The jobs told to stop do; time passes; those that are done end."""
    cluster.carry_out(made)
    for job_id in [j for j, one in cluster.running.items() if one.stopping_since is not None]:
        cluster.requeue(job_id, cluster.now)
    cluster.now += seconds
    for job_id, one in list(cluster.running.items()):
        if one.started_at + one.work.seconds - one.work.done <= cluster.now:
            cluster.finish(job_id)


def rounds_until_started(cluster: Cluster, job_id: str, arrivals, most: int = 400) -> int:
    for number in range(most):
        for work in arrivals(number):
            cluster.submit(work)
        run(cluster, 300.0, plan(cluster.state()))
        if job_id not in cluster.waiting:
            return number
    raise AssertionError(f"{job_id} is starved: it waits after {most} rounds")


def test_a_large_job_is_not_starved_by_a_stream_of_small_ones_of_others():
    cluster = Cluster({}, RULES)
    for number in range(2):
        cluster.add_node(f"n{number}", 8)
    for number in range(16):
        cluster.submit(Work(f"first-{number:02}", "b", 1, 1000.0 + 100 * number))
    run(cluster, 1.0, plan(cluster.state()))
    cluster.submit(Work("large", "a", 8, 1000.0))

    def arrivals(number: int) -> list[Work]:
        return [Work(f"s-{number:03}-{i}", "bc"[i % 2], 1, 2000.0 + 100 * i, value=100) for i in range(4)]

    assert rounds_until_started(cluster, "large", arrivals) < 20


def test_low_priority_is_not_starved_by_a_stream_of_high_priority_in_its_project():
    cluster = Cluster({}, Rules(min_run_s=100.0, point_s=60.0))  # 100 points are worth 100 minutes
    cluster.add_node("n", 1)
    cluster.submit(Work("low", "a", 1, 1000.0, priority="low", value=-100))
    cluster.now += 1
    waited = rounds_until_started(
        cluster,
        "low",
        lambda number: [Work(f"h-{number:03}", "a", 1, 300.0, priority="high", value=100)] * 1,
    )
    assert 10 < waited < 80


def test_a_job_at_its_projects_limit_is_not_starved_by_its_own_project():
    cluster = Cluster({"a": Share(gpu_quota=2, gpu_limit=4)}, RULES)
    cluster.add_node("n", 8)
    for number in range(4):
        cluster.submit(Work(f"first-{number}", "a", 1, 500.0 + 100 * number))
    run(cluster, 1.0, plan(cluster.state()))
    cluster.submit(Work("large", "a", 4, 1000.0))
    waited = rounds_until_started(
        cluster, "large", lambda number: [Work(f"s-{number:03}-{i}", "a", 1, 900.0) for i in range(2)]
    )
    assert waited < 20


def test_a_job_that_its_quota_covers_is_not_starved_by_its_own_project():
    """Each GPU that its project gets free would go to a small job, since the quota covers only that."""
    cluster = Cluster({"a": Share(gpu_quota=8), "b": Share(gpu_quota=8)}, RULES)
    for number in range(2):
        cluster.add_node(f"n{number}", 8)
    for number in range(16):
        cluster.submit(Work(f"first-{number}", "ab"[number % 2], 1, 500.0 + 100 * number))
    run(cluster, 1.0, plan(cluster.state()))
    cluster.submit(Work("large", "a", 8, 1000.0))

    def arrivals(number: int) -> list[Work]:
        return [Work(f"s-{number:03}-{i}", "ab"[i % 2], 1, 900.0 + 70 * i) for i in range(8)]

    assert rounds_until_started(cluster, "large", arrivals) < 20


def test_waiting_job_helper_is_complete():
    work = Work("j", "a", 2, 10.0, estimate=10.0)
    assert work.waiting() == WaitingJob("j", 2, project="a", seconds=10.0)
