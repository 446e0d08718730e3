"""How well and how fast jobs are placed: `python benchmarks/placement.py`. Prints figures beside their goals.

`--days` leaves the plan times out, `--plans` the simulated days; `--tiny` runs everything and says nothing.
`--figure PATH` also draws the waiting times and shares of docs/placement.md.
"""

import argparse
import os
import random
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from placement_baselines import first_in_first_out, plain_fair_share
from placement_cluster import Cluster, Work
from placement_days import DAY, HOUR, LOADS, PRIORITIES, PROJECTS, SIZES, Outcome, quantiles, simulate
from plan_times import MEANING, PLAN_MS, figures
from rich.console import Console
from rich.progress import Progress, TaskID
from rollouts_table import Table
from service_rig import Figure

from server.placement.plan import plan
from server.placement.state import ClusterState, Rules, Share
from server.placement.why import explain

WAITING, GPUS = 1000, 8
STATES = 100
POLICIES = {
    "first in, first out": first_in_first_out,
    "plain fair share": plain_fair_share,
    "powermean": plan,
}


def busy_cluster(nodes: int, waiting: int, seed: int) -> ClusterState:
    """A full cluster some hours into its day: what runs has run long enough to be stopped."""
    chance = random.Random(seed)
    shares = {f"team-{number:02}": Share(gpu_quota=nodes * GPUS // PROJECTS) for number in range(PROJECTS)}
    cluster = Cluster(shares, Rules())
    for number in range(nodes):
        cluster.add_node(f"n{number:04}", GPUS, slots=8)

    def submit(count: int, projects: int) -> None:
        for _ in range(count):
            size = chance.choices([size for size, _ in SIZES], [weight for _, weight in SIZES])[0]
            name, value, _ = chance.choices(PRIORITIES, [weight for *_, weight in PRIORITIES])[0]
            length = chance.lognormvariate(0.0, 1.45) * HOUR
            project = f"team-{chance.randrange(projects):02}"
            known = length if chance.random() < 0.5 else None
            job_id = f"job-{len(cluster.running) + len(cluster.waiting):06}"
            cluster.submit(Work(job_id, project, size, length, 1, name, value, known))
            cluster.now += 1.0

    submit(nodes * 4, PROJECTS // 2)  # half of the projects borrow what the others leave
    cluster.carry_out(plan(cluster.state()))
    cluster.waiting.clear()
    cluster.now += 1000.0
    for job_id in sorted(cluster.running)[:: max(1, len(cluster.running) // 8)]:
        cluster.finish(job_id)  # some has become free
    submit(waiting, PROJECTS)
    return cluster.state()


def plan_times(tiny: bool) -> Table:
    table = Table("Plan times", ("figure", "value", "goal", ""), left=1)
    for nodes in (5, 10) if tiny else (10, 100, 1000):
        waiting, rounds = (20, 3) if tiny else (WAITING, 4 * STATES if nodes <= 100 else STATES)
        states = [busy_cluster(nodes, waiting, seed) for seed in range(2 if tiny else STATES)]
        what = f"{nodes} nodes x {GPUS} GPUs, {waiting} waiting, {PROJECTS} projects"
        for figure in figures(what, states, rounds, PLAN_MS if nodes == 100 else None):
            table.add(*figure.cells())
            print(*figure.cells(), file=sys.stderr, flush=True)
        made = plan(states[-1])
        began = time.process_time()
        explain(states[-1], made)
        explained = 1e3 * (time.process_time() - began)
        table.add(*Figure(f"{what}: why each waits, CPU", explained, "ms").cells())
    return table


def _tell(bar: Progress, task: TaskID, seconds: float) -> None:
    bar.update(task, completed=seconds)


def days(
    tiny: bool, long: bool, size: int, loads: Sequence[str], rules: Rules
) -> dict[tuple[str, str, str], Outcome]:
    """By span, load and policy."""
    spans = {"day": (3, DAY / 8)} if tiny else {"day": (size, DAY)}
    if long:
        spans["week"] = (4, DAY / 4) if tiny else (size // 4, 7 * DAY)
    found = {}
    with Progress(console=Console(stderr=True)) as bar:
        for span, (nodes, seconds) in spans.items():
            for load in [load for load in LOADS if load.name in loads]:
                for policy, planner in POLICIES.items():
                    what = f"{span}, {load.name}, {policy}"
                    began = time.process_time()
                    tell = partial(_tell, bar, bar.add_task(what, total=seconds))
                    out = simulate(planner, load, nodes, seconds, seed=1, tell=tell, rules=rules)
                    found[span, load.name, policy] = out
                    took = time.process_time() - began
                    bar.console.print(
                        f"{what}: {out.utilisation:.3f} used, Jain {out.jain:.3f}, {took:.0f} s of CPU"
                    )
    return found


def fairness(found: dict[tuple[str, str, str], Outcome]) -> Table:
    columns = (
        "span",
        "load",
        "policy",
        "utilisation",
        "Jain",
        "jobs ended",
        "preemptions",
        "lost GPU-min",
        "lost",
    )
    table = Table("Shares (goals when saturated: utilisation and Jain's index >= 0.95)", columns, left=3)
    for (span, load, policy), out in found.items():
        lost = out.lost_gpu_s / max(1.0, out.used_gpu_s)
        table.add(
            *(span, load, policy, f"{out.utilisation:.3f}", f"{out.jain:.3f}", str(out.finished)),
            *(str(out.preemptions), f"{out.lost_gpu_s / 60:.0f}", f"{lost:.3%}"),
        )
    return table


def waits(found: dict[tuple[str, str, str], Outcome]) -> Table:
    """Of jobs that started; those that still wait at the end are in the last column."""
    columns = (
        "span",
        "load",
        "policy",
        "jobs",
        "started",
        "median [h]",
        "p95 [h]",
        "longest still waiting [h]",
    )
    table = Table("Waiting times", columns, left=4)
    for (span, load, policy), out in found.items():
        groups = {
            f"{size} GPU{'s' * (size > 1)}": [k for k in out.waits if k[0] == size] for size, _ in SIZES
        }
        groups |= {f"priority {name}": [k for k in out.waits if k[1] == name] for name, *_ in PRIORITIES}
        for name, keys in groups.items():
            some = [wait for key in keys for wait in out.waits[key]]
            left = out.unfinished_waits.get(int(name.split()[0])) if name[0].isdigit() else None
            last = "" if left is None else f"{left / HOUR:.1f}"
            table.add(span, load, policy, name, str(len(some)), *(f"{q:.2f}" for q in quantiles(some)), last)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="quick, says nothing")
    parser.add_argument("--plans", action="store_true", help="plan times alone")
    parser.add_argument("--days", action="store_true", help="simulated days alone")
    parser.add_argument("--no-week", action="store_true", help="a day alone")
    parser.add_argument("--nodes", type=int, default=100, help="of 8 GPUs for a day; a quarter for a week")
    names = [load.name for load in LOADS]
    parser.add_argument("--loads", nargs="+", choices=names, default=names)
    parser.add_argument("--reservations", type=int, default=Rules.reservations, help="nodes kept at once")
    parser.add_argument("--figure", type=Path, help="draw the comparison there (SVG)")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} at the start", flush=True)
    if not options.days:
        print(f"\n{plan_times(options.tiny).text()}\n\n{MEANING}", flush=True)
    if not options.plans:
        rules = Rules(reservations=options.reservations)
        found = days(options.tiny, not options.no_week, options.nodes, options.loads, rules)
        print(f"\n{fairness(found).text()}\n\n{waits(found).text()}", flush=True)
        if options.figure:
            from placement_figure import draw  # noqa: PLC0415  matplotlib is for the figure alone

            draw(found, options.figure)


if __name__ == "__main__":
    main()
