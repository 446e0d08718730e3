"""Following a job in the terminal: a live display on a terminal, plain lines anywhere else."""

import threading
import time
from collections.abc import Iterator
from queue import Empty, Queue

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from powermean.calls import ApiError, ServerUnreachableError
from powermean.cli.progress import SHOWN, Run, clock, number, percent, step_line
from powermean.cli.terminal import counted, is_live, output, say, shown, table
from powermean.client import Client
from powermean.contracts.api import Event, Job, JobState
from powermean.contracts.health import Level
from powermean.contracts.metrics import MetricRow
from powermean.health import sentence

TICK_S = 0.25
LOOK_S = 2.0  # between two queries of the job's phase
ROWS = 12
COLOURS: dict[Level, str] = {"ok": "green", "watch": "yellow", "bad": "red"}
COLUMNS = ("step", "reward", "p", "p q10", "p < 0.95", "ESS", "clip", "tok/s", "s", "held-out")
SPARE = ("tok/s", "s", "p q10", "held-out", "p < 0.95", "clip")  # on a narrow terminal, the first ones first


class Feed(threading.Thread):
    """Reads the job's events in a thread, so that the display never waits for the network."""

    def __init__(self, client: Client, job_id: str, after: int) -> None:
        super().__init__(name="events", daemon=True)
        self._client = client
        self._job_id = job_id
        self._after = after
        self._events: Queue[Event] = Queue()
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            for event in self._client.events(self._job_id, self._after):
                self._events.put(event)
        except (ApiError, ServerUnreachableError) as error:
            self.error = error

    def next(self, timeout_s: float) -> Event | None:
        try:
            return self._events.get(timeout=timeout_s)
        except Empty:
            return None

    @property
    def over(self) -> bool:
        return not self.is_alive() and self._events.empty()


def history(client: Client, run: Run) -> int:
    """Fill the run with what was recorded so far; returns the event number up to which it is complete."""
    past = client.metrics(run.job.id, SHOWN)
    run.add(
        MetricRow(step=point.step, update=point.update, name=series.name, value=point.value)
        for series in past.series
        for point in series.points
    )
    return past.seq


def ticks(client: Client, run: Run) -> Iterator[None]:
    """Keep the run up to date until the job ends; yields whenever it may have changed.

    Raises ApiError or ServerUnreachableError if the job can't be followed any more.
    """
    feed = Feed(client, run.job.id, history(client, run))
    feed.start()
    looked = 0.0
    while not feed.over:
        event = feed.next(TICK_S)
        if event is not None:
            run.take(event)
        elif time.monotonic() - looked > LOOK_S:
            looked = time.monotonic()
            look(client, run)
        yield
    if feed.error:
        raise feed.error
    look(client, run)
    yield


def look(client: Client, run: Run) -> None:
    """Update what changes without an event: phase and health. A restarting server is asked again later."""
    try:
        run.job = client.get_job(run.job.id)
        last = run.steps[-1] if run.steps else None
        if run.health is None or run.health.last_step != last:
            run.health = client.health(run.job.id)
    except (ServerUnreachableError, ApiError) as error:
        if not error.retryable:
            raise


def follow(client: Client, job: Job) -> Run:
    """Show the job until it ends."""
    run = Run.of(job)
    if is_live():
        _follow_live(client, run)
    else:
        _follow_lines(client, run)
    return run


def _follow_lines(client: Client, run: Run) -> None:
    said = ""
    for _ in ticks(client, run):
        for step in run.new_steps():
            say(step_line(run, step))
        for step, value in run.new_evaluations():
            say(held_out(f"{number(value)} after step {step}", run.problems))
        for finding in run.new_findings():
            say(sentence(finding))
        phase = headline(run)
        # While it trains each step has its line; the caller says how it ended.
        trains = run.steps and (run.job.state is JobState.RUNNING or run.job.state.final)
        if phase != said and not trains:
            say(phase)
        said = phase


def _follow_live(client: Client, run: Run) -> None:
    started = time.monotonic()
    spinner = Spinner("dots")
    console = output()
    with Live(console=console, refresh_per_second=8, transient=False) as live:
        for _ in ticks(client, run):
            live.update(_display(run, spinner, time.monotonic() - started, console.width))


def held_out(values: str, problems: int | None) -> str:
    """Values of `eval/reward`, by the name that pages have for it, and how many problems are behind each."""
    return f"held-out reward {values}" + (f" (at most {counted(problems, 'problem')})" if problems else "")


def headline(run: Run) -> str:
    job = run.job
    again = f", attempt {job.attempt}" if job.attempt > 1 else ""
    return f"{job.state}{again}" + (f": {job.phase}" if job.phase else "")


def _display(run: Run, spinner: Spinner, elapsed: float, width: int) -> Group:
    total = run.job.total_steps
    done = run.steps[-1] if run.steps else 0
    bar = Table.grid(padding=(0, 1))
    left = f"left {clock(run.seconds_left)}" if run.seconds_left is not None else ""
    bar.add_row(
        f"step {done}/{total}",
        ProgressBar(total=total, completed=done, width=min(40, width // 2)),
        clock(elapsed),
        left,
    )
    spinner.update(text=Text(shown(headline(run))))
    parts: list[Table | Spinner | Text] = [bar]
    if run.evaluations:
        points = "  ".join(f"{number(value)} after step {step}" for step, value in run.evaluations)
        parts.append(Text(held_out(points, run.problems)))
    if run.steps:
        parts.append(_table(run, width))
    if run.health:
        parts += [Text(shown(sentence(one)), style=COLOURS[one.level]) for one in run.health.findings]
    parts.append(Text(shown(headline(run))) if run.job.state.final else spinner)
    return Group(*parts)


def _table(run: Run, width: int) -> Table:
    rows = (
        (
            str(step),
            number(run.value(step, "reward")),
            number(run.late(step, "p/mean"), 3),
            number(run.late(step, "p/q10")),
            percent(run.late(step, "p/share_below_0.95")),
            number(run.late(step, "ess/mean"), 3),
            percent(run.late(step, "clip_fraction/mean"), 1),
            number(run.value(step, "tokens_per_second"), 0),
            number(run.value(step, "time/step"), 1),
            number(run.value(step, "eval/reward")) if run.value(step, "eval/reward") is not None else "",
        )
        for step in run.steps[-ROWS:]
    )
    return table(COLUMNS, rows, width, right=COLUMNS, spare=SPARE)
