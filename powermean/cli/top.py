"""`powermean top`: what the cluster does now, live on a terminal, once anywhere else."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from powermean.calls import ApiError, ServerUnreachableError
from powermean.cli.progress import number
from powermean.cli.terminal import (
    AsJson,
    connected,
    counted,
    is_live,
    output,
    say_json,
    say_table,
    shown,
    table,
)
from powermean.client import Client
from powermean.contracts.api import JobState, JobSummary, NodeList
from powermean.contracts.lanes import ClusterLanes, Lane
from powermean.contracts.sharing import Queue

LOOK_S = 3.0
MOST_JOBS = 50
QUEUE_HEAD = 8


@dataclass(frozen=True)
class Panel:
    """A table with its title. `wrap`, `spare`, `right`: see terminal.table."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    wrap: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()
    right: tuple[str, ...] = ()


@dataclass(frozen=True)
class View:
    """What the API says of the cluster at one time."""

    jobs: Sequence[JobSummary]
    nodes: NodeList
    lanes: ClusterLanes
    queue: Queue

    @property
    def panels(self) -> tuple[Panel, ...]:
        return _jobs(self.jobs), _nodes(self.nodes, self.lanes), _queue(self.queue)


def top(
    once: Annotated[bool, typer.Option("--once", help="Print it once and end.")] = False,
    json_: AsJson = False,
) -> None:
    """Show running jobs, the GPUs of each node and the head of the queue, live until Ctrl-C.

    Example: powermean top --once
    """
    with connected() as client:
        view = look(client)
        if json_:
            say_json({name: getattr(view, name) for name in ("jobs", "nodes", "lanes", "queue")})
        elif once or not is_live():
            for place, panel in enumerate(view.panels):
                title = f"\n{panel.title}" if place else panel.title
                looks = {"wrap": panel.wrap, "spare": panel.spare, "right": panel.right}
                say_table(panel.columns, panel.rows, **looks, title=title)
        else:
            _follow(client, view)


def _follow(client: Client, view: View) -> None:
    console, trouble = output(), ""
    with Live(console=console, auto_refresh=False, transient=False) as live:
        while True:
            live.update(_drawn(view.panels, console.width, trouble), refresh=True)
            time.sleep(LOOK_S)
            try:
                view, trouble = look(client), ""
            except (ApiError, ServerUnreachableError) as error:
                if not error.retryable:
                    raise
                trouble = f"no news: {error}"


def _drawn(panels: Sequence[Panel], width: int, trouble: str) -> Group:
    parts: list[Text | Table] = []
    for one in panels:
        drawn = table(one.columns, one.rows, width, wrap=one.wrap, spare=one.spare, right=one.right)
        parts += [Text(shown(one.title), style="bold"), drawn, Text()]
    return Group(*parts, Text(shown(trouble), style="red"))


def look(client: Client) -> View:
    """What there is to show now."""
    jobs = [
        job
        for state in (JobState.RUNNING, JobState.STARTING)
        for job in client.list_jobs(state=state, limit=MOST_JOBS).items
    ]
    return View(jobs, client.nodes(), client.lanes(), client.queue(limit=QUEUE_HEAD))


def _jobs(jobs: Sequence[JobSummary]) -> Panel:
    return Panel(
        title=f"{counted(len(jobs))} running",
        columns=("job", "project", "step", "reward", "p", "does"),
        rows=[
            (
                job.name,
                job.project,
                f"{job.step}/{job.total_steps}",
                "" if job.last_reward is None else number(job.last_reward),
                "" if job.last_p is None else number(job.last_p),
                job.phase or job.state,
            )
            for job in jobs
        ],
        wrap=("job", "does"),
        spare=("project", "p"),
        right=("step", "reward", "p"),
    )


def _nodes(nodes: NodeList, lanes: ClusterLanes) -> Panel:
    return Panel(
        title=counted(len(nodes.items), "node"),
        columns=("node", "state", "GPUs", "CPU slots", "runs"),
        rows=[
            (
                node.id,
                "offline" if not node.alive else node.closed or "alive",
                _taken([lane for lane in lanes.lanes if lane.node == node.id and lane.gpu]),
                _taken([lane for lane in lanes.lanes if lane.node == node.id and not lane.gpu]),
                _names(lanes, node.id),
            )
            for node in nodes.items
        ],
        wrap=("runs",),
        right=("GPUs", "CPU slots"),
    )


def _taken(lanes: Sequence[Lane]) -> str:
    return f"{sum(_is_held(lane) for lane in lanes)}/{len(lanes)}" if lanes else ""


def _is_held(lane: Lane) -> bool:
    return lane.engine is not None or any(span.end is None for span in lane.spans)


def _names(lanes: ClusterLanes, node: str) -> str:
    """The names of what runs on the node, each once."""
    now = [(lane, span) for lane in lanes.lanes if lane.node == node for span in lane.spans if not span.end]
    names = [lanes.attempts[span.attempt].name if span.attempt else "another project" for _, span in now]
    engines = [f"engine {lane.engine}" for lane in lanes.lanes if lane.node == node and lane.engine]
    return ", ".join(dict.fromkeys([*names, *engines]))


def _queue(queue: Queue) -> Panel:
    waiting = len(queue.items) + queue.left_out
    others = f", and {queue.others} of other projects" if queue.others else ""
    return Panel(
        title=f"{counted(waiting)} waiting{others}",
        columns=("#", "job", "needs", "why"),
        rows=[(str(job.position), job.name, job.needs.words, job.reason) for job in queue.items],
        wrap=("job", "why"),
        right=("#",),
    )
